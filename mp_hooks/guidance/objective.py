"""What the tokens are optimised for: flow between two frames that looks like the flow of real video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.discriminator import FlowDiscriminator
from mp_hooks.flow import FlowEstimator
from mp_hooks.flow.warping import warp


def discriminator_loss(logits: Tensor) -> Tensor:
    """log(1 - phi) with phi = sigmoid(logits), as -softplus(logits), which never saturates to -inf. Shape kept."""
    return -F.softplus(logits)


def total_variation(flow: Tensor) -> Tensor:
    """Mean over pixels of |f[y,x] - f[y+1,x]| + |f[y,x] - f[y,x+1]|, both components summed: [b, 2, h, w] -> [b].

    With flow in pixels of its own grid this is a slope without a unit, so its scale does not depend on resolution:
    at twice the size the flow doubles, its change from pixel to pixel does not.
    """
    down = (flow[:, :, 1:] - flow[:, :, :-1]).abs().sum(1).mean((1, 2))
    right = (flow[:, :, :, 1:] - flow[:, :, :, :-1]).abs().sum(1).mean((1, 2))
    return down + right


TYPICAL_LENGTH = 0.02  # of real flow, as a fraction of the frame's side


def relative_variation(flow: Tensor) -> Tensor:
    """Total variation in units of the field's own mean length, so that moving less is no gain: [b, 2, h, w] -> [b].

    Equal to `total_variation` where the mean length is `TYPICAL_LENGTH`; below a tenth of that the field counts as
    still and is not blown up.
    """
    length = flow.square().sum(1).clamp(min=1e-12).sqrt().mean((1, 2)) / flow.shape[-1]
    return total_variation(flow) / (length / TYPICAL_LENGTH).clamp(min=0.1)


VARIATIONS = {"absolute": total_variation, "relative": relative_variation}


def photometric_error(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """What the flow leaves unexplained: mean |warp(second, flow) - first|, [b, 3, h, w] in [-1, 1] -> [b].

    Brightness constancy, the assumption flow rests on, as a Charbonnier penalty (Sun et al., CVPR 2010). Flicker and
    popping break it and hardly show in the flow itself.
    """
    return ((warp(second, flow) - first).square() + 1e-6).sqrt().mean((1, 2, 3))


def token_distance(tokens: Tensor, initial: Tensor) -> Tensor:
    """||T - T0||^2 for each sample: [b, n, d], [n, d] -> [b]."""
    return (tokens - initial).square().sum((1, 2))


@dataclass(frozen=True)
class Loss:
    """l_total for each sample, each [b]: its parts unweighted; the weighted sum of those about motion, and the rest.

    phi: the discriminator's probability that the flow is real, for the trace only.
    """

    disc: Tensor
    tv: Tensor
    photo: Tensor
    reg: Tensor
    phi: Tensor
    motion: Tensor
    pull: Tensor

    @property
    def total(self) -> Tensor:
        """l_total."""
        return self.motion + self.pull


@dataclass
class Objective:
    """l_total = lambda_disc log(1 - phi(f)) + lambda_tv TV(f) + lambda_reg ||T - T0||^2, the poster's loss.

    To which lambda_photo adds the frames' photometric error, ours. relative: the distance is a fraction of ||T0||^2, as
    embeddings of one encoder are a hundred times another's.
    """

    flow: FlowEstimator
    discriminator: FlowDiscriminator
    lambda_disc: float
    lambda_tv: float
    lambda_reg: float
    lambda_photo: float
    variation: Callable[[Tensor], Tensor] = total_variation
    relative: bool = True

    def __call__(self, first: Tensor, second: Tensor, tokens: Tensor, initial: Tensor, crops: Tensor) -> Loss:
        """Loss of frame pairs, computed where the frames are: discriminator and flow estimator move there.

        Args:
            first, second: frames [b, p, 3, h, w] in [-1, 1], p pairs a sample.
            tokens, initial: T [b, n, d] and T0 [n, d].
            crops: where each pair's square lies along the longer side, in [0, 1], [p].
        """
        if next(self.discriminator.parameters()).device != first.device:
            self.discriminator.to(first.device)
            self.flow.to(first.device)
        samples, pairs = first.shape[:2]
        size = self.discriminator.config.flow_size
        views = [
            torch.stack([square(frames[:, n], size, place) for n, place in enumerate(crops.tolist())], 1).flatten(0, 1)
            for frames in (first, second)
        ]
        earlier, later = views
        flow = self.flow(earlier, later)
        logits = self.discriminator(flow)
        disc = discriminator_loss(logits).view(samples, pairs).mean(1)
        tv = self.variation(flow).view(samples, pairs).mean(1)
        photo = photometric_error(earlier, later, flow).view(samples, pairs).mean(1)
        reg = token_distance(tokens, initial) / (initial.square().sum() if self.relative else 1)
        motion = self.lambda_disc * disc + self.lambda_tv * tv + self.lambda_photo * photo
        phi = torch.sigmoid(logits.detach()).view(samples, pairs).mean(1)
        return Loss(disc=disc, tv=tv, photo=photo, reg=reg, phi=phi, motion=motion, pull=self.lambda_reg * reg)


def square(frames: Tensor, size: int, place: float) -> Tensor:
    """A square of full height or width, resized to `size`: [b, 3, h, w] -> [b, 3, size, size].

    The discriminator has only seen squares, because aspect ratio alone tells real clips from generated ones.
    """
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = round(place * (height - side)), round(place * (width - side))
    view = frames[..., top : top + side, left : left + side]
    if side == size:
        return view
    return F.interpolate(view, (size, size), mode="bilinear", align_corners=False, antialias=side > size)
