"""How much of a clip's motion is motion of things: as a whole, and what is left of its flow then.

In the drawn world everything moves affinely, but for bending, which is small: the background with the camera, the
object along its path. Surfaces that are warped anew in each frame, or whose texture changes under them, do not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.flow import FlowEstimator
from mp_hooks.lab.mini.tracking import saturation_mask

ROUNDS = 5  # of the robust fit
SCALE = 0.25  # pixels beyond which a flow vector counts less (Cauchy)
MARGIN = 5  # pixels around the object's edge, where flow is of both layers, that are left out


class LayerMotion(NamedTuple):
    """How a clip moves, in pixels per frame.

    camera: length of the background's affine motion averaged over the clip, which leaves out its shaking and what
    surfaces do. morphing: mean length of what the layers' affine motions leave of the flow of each frame to the next.
    """

    camera: float
    morphing: float


@torch.no_grad()
def layer_motion(video: Tensor, estimator: FlowEstimator) -> LayerMotion:
    """The motion of the layers of a clip [3, t, h, w] in [-1, 1] by this estimator's flow."""
    frames = video.transpose(0, 1)
    flow = estimator(frames[:-1], frames[1:])
    layers = _layers(video)
    fitted = [affine_fit(flow, inside) for inside in layers]
    left, area = flow.new_zeros(()), flow.new_zeros(())
    for inside, moved in zip(layers, fitted, strict=True):
        left = left + ((flow - moved).norm(dim=1) * inside).sum() / inside.sum().clamp(min=1)
        area = area + (inside.sum() > 0)
    background, _ = fitted
    return LayerMotion(float(background.mean(0).norm(dim=0).mean()), float(left / area.clamp(min=1)))


def _layers(video: Tensor) -> tuple[Tensor, Tensor]:
    """Where background and object are in all frames but the last, [t - 1, h, w] each; edges are of neither."""
    mask = (saturation_mask(video)[:-1] > 0.5).float()[:, None]
    return (1 - _dilated(mask))[:, 0], (1 - _dilated(1 - mask))[:, 0]


def affine_fit(flow: Tensor, weight: Tensor) -> Tensor:
    """The affine flow nearest to `flow` [b, 2, h, w] where `weight` [b, h, w] is, robustly: [b, 2, h, w]."""
    h, w = flow.shape[-2:]
    axes = (torch.linspace(-1, 1, side, device=flow.device) for side in (h, w))
    y, x = torch.meshgrid(*axes, indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], -1).flatten(0, 1)  # [h w, 3]
    target, robust = flow.flatten(2).mT, weight.flatten(1)
    current = robust
    for _ in range(ROUNDS):
        weighted = basis * current[..., None]
        normal = weighted.mT @ basis + 1e-4 * torch.eye(3, device=flow.device)
        fitted = basis @ torch.linalg.solve(normal, weighted.mT @ target)
        current = robust / (1 + (target - fitted).square().sum(-1) / SCALE**2)
    return fitted.mT.unflatten(-1, (h, w))


def _dilated(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask, MARGIN, stride=1, padding=MARGIN // 2)
