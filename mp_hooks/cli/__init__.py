"""Thin commands: argument parsing and printing only."""
