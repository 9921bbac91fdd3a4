"""Hugging Face diffusers pipelines, one file each on what they share. Tested with diffusers 0.31 to 0.42."""
