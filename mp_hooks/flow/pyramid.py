"""A flow estimator without weights: coarse-to-fine Lucas-Kanade with a smoothness prior, differentiable throughout.

Lucas and Kanade (1981) in a pyramid (Bouguet 2000), on locally normalised brightness so that a change of light is no
motion, gradients averaged over both frames, and each update pulled towards the smoothed flow so that places without
texture follow their neighbours. Numbers were chosen on known warps of real frames: `motionprompt flow bench`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow.base import FlowEstimator, register_flow
from mp_hooks.flow.warping import warp

COARSEST = 8  # pixels of the shorter side at the top of the pyramid
UPDATES = 4  # Gauss-Newton updates a level
WINDOW = 3.0  # sigma in pixels of the window that shares one motion
NEIGHBOURHOOD = 2.0  # sigma in pixels of the brightness normalisation
NOISE = 0.02  # standard deviation of brightness, of a range of 1, below which texture counts as noise
SMOOTHING = 3.0  # sigma in pixels of the flow that updates are pulled to
PRIOR = 1e-2  # strength of that pull, against squared normalised gradients
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


class PyramidFlow(FlowEstimator):
    """Lucas-Kanade over a Gaussian pyramid; flow up to an eighth of the frame or so."""

    name = "pyramid"

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        flow = None
        for one, two in zip(_levels(_luma(first)), _levels(_luma(second)), strict=True):
            one, two = _normalised(one), _normalised(two)
            flow = _resized(flow, one)
            for _ in range(UPDATES):
                flow = _update(one, two, flow)
        return flow


@register_flow("pyramid")
def build(weights: str | Path | None) -> PyramidFlow:
    """The estimator; it takes no weights."""
    if weights is not None:
        raise MotionPromptError(f"the flow estimator 'pyramid' has no weights; leave out {weights}")
    return PyramidFlow()


def _luma(frames: Tensor) -> Tensor:
    return (frames * frames.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) / 2


def _levels(image: Tensor) -> list[Tensor]:
    """The image at halved sizes, smallest first."""
    levels = [image]
    while min(levels[-1].shape[-2:]) >= 2 * COARSEST:
        size = [math.ceil(side / 2) for side in levels[-1].shape[-2:]]
        levels.append(F.interpolate(levels[-1], size, mode="bilinear", antialias=True, align_corners=False))
    return levels[::-1]


def _normalised(image: Tensor) -> Tensor:
    """Brightness relative to its neighbourhood, in standard deviations."""
    image = image - _blurred(image, NEIGHBOURHOOD)
    return image / (_blurred(image.square(), NEIGHBOURHOOD) + NOISE**2).sqrt()


def _resized(flow: Tensor | None, image: Tensor) -> Tensor:
    """The flow of the level above on this image's grid, in this grid's pixels; zero at the top."""
    height, width = image.shape[-2:]
    if flow is None:
        return image.new_zeros(len(image), 2, height, width)
    scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    return F.interpolate(flow, (height, width), mode="bilinear", align_corners=False) * scale


def _update(one: Tensor, two: Tensor, flow: Tensor) -> Tensor:
    """The flow that minimises, in each window, |two(p + f) - one(p)|^2 linearised at `flow` + PRIOR |f - smooth|^2."""
    warped = warp(two, flow, "bicubic")
    x, y = ((a + b) / 2 for a, b in zip(_gradient(one), _gradient(warped), strict=True))
    difference = warped - one
    products = torch.cat([x * x, x * y, y * y, x * difference, y * difference], 1)
    xx, xy, yy, xd, yd = _blurred(products, WINDOW).split(1, 1)
    smooth = _blurred(flow, SMOOTHING)
    u, v = (smooth - flow).split(1, 1)
    right, down = xd + xx * u + xy * v, yd + xy * u + yy * v
    xx, yy = xx + PRIOR, yy + PRIOR
    step = torch.cat([yy * right - xy * down, xx * down - xy * right], 1) / (xx * yy - xy * xy)
    return smooth - step


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences in x and y, the border repeated."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return x, y


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of each channel, the border repeated."""
    radius = math.ceil(2.5 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.softmax(-offsets.square() / (2 * sigma**2), 0)
    planes = F.pad(image, (radius,) * 4, mode="replicate").flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view(image.shape)
