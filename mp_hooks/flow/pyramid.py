"""A flow estimator without weights: coarse-to-fine, locally windowed, globally smoothed.

Each step of each pyramid level linearises first(p) = second(p + f(p)) about the flow so far and solves, per pixel,

    min over f of   G * w (grad . (f - f_old) + residual)^2  +  lambda |f - G * f_old|^2

in closed form. G is a Gaussian window: the first term is Lucas and Kanade's (1981), the second draws the flow to
the mean of its neighbourhood as Horn and Schunck's (1981) does, so that it is filled in where there is no texture;
for the two together see Bruhn, Weickert and Schnoerr (IJCV 2005). The images compared are the colour channels with
local mean and contrast normalised, which makes a change of light, and flicker, harmless. w leaves out what moved
out of the frame and turns down what does not match, occlusions first of all (Black and Anandan's Lorentzian, 1996).

The arithmetic is a few pixels' worth, so that on a GPU the number of operations is what it costs: both frames, both
components and all products go through each one together, and nothing is read back or copied from the CPU.
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
from mp_hooks.flow.warping import Frame

COARSEST_SIDE = 8  # pixels: no level has a shorter side
STEPS, FINEST_STEPS = 6, 3  # linearisations on each level; the finest, which costs most, starts closest
WINDOW = 3.0  # standard deviation of G in pixels of each level
CONTRAST_WINDOW = 1.5  # that of the window over which mean and contrast are normalised
CONTRAST_FLOOR = 0.02  # contrast, of 2 from black to white, below which texture counts as noise
SMOOTHNESS = 4e-2  # lambda, where w is at most 1 / MISMATCH squared
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
        self._levels: tuple[Any, list[_Level]] = None, []

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        images = _pyramid(torch.cat([first, second]))
        levels = self._known(images)
        flow = first.new_zeros(len(first), 2, *images[-1].shape[2:])
        for depth in reversed(range(len(levels))):
            level = levels[depth]
            x, y = _normalise(images[depth], level.contrast).chunk(2)
            for _ in range(STEPS if depth else FINEST_STEPS):
                flow = _Linearisation.apply(x, y, flow, level)
            if depth:
                finer = levels[depth - 1]
                flow = F.interpolate(flow, finer.places.shape[1:], mode="bilinear", align_corners=False)
                flow = flow * (finer.half / level.half)
        return flow

    def _known(self, images: list[Tensor]) -> list[_Level]:
        """What the levels of images like these share; that of the last size is kept."""
        wanted = images[0].shape[2:], images[0].device, images[0].dtype
        known, levels = self._levels
        if known != wanted:
            with torch.inference_mode(False):  # what is made in it cannot be used outside
                levels = [_Level(image) for image in images]
            self._levels = wanted, levels
        return levels


class _Level(Frame):
    """What all images [..., h, w] of a level share."""

    def __init__(self, like: Tensor) -> None:
        super().__init__(like)
        self.contrast, self.window = _Gaussian(like, CONTRAST_WINDOW), _Gaussian(like, WINDOW)
        self.slopes = _Slopes(like)
        self.reach = self.half + 0.5  # to a pixel's width outside the frame


class _Gaussian:
    """Gaussian blur of images [..., h, w] by one matrix a side, renormalised at the border.

    On CPU the backward of two matrix products is several times faster than that of two convolutions.
    """

    def __init__(self, like: Tensor, sigma: float) -> None:
        self.rows, self.columns = (self._matrix(side, sigma, like) for side in like.shape[-2:])

    @staticmethod
    def _matrix(side: int, sigma: float, like: Tensor) -> Tensor:
        place = torch.arange(side, device=like.device, dtype=like.dtype)
        weights = torch.softmax(-((place[:, None] - place) ** 2) / (2 * sigma**2), dim=1)
        return F.threshold(weights, 1e-12, 0)  # subnormal numbers make a CPU's products 30 times slower

    def __call__(self, image: Tensor) -> Tensor:
        return self.rows @ (image @ self.columns.T)

    def adjoint(self, image: Tensor) -> Tensor:
        return self.rows.T @ (image @ self.columns)


class _Slopes:
    """Of the mean of two images, from their sum [..., h, w]: along x and y, by one matrix a side.

    Central differences, one-sided at the border.
    """

    def __init__(self, like: Tensor) -> None:
        self.rows, self.columns = (
            torch.gradient(torch.eye(side, device=like.device, dtype=like.dtype) / 2, dim=0)[0]
            for side in like.shape[-2:]
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


def _normalise(image: Tensor, blur: _Gaussian) -> Tensor:
    """Each colour channel with local mean 0 and local standard deviation 1, noise aside."""
    centred = image - blur(image)
    return centred / (blur(centred**2) + CONTRAST_FLOOR**2).sqrt()


class _Linearisation(torch.autograd.Function):
    """The minimiser of the energy above, per pixel: flow - u where A u = s, all from products under G.

    x, y [b, 3, h, w], normalised, and the flow so far [b, 2, h, w] to flow [b, 2, h, w]. Its backward pass solves the
    same A for the adjoint of u, which takes much less than what autograd does over all that led to A and s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, flow: Tensor, level: _Level) -> Tensor:
        places = level.places + flow
        grid = level.grid(places)
        warped = torch.grid_sampler_2d(y, grid, *BICUBIC)
        residual = warped - x
        terms = torch.stack([*level.slopes(x + warped), residual], 1)  # [b, 3, 3, h, w], by term and channel
        left = level.reach - places.abs()
        within = left.clamp(0, 1)
        match = (residual**2 + MISMATCH**2).reciprocal()
        weight = within[:, :1] * within[:, 1:] * match

        products = ((weight[:, None] * terms[:, :2])[:, :, None] * terms[:, None]).sum(3)  # of slopes with all terms
        means = level.window(torch.cat([products.flatten(1, 2), flow], 1))
        products, mean = means[:, :6].unflatten(1, (2, 3)), means[:, 6:]
        xx, xy, yy = products[:, 0, 0] + SMOOTHNESS, -products[:, 0, 1], products[:, 1, 1] + SMOOTHNESS
        inverse = torch.stack([yy, xy, xy, xx], 1) / (xy * xy - xx * yy)[:, None]  # of -A
        inverse = inverse.unflatten(1, (2, 2))
        change = _times(inverse, products[:, :, 2].sub(mean - flow, alpha=SMOOTHNESS))
        ctx.save_for_backward(y, grid, places, terms, left, within, match, weight, inverse, change)
        ctx.level = level
        return flow + change

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, grid, places, terms, left, within, match, weight, inverse, change = ctx.saved_tensors
        level, slopes, residual = ctx.level, terms[:, :2], terms[:, 2]
        of_s = _times(inverse, gradient)[:, :, None]
        products = level.window.adjoint(torch.cat([of_s * change[:, None], of_s], 2))[:, :, :, None]

        by_slope = (products * terms[:, None]).sum(2)  # the loss is linear in the products: slopes * by_slope * weight
        of_terms = (products * slopes[:, :, None]).sum(1)
        of_terms[:, :2].add_(by_slope)
        of_terms = weight[:, None] * of_terms
        of_inside = (slopes * by_slope).sum(1) * match
        of_mean = level.slopes.adjoint(of_terms[:, 0], of_terms[:, 1])
        of_residual = of_terms[:, 2].addcmul(weight * residual, of_inside, value=-2)
        of_y, of_grid = torch.ops.aten.grid_sampler_2d_backward(of_mean + of_residual, y, grid, *BICUBIC, (True, True))

        of_within = of_inside.sum(1, keepdim=True) * within.flip(1)
        of_left = torch.ops.aten.hardtanh_backward(of_within, left, 0, 1)
        of_places = (of_grid.movedim(3, 1) / level.half).addcmul(of_left, places.sign(), value=-1)
        of_flow = (gradient + of_places).add(of_s[:, :, 0] - products[:, :, 2, 0], alpha=SMOOTHNESS)
        return of_mean - of_residual, of_y, of_flow, None


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[b, 2, 2, h, w] times [b, 2, h, w], per pixel."""
    return (matrices * vectors[:, None]).sum(2)
