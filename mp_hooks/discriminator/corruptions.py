"""Faults that generators make, put into clean clips: negatives whose only difference is how things move.

Every corruption takes frames [b, c, t, h, w] in [-1, 1] (b >= 1, t >= 2) and a generator, and gives frames of the same
shape. Nothing enters at the border that the clip does not show, so no edge gives a corruption away.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mp_hooks.errors import unknown_name
from mp_hooks.flow.warping import warp as sampled

Corruption = Callable[[Tensor, Generator], Tensor]
DETAIL = 1 / 32  # of the side: the blur that parts detail from what carries it


def corrupt(frames: Tensor, name: str, seed: int = 0) -> Tensor:
    """Frames [b, c, t, h, w] in [-1, 1] with the corruption of that name; the same seed gives the same.

    Raises MotionPromptError for an unknown name (`CORRUPTIONS` has them all).
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, list(CORRUPTIONS))
    return CORRUPTIONS[name](frames, torch.Generator().manual_seed(seed)).clamp(-1, 1)


def warp(frames: Tensor, generator: Generator) -> Tensor:
    """Rigid things bend: a smooth displacement, 3 % of the side, that changes within three frames."""
    t = frames.shape[2]
    return _moved(frames, 0.03 * _noise(frames, 2, 2 + t // 3, 5, generator))


def boil(frames: Tensor, generator: Generator) -> Tensor:
    """Texture boils: in every frame its detail lies elsewhere by 1.2 % of the side, what carries it stays."""
    carrier = _blurred(frames)
    return carrier + _moved(frames - carrier, 0.012 * _noise(frames, 2, frames.shape[2], 16, generator))


def swap(frames: Tensor, generator: Generator) -> Tensor:
    """Neighbouring frames change places, half of them and one pair at least."""
    t = frames.shape[2]
    first = torch.arange(int(torch.randint(1 + (t > 2), (), generator=generator)), t - 1, 2)
    chosen = first[torch.randperm(len(first), generator=generator)[: math.ceil(len(first) / 2)]]
    order = torch.arange(t)
    order[chosen], order[chosen + 1] = chosen + 1, chosen
    return frames[:, :, order]


def jitter(frames: Tensor, generator: Generator) -> Tensor:
    """The camera shakes: every frame is moved by 2 % of the side, and enlarged by as much as that lays bare."""
    b, _, t, h, w = frames.shape
    greatest = 0.05
    move = (0.02 * torch.randn(b, 2, t, 1, 1, generator=generator)).clamp(-greatest, greatest).to(frames)
    y, x = (torch.linspace(-0.5, 0.5, side).to(frames) for side in (h, w))
    inwards = -2 * greatest * torch.stack(torch.meshgrid(x, y, indexing="xy"))[None, :, None]
    return _moved(frames, move + inwards)


def morph(frames: Tensor, generator: Generator) -> Tensor:
    """Things swell, shrink and twist: blobs of a quarter of the side do, each to a rhythm of its own."""
    b, _, t, h, w = frames.shape
    y, x = (torch.linspace(-0.5, 0.5, side).to(frames) for side in (h, w))
    place = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None, :, None]
    total = torch.zeros(b, 2, t, h, w).to(frames)
    for _ in range(4):
        centre = 0.7 * (torch.rand(b, 2, 1, 1, 1, generator=generator) - 0.5).to(frames)
        away = place - centre
        window = torch.exp(-away.square().sum(1, keepdim=True) / (2 * 0.12**2))
        amount = F.interpolate(torch.randn(b, 2, 2 + t // 3, generator=generator), t, mode="linear").to(frames)
        swell, twist = (0.4 * amount[:, :, :, None, None] * window).split(1, dim=1)
        turned = torch.stack([-away[:, 1], away[:, 0]], dim=1)
        total = total + swell * away + twist * turned
    return _moved(frames, total)


def slide(frames: Tensor, generator: Generator) -> Tensor:
    """Texture slides over surfaces: the detail of some regions drifts, 1 % of the side a frame or so."""
    carrier, t = _blurred(frames), frames.shape[2]
    velocity = 0.015 * torch.randn(len(frames), 2, 1, 1, 1, generator=generator).to(frames)
    region = torch.sigmoid(4 * _noise(frames, 1, 1, 4, generator))
    time = torch.arange(t).to(frames)[:, None, None] - (t - 1) / 2
    return carrier + _moved(frames - carrier, (velocity * time * region).clamp(-0.2, 0.2))


def lag(frames: Tensor, generator: Generator) -> Tensor:
    """Parts come apart: soft regions show a frame or two before or after their time, another one every few frames."""
    t = frames.shape[2]
    delay = 2 * _noise(frames, 1, 2 + t // 4, 4, generator)
    time = (torch.arange(t).to(frames)[:, None, None] + delay).clamp(0, t - 1)
    earlier = time.floor().long().clamp(max=t - 2)
    share = time - earlier
    before, after = (
        frames.gather(2, number.expand(-1, frames.shape[1], -1, -1, -1)) for number in (earlier, earlier + 1)
    )
    return before + share * (after - before)


def ghost(frames: Tensor, generator: Generator) -> Tensor:
    """Things merge and part: regions fade between this frame and the one before or after, anew in every frame."""
    t = frames.shape[2]
    other = (torch.arange(t) + 2 * torch.randint(2, (t,), generator=generator) - 1).clamp(0, t - 1)
    share = 0.7 * torch.sigmoid(3 * _noise(frames, 1, t, 4, generator))
    return frames + share * (frames[:, :, other] - frames)


# A discriminator may be trained on the first and is tested on the others, so that a test is of faults it has not seen.
FOR_TRAINING: dict[str, Corruption] = {"morph": morph, "slide": slide, "lag": lag, "ghost": ghost}
FOR_TESTS: dict[str, Corruption] = {"warp": warp, "boil": boil, "swap": swap, "jitter": jitter}
CORRUPTIONS = FOR_TRAINING | FOR_TESTS


def _noise(like: Tensor, channels: int, moments: int, cells: int, generator: Generator) -> Tensor:
    """Smooth noise [b, channels, t, h, w] of mean square 1: `moments` along the clip, `cells` along a side."""
    b, _, t, h, w = like.shape
    coarse = torch.randn(b, channels, moments, cells, cells, generator=generator).to(like)
    smooth = F.interpolate(coarse, (t, h, w), mode="trilinear", align_corners=True)
    return smooth / smooth.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()


def _moved(frames: Tensor, displacement: Tensor) -> Tensor:
    """Frames [b, c, t, h, w] sampled at a displacement [b, 2, t, h, w], x then y, in sides of the frame."""
    sides = displacement.new_tensor(frames.shape[:-3:-1]).view(2, 1, 1)
    flat, flow = (
        frames.transpose(1, 2).flatten(0, 1),
        displacement.transpose(1, 2).expand(-1, frames.shape[2], -1, -1, -1),
    )
    return sampled(flat, flow.flatten(0, 1) * sides, "bicubic").unflatten(0, (len(frames), -1)).transpose(1, 2)


def _blurred(frames: Tensor) -> Tensor:
    """Frames [b, c, t, h, w] without detail: a Gaussian blur of `DETAIL` of the side."""
    rows, columns = (_gaussian(side).to(frames) for side in frames.shape[-2:])
    return rows @ frames @ columns.T


def _gaussian(side: int) -> Tensor:
    """The blur along one side as a matrix, renormalised at the border."""
    place = torch.arange(side, dtype=torch.float32)
    return torch.softmax(-((place[:, None] - place) ** 2) / (2 * (DETAIL * side) ** 2), dim=1)
