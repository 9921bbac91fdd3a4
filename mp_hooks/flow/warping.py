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
    frame = Frame(flow)
    return F.grid_sample(image, frame.grid(frame.places + flow), mode, padding_mode="border", align_corners=False)


class Frame:
    """The geometry of images [..., h, w], on the device and of the type of `like`.

    places: of each pixel, [2, h, w], x then y, from the middle of the frame. half: of its sides, [2, 1, 1]. All in
    pixels, and made where they are: a GPU would have to be waited for to copy numbers from the CPU.
    """

    def __init__(self, like: Tensor) -> None:
        height, width = like.shape[-2:]
        self.half = torch.stack([like.new_full((1, 1), side / 2) for side in (width, height)])
        x, y = (torch.arange(side, device=like.device, dtype=like.dtype) for side in (width, height))
        self.places = torch.stack(torch.meshgrid(x, y, indexing="xy")) - (self.half - 0.5)

    def grid(self, places: Tensor) -> Tensor:
        """Places [b, 2, h, w] in grid_sample's coordinates (align_corners=False), [b, h, w, 2]."""
        # at NaN its backward writes out of bounds on the CPU; beyond +-3 all is border anyway
        return (places / self.half).nan_to_num().clamp(-3, 3).movedim(1, 3)
