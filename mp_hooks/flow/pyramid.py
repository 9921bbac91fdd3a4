"""A flow estimator without weights: coarse-to-fine, locally windowed, globally smoothed.

Each step of each pyramid level linearises first(p) = second(p + f(p)) about the flow so far and solves, per pixel,

    min over f of   G * w (grad . (f - f_old) + residual)^2  +  lambda |f - G * f_old|^2

in closed form. G is a Gaussian window: the first term is Lucas and Kanade's (1981), the second draws the flow to
the mean of its neighbourhood as Horn and Schunck's (1981) does, so that it is filled in where there is no texture;
for the two together see Bruhn, Weickert and Schnoerr (IJCV 2005). The images compared are the colour channels with
local mean and contrast normalised, which makes a change of light, and flicker, harmless. w leaves out what moved
out of the frame and turns down what does not match, occlusions first of all (Black and Anandan's Lorentzian, 1996).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow.base import FlowEstimator, register_flow
from mp_hooks.flow.warping import warp

COARSEST_SIDE = 8  # pixels: no level has a shorter side
STEPS, FINEST_STEPS = 6, 3  # linearisations on each level; the finest, which costs most, starts closest
WINDOW = 3.0  # standard deviation of G in pixels of each level
CONTRAST_WINDOW = 1.5  # of the window over which mean and contrast are normalised
CONTRAST_FLOOR = 0.02  # contrast, of 2 from black to white, below which texture counts as noise
SMOOTHNESS = 1e-2  # lambda
MISMATCH = 0.5  # residual, in units of local contrast, at which the robust weight has fallen to a half


@register_flow("pyramid")
class Pyramid(FlowEstimator):
    """The weight-free estimator; deterministic, and its gradient is finite everywhere, on constant frames too."""

    name = "pyramid"

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        if weights is not None:
            raise MotionPromptError(f"the flow 'pyramid' has no weights; leave out {weights} or name another estimator")

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        levels = list(zip(_pyramid(first), _pyramid(second), strict=True))
        flow = first.new_zeros(len(first), 2, *levels[-1][0].shape[2:])
        for depth, (x, y) in reversed(list(enumerate(levels))):
            flow = _resize_flow(flow, x.shape[2:])
            contrast, window = (_Gaussian(x, sigma) for sigma in (CONTRAST_WINDOW, WINDOW))
            x, y = _normalise(x, contrast), _normalise(y, contrast)
            for _ in range(STEPS if depth else FINEST_STEPS):
                flow = _step(x, y, flow, window)
        return flow


class _Gaussian:
    """Gaussian blur of images [..., h, w] by one matrix a side, renormalised at the border.

    On CPU the backward of two matrix products is several times faster than that of two convolutions.
    """

    def __init__(self, like: Tensor, sigma: float) -> None:
        self.rows, self.columns = (self._matrix(side, sigma, like) for side in like.shape[2:])

    @staticmethod
    def _matrix(side: int, sigma: float, like: Tensor) -> Tensor:
        place = torch.arange(side, device=like.device, dtype=like.dtype)
        return torch.softmax(-((place[:, None] - place) ** 2) / (2 * sigma**2), dim=1)

    def __call__(self, image: Tensor) -> Tensor:
        return self.rows @ (image @ self.columns.T)


def _pyramid(image: Tensor) -> list[Tensor]:
    """The image and its halvings, finest first."""
    levels = [image]
    while min(levels[-1].shape[2:]) >= 2 * COARSEST_SIDE:
        half = [(side + 1) // 2 for side in levels[-1].shape[2:]]
        levels.append(F.interpolate(levels[-1], half, mode="bilinear", align_corners=False, antialias=True))
    return levels


def _resize_flow(flow: Tensor, size: torch.Size) -> Tensor:
    scale = flow.new_tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]]).view(2, 1, 1)
    return scale * F.interpolate(flow, size, mode="bilinear", align_corners=False)


def _normalise(image: Tensor, blur: _Gaussian) -> Tensor:
    """Each colour channel with local mean 0 and local standard deviation 1, noise aside."""
    centred = image - blur(image)
    return centred / (blur(centred**2) + CONTRAST_FLOOR**2).sqrt()


def _step(x: Tensor, y: Tensor, flow: Tensor, blur: _Gaussian) -> Tensor:
    """The minimiser, per pixel, of the energy above; x, y [b, 3, h, w] normalised, flow [b, 2, h, w]."""
    warped = warp(y, flow, "bicubic")
    residual = warped - x
    gy, gx = torch.gradient((x + warped) / 2, dim=(2, 3))
    weight = _inside(flow) / (1 + (residual / MISMATCH) ** 2)
    products = torch.stack([gx * gx, gx * gy, gy * gy, gx * residual, gy * residual], 1)
    xx, xy, yy, xr, yr = blur((weight[:, None] * products).sum(2)).unbind(1)

    mean = blur(flow)
    to_mean_x, to_mean_y = (mean - flow).unbind(1)
    slope_x = xr + xx * to_mean_x + xy * to_mean_y
    slope_y = yr + xy * to_mean_x + yy * to_mean_y
    xx, yy = xx + SMOOTHNESS, yy + SMOOTHNESS
    determinant = xx * yy - xy * xy  # at least SMOOTHNESS squared
    return mean - torch.stack([yy * slope_x - xy * slope_y, xx * slope_y - xy * slope_x], 1) / determinant[:, None]


def _inside(flow: Tensor) -> Tensor:
    """1 where p + flow(p) lies in the frame, falling to 0 within a pixel outside it; [b, 1, h, w]."""
    height, width = flow.shape[2:]
    x = flow[:, :1] + torch.arange(width, device=flow.device)
    y = flow[:, 1:] + torch.arange(height, device=flow.device)[:, None]
    outside_x = F.relu(-x) + F.relu(x - (width - 1))
    outside_y = F.relu(-y) + F.relu(y - (height - 1))
    return F.relu(1 - outside_x) * F.relu(1 - outside_y)
