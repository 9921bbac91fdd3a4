"""Backward warping, the inverse of what flow describes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample `image` [b, c, h, w] at p + flow(p), flow [b, 2, h, w] in pixels (x, y); the border is repeated.

    With the flow from a first to a second frame, warp(second, flow) looks like the first. A flow that is no number
    samples the middle. `mode` is that of grid_sample, whose backward is not deterministic on CUDA (pytorch#68959).
    """
    return F.grid_sample(image, sampling_grid(flow), mode, padding_mode="border", align_corners=False)


def sampling_grid(flow: Tensor) -> Tensor:
    """p + flow(p) in grid_sample's coordinates (align_corners=False): [b, 2, h, w] -> [b, h, w, 2]."""
    height, width = flow.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    # there pixel i has its centre at (2 i + 1) / n - 1
    x = (2 * (columns + flow[:, 0]) + 1) / width - 1
    y = (2 * (rows[:, None] + flow[:, 1]) + 1) / height - 1
    # at NaN its backward writes out of bounds on the CPU; beyond +-3 all is border anyway
    return torch.stack([x, y], -1).nan_to_num().clamp(-3, 3)
