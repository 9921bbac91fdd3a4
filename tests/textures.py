"""Drifting textures, which the tests of what reads folders of videos share."""

from __future__ import annotations

from pathlib import Path

import torch

from mp_hooks.flow import warp
from mp_hooks.video import write_video


def make_video(path: Path, seed: int, jitter: bool = False) -> None:
    """Eight frames of 64 by 64 that drift, smoothly or in jumps that differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 3, 16, 16, generator=generator)
    source = torch.nn.functional.interpolate(noise, (64, 64), mode="bicubic")
    frames = []
    for number in range(8):
        flow = torch.full((1, 2, 64, 64), 1.0 * number)
        if jitter:
            jumps = torch.randn(1, 2, 8, 8, generator=generator) * 2
            flow = flow + torch.nn.functional.interpolate(jumps, (64, 64), mode="bicubic")
        frames.append(warp(source, flow)[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, ((torch.stack(frames) * 0.3 + 0.5).clamp(0, 1) * 255).byte(), fps=8)
