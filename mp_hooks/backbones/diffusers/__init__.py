"""Hugging Face diffusers pipelines, one file each on what they share. Tested with diffusers 0.42.1."""
