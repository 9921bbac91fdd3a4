"""Hosts on lvdm, latent video diffusion: VideoCrafter and DynamiCrafter, one file each on what they share."""
