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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow.base import FlowEstimator, register_flow
from mp_hooks.flow.warping import sampling_grid

COARSEST_SIDE = 8  # pixels: no level has a shorter side
STEPS, FINEST_STEPS = 6, 3  # linearisations on each level; the finest, which costs most, starts closest
WINDOW = 3.0  # standard deviation of G in pixels of each level
CONTRAST_WINDOW = 1.5  # of the window over which mean and contrast are normalised
CONTRAST_FLOOR = 0.02  # contrast, of 2 from black to white, below which texture counts as noise
SMOOTHNESS = 1e-2  # lambda
MISMATCH = 0.5  # residual, in units of local contrast, at which the robust weight has fallen to a half

BICUBIC = 2, 1, False  # of grid_sample: its number, that of repeated borders, corners not aligned


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
            contrast, window, slopes = _Gaussian(x, CONTRAST_WINDOW), _Gaussian(x, WINDOW), _Slopes(x)
            x, y = _normalise(x, contrast), _normalise(y, contrast)
            for _ in range(STEPS if depth else FINEST_STEPS):
                flow = _Linearisation.apply(x, y, flow, window, slopes)
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

    def adjoint(self, image: Tensor) -> Tensor:
        return self.rows.T @ (image @ self.columns)


class _Slopes:
    """Central differences of images [..., h, w] along x and y, one-sided at the border, by one matrix a side."""

    def __init__(self, like: Tensor) -> None:
        self.rows, self.columns = (
            torch.gradient(torch.eye(side, device=like.device, dtype=like.dtype), dim=0)[0] for side in like.shape[2:]
        )

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image @ self.columns.T, self.rows @ image

    def adjoint(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ self.columns + self.rows.T @ y


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


class _Linearisation(torch.autograd.Function):
    """The minimiser of the energy above: u of A u = s, per pixel, less than the mean of the flow around it.

    x, y [b, 3, h, w], normalised, and the flow so far [b, 2, h, w] to flow [b, 2, h, w]. Its backward pass solves the
    same A for the adjoint of u, which takes much less than what autograd does over all that led to A and s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, flow: Tensor, blur: _Gaussian, slopes: _Slopes) -> Tensor:
        grid = sampling_grid(flow)
        warped = torch.grid_sampler_2d(y, grid, *BICUBIC)
        residual = warped - x
        gx, gy = slopes((x + warped) / 2)
        inside, inwards = _inside(flow)
        match = 1 / (1 + (residual / MISMATCH) ** 2)
        weight = inside * match
        wx, wy = weight * gx, weight * gy
        products = [(a * b).sum(1) for a, b in ((wx, gx), (wx, gy), (wy, gy), (wx, residual), (wy, residual))]
        xx, xy, yy, xr, yr, mean_x, mean_y = blur(torch.stack([*products, *flow.unbind(1)], 1)).unbind(1)

        to_mean_x, to_mean_y = mean_x - flow[:, 0], mean_y - flow[:, 1]
        s = xr + xx * to_mean_x + xy * to_mean_y, yr + xy * to_mean_x + yy * to_mean_y
        system = xx + SMOOTHNESS, xy, yy + SMOOTHNESS
        moved = torch.stack([mean_x, mean_y], 1) - torch.stack(_solve(*system, *s), 1)
        ctx.save_for_backward(y, grid, residual, gx, gy, match, weight, inwards, moved - flow, *system)
        ctx.blur, ctx.slopes = blur, slopes
        return moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, grid, residual, gx, gy, match, weight, inwards, change, *system = ctx.saved_tensors
        vx, vy = _solve(*system, *(-gradient).unbind(1))
        dx, dy = change.unbind(1)
        products = ctx.blur.adjoint(torch.stack([vx * dx, vx * dy + vy * dx, vy * dy, vx, vy], 1))
        xx, xy, yy, xr, yr = products[:, :, None].unbind(1)

        along_x, along_y = xx * gx, yy * gy
        by_x = along_x + xy * gy + xr * residual  # the loss is linear in the products: gx * by_x + gy * by_y, weighted
        by_y = along_y + yr * residual
        of_inside = (gx * by_x + gy * by_y) * match
        of_mean = ctx.slopes.adjoint(weight * (by_x + along_x), weight * (by_y + along_y + xy * gx)) / 2
        of_residual = weight * (xr * gx + yr * gy - 2 / MISMATCH**2 * residual * of_inside)
        of_y, of_grid = torch.ops.aten.grid_sampler_2d_backward(of_mean + of_residual, y, grid, *BICUBIC, (True, True))
        of_flow = gradient + SMOOTHNESS * (torch.stack([vx, vy], 1) - products[:, 3:])
        of_flow += of_inside.sum(1, keepdim=True) * inwards
        of_flow += of_grid.movedim(3, 1) * of_flow.new_tensor([2 / y.shape[3], 2 / y.shape[2]]).view(2, 1, 1)
        return of_mean - of_residual, of_y, of_flow, None, None


def _solve(xx: Tensor, xy: Tensor, yy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """u of [[xx, xy], [xy, yy]] u = (x, y); the determinant is at least SMOOTHNESS squared."""
    determinant = xx * yy - xy * xy
    return (yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant


def _inside(flow: Tensor) -> tuple[Tensor, Tensor]:
    """1 where p + flow(p) lies in the frame, falling to 0 within a pixel outside it, [b, 1, h, w]; and its gradient."""
    height, width = flow.shape[2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    beyond = torch.stack([x - x.clamp(0, width - 1), y - y.clamp(0, height - 1)], 1)
    within = F.relu(1 - beyond.abs())
    inwards = -beyond.sign() * (within > 0) * within.flip(1)
    return within.prod(1, keepdim=True), inwards
