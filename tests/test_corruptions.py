"""Corrupted clips: what stays, what moves, and that nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mp_hooks.discriminator.corruptions import CORRUPTIONS, corrupt
from mp_hooks.discriminator.evaluation import rigidity
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow


def panning(frames: int = 6, size: int = 64, step: int = 2) -> Tensor:
    """A texture that a camera pans over by `step` pixels a frame: [1, 3, t, s, s] in [-1, 1]."""
    noise = torch.randn(1, 3, size // 4, size // 2, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(noise, (size, 2 * size), mode="bicubic").tanh()
    return torch.stack([texture[..., step * t : step * t + size] for t in range(frames)], dim=2)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("frames", [2, 6])
def test_a_corruption_is_a_clip_of_the_same_shape_and_depends_on_its_seed_alone(name: str, frames: int) -> None:
    clip = panning(frames).repeat(2, 1, 1, 1, 1)
    kept, state = clip.clone(), torch.get_rng_state()
    first, again = (corrupt(clip, name, seed=3) for _ in range(2))
    assert torch.equal(clip, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert first.shape == clip.shape
    assert first.abs().max() <= 1
    assert (first - clip).abs().mean() > 0.01


def test_swapped_frames_are_the_frames_in_another_order() -> None:
    clip = panning()
    swapped = corrupt(clip, "swap")
    found = [next(i for i in range(6) if torch.equal(swapped[:, :, place], clip[:, :, i])) for place in range(6)]
    assert sorted(found) == list(range(6))
    assert all(abs(place - number) <= 1 for place, number in enumerate(found))


@pytest.mark.parametrize("name", ["warp", "boil", "morph", "slide", "lag"])
def test_what_moved_rigidly_bends(name: str) -> None:
    clip, flow = panning(), load_flow("pyramid")
    before, after = (
        rigidity(flow(c[0, :, :-1].transpose(0, 1), c[0, :, 1:].transpose(0, 1))).mean()
        for c in (clip, corrupt(clip, name))
    )
    assert after < before - 0.1


def test_an_unknown_corruption_names_those_there_are() -> None:
    with pytest.raises(MotionPromptError, match="jitter"):
        corrupt(panning(), "melt")
