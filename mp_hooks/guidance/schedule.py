"""When to guide and where to look: the guided window and the random frame pairs, in a random part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError


def guided_window(total: int, start: float, stop: float) -> range:
    """Indices of the guided steps among `total`, 0 being the step from pure noise.

    `start` and `stop` are fractions of the schedule: 0.08 and 0.30 of 50 steps are 4..14 (the paper's 3 < t < 15).
    A schedule too short for the window still has one guided step.
    """
    first = min(_ceil(start * total), total - 1)
    return range(first, max(_ceil(stop * total), first + 1))


@dataclass(frozen=True)
class Pairs:
    """Frame pairs of an update: frames, int64 [p, 2], earlier first; crops [p, 2], where each one's square lies.

    A crop is how far down and across in [0, 1), both the same where the square has the frame's full height or width.
    """

    frames: Tensor
    crops: Tensor


def draw_pairs(
    frames: int, count: int, min_interval: int, max_interval: int, generator: torch.Generator, view: bool = False
) -> Pairs:
    """`count` random frame pairs of a clip, and a place for each one's square; of a `view` in both directions.

    The interval is uniform over the allowed ones that fit the clip, then the place is uniform.
    Raises MotionPromptError for a clip of fewer than two frames.
    """
    if frames < 2:
        raise MotionPromptError("MotionPrompt compares two frames and this clip has one; ask the host for more frames")
    longest = min(max_interval, frames - 1)
    shortest = min(min_interval, longest)
    intervals = torch.randint(shortest, longest + 1, (count,), generator=generator)
    places = torch.rand(count, generator=generator)
    first = (places * (frames - intervals)).long()
    crops = torch.rand(2 if view else 1, count, generator=generator)
    return Pairs(torch.stack([first, first + intervals], dim=1), crops.T.expand(count, 2))


def dearest_pair(frames: int, max_interval: int, latent_frames: Callable[[int], int]) -> Tensor:
    """The pair, int64 [2], that lies in most latent frames, and of these the last; see `Host.latent_frames`."""
    interval = min(max_interval, frames - 1)
    apart = [latent_frames(first + interval + 1) - latent_frames(first + 1) for first in range(frames - interval)]
    first = max(range(len(apart)), key=lambda place: (apart[place], place))
    return torch.tensor([first, first + interval])


def draw_place(frames: int, length: int, generator: torch.Generator) -> int:
    """First frame of a random part of `length` of a clip's frames, or of its latent frames.

    Uniform over all places at which the part shares two frames with the clip, then pushed inside: the first and last
    frames would seldom be looked at otherwise.
    """
    place = int(torch.randint(2 - length, frames - 1, (1,), generator=generator))
    return max(min(place, frames - length), 0)


def _ceil(value: float) -> int:
    return math.ceil(round(value, 6))  # 0.08 * 50 must be 4, whatever the float says
