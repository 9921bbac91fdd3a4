"""Stable Diffusion inflated to video, in pipelines of the hosts' own: LaVie and AnimateDiff, on what they share."""
