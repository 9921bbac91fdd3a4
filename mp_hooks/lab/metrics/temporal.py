"""Coherence and motion of one clip: flickering, and what its flow tells.

Clips are uint8 [t, 3, h, w], as they are written to a file and read from one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mp_hooks.discriminator import FlowDiscriminator
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import FlowEstimator
from mp_hooks.flow.warping import warp
from mp_hooks.guidance.objective import square, total_variation

PAIRS_AT_ONCE = 8  # of frames, so that memory does not grow with the clip
VBENCH_RATE = 8  # frames a second at which VBench measures motion


@dataclass(frozen=True)
class NeighbouringFlow:
    """Flow between neighbouring frames, [t - 1, 2, h, w] in pixels: from each frame to the next, and back."""

    forward: Tensor
    backward: Tensor


@torch.no_grad()
def neighbouring_flow(frames: Tensor, estimator: FlowEstimator) -> NeighbouringFlow:
    """Flow between the neighbouring frames of a clip of at least two; raises MotionPromptError for a shorter one."""
    if len(frames) < 2:
        raise MotionPromptError(f"motion is measured between frames; this clip has {len(frames)}")
    video = frames.float() / 127.5 - 1
    first, second = torch.cat([video[:-1], video[1:]]), torch.cat([video[1:], video[:-1]])
    parts = zip(first.split(PAIRS_AT_ONCE), second.split(PAIRS_AT_ONCE), strict=True)
    return NeighbouringFlow(*torch.cat([estimator(*part) for part in parts]).chunk(2))


@torch.no_grad()
def clip_logits(videos: Tensor, discriminator: FlowDiscriminator, estimator: FlowEstimator) -> Tensor:
    """A discriminator's mean logit over the flow of neighbouring frames: videos [b, 3, t, h, w] in [-1, 1] -> [b]."""
    frames = square(videos.transpose(1, 2).flatten(0, 1), discriminator.config.flow_size, 0.5)
    video = frames.unflatten(0, (len(videos), -1))
    first, second = video[:, :-1].flatten(0, 1), video[:, 1:].flatten(0, 1)
    return discriminator(estimator(first, second)).view(len(videos), -1).mean(1)


def temporal_flickering(frames: Tensor) -> float:
    """VBench's temporal flickering, in [0, 1], 1 where nothing changes (arXiv 2311.17982).

    255 less the mean absolute difference of neighbouring frames in grey levels, over 255. It rewards stillness: hold
    it against the dynamic degree.
    """
    difference = frames.double().diff(dim=0).abs().mean((1, 2, 3))
    return (255 - difference.mean().item()) / 255


def warping_error(frames: Tensor, flow: NeighbouringFlow) -> float:
    """Mean squared difference between each frame and the next one warped onto it; values in [0, 1], 0 is best.

    Over the pixels whose flow forth and back agrees (Lai et al., ECCV 2018), the others being occluded: |f + b|^2 <=
    0.01 (|f|^2 + |b|^2) + 0.5 (Sundaram et al., ECCV 2010).
    """
    video = frames.float() / 255
    first, second = video[:-1], warp(video[1:], flow.forward)
    back = warp(flow.backward, flow.forward)
    lengths = flow.forward.square().sum(1) + back.square().sum(1)
    seen = ((flow.forward + back).square().sum(1) <= 0.01 * lengths + 0.5).float()
    error = (first - second).square().mean(1)
    return ((error * seen).sum() / seen.sum().clamp(min=1)).item()


def flow_length(flow: NeighbouringFlow) -> float:
    """Mean length of the forward flow, in pixels a frame."""
    return flow.forward.norm(dim=1).mean().item()


def flow_variation(flow: NeighbouringFlow) -> float:
    """Total variation of the forward flow, the TV term of guidance, in px per px: how ragged motion is in space."""
    return total_variation(flow.forward).mean().item()


def flow_jerk(flow: NeighbouringFlow) -> float:
    """Mean length of the third difference in time of points that ride on the flow, in pixels per frame cubed.

    From every pixel of every frame that has three more after it, a point follows the forward flow; v, v', v'' being the
    flow where it stands, its jerk is |v'' - 2 v' + v|. Points that leave the picture do not count. Steady motion has
    jerk 0; NaN for clips of fewer than four frames.
    """
    velocity = flow.forward
    if len(velocity) < 3:
        return float("nan")
    first, second, third = velocity[:-2], velocity[1:-1], velocity[2:]
    second = warp(second, first)
    path = first + second
    third = warp(third, path)
    height, width = velocity.shape[-2:]
    x = torch.arange(width, device=path.device) + path[:, 0]
    y = torch.arange(height, device=path.device)[:, None] + path[:, 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    jerk = (third - 2 * second + first).norm(dim=1)
    return (jerk[inside].mean() if inside.any() else jerk.new_tensor(float("nan"))).item()


def at_vbench_rate(frames: Tensor, fps: float) -> Tensor:
    """Every n-th frame, n such that about `VBENCH_RATE` a second remain, as VBench samples for the dynamic degree."""
    return frames[:: max(1, round(fps / VBENCH_RATE))]


def dynamic_degree(flow: NeighbouringFlow) -> bool:
    """VBench's rule for a clip that moves, given the flow of its frames at about 8 a second (arXiv 2311.17982).

    The fastest 5 % of the pixels move by more than 6 px per 256 px of the shorter side, in a quarter of the frames.
    """
    length = flow.forward.norm(dim=1).flatten(1)
    fastest = length.sort(dim=1, descending=True).values[:, : int(length.shape[1] * 0.05)].mean(1)
    limit = 6.0 * min(flow.forward.shape[-2:]) / 256
    return int((fastest > limit).sum()) >= round(4 * (len(length) + 1) / 16)
