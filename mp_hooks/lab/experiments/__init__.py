"""Experiments: methods compared on the same prompts and seeds, sweeps, what a discriminator goes by."""
