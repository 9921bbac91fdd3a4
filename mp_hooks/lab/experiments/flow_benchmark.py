"""How far estimators are off on motion that is known: real frames moved by an exact map."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mp_hooks.errors import MotionPromptError
from mp_hooks.video import find_videos, read_frames, video_info

KINDS = ("translation", "rotation", "zoom")
MARGIN = 1.25  # the source is this much larger than the frames, so that motion brings in real picture
BORDER = 8  # pixels at the edge that no method is asked about

Estimate = Callable[[Tensor, Tensor], Tensor]  # frames [1, 3, s, s] in [-1, 1], twice -> flow [1, 2, s, s]


@dataclass(frozen=True)
class KnownPair:
    """Two frames [1, 3, s, s] in [-1, 1], the flow between them [1, 2, s, s], and where it is asked for [s, s]."""

    kind: str
    first: Tensor
    second: Tensor
    flow: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Result:
    """Mean end-point error in pixels by kind of motion, and milliseconds a pair."""

    error: dict[str, float]
    forward: float
    backward: float | None  # forward and backward; None where there is no gradient


def random_motion(kind: str, size: int, greatest: float, generator: torch.Generator) -> Tensor:
    """A 3x3 map of centred pixel coordinates that moves no pixel of the frame by more than `greatest`."""
    length = greatest * float(torch.rand((), generator=generator))
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    sign = 1 if angle < math.pi else -1
    radius = size / math.sqrt(2)  # of the corners
    motion = torch.eye(3, dtype=torch.float64)
    if kind == "translation":
        motion[:2, 2] = length * torch.tensor([math.cos(angle), math.sin(angle)])
    elif kind == "rotation":
        turn = sign * length / radius
        motion[:2, :2] = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    else:
        motion[:2, :2] *= 1 + sign * length / radius
    return motion


def known_pair(source: Tensor, size: int, kind: str, motion: Tensor) -> KnownPair:
    """Two views of `source` [1, 3, S, S] such that a point at p in the first lies at motion(p) in the second.

    Each view is resampled through half of the motion, so that no estimator profits from an unsampled frame.
    """
    half = _square_root(motion)
    centre = (size - 1) / 2
    axis = torch.arange(size, dtype=torch.float64) - centre
    points = torch.stack([*torch.meshgrid(axis, axis, indexing="xy"), torch.ones(size, size, dtype=torch.float64)])
    seen_first = torch.einsum("ij,jhw->ihw", half, points)[:2]
    seen_second = torch.einsum("ij,jhw->ihw", torch.linalg.inv(half), points)[:2]
    target = torch.einsum("ij,jhw->ihw", motion, points)[:2]
    inside = target.abs().amax(0) <= centre
    inside[:BORDER] = inside[-BORDER:] = False
    inside[:, :BORDER] = inside[:, -BORDER:] = False
    flow = (target - points[:2]).unsqueeze(0).float()
    return KnownPair(kind, _sampled(source, seen_first), _sampled(source, seen_second), flow, inside)


def known_pairs(
    folder: str | Path, count: int, size: int = 128, greatest: float = 8.0, seed: int = 0
) -> list[KnownPair]:
    """`count` pairs of each kind of motion, from one frame of each of `count` videos of `folder`.

    Raises MotionPromptError where the folder holds no readable video.
    """
    videos = find_videos(folder)
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for number in tqdm(range(count), desc="frames", leave=False):
        video = videos[number * len(videos) // count % len(videos)]
        index = int(torch.randint(video_info(video).frames, (), generator=generator))
        side = round(size * MARGIN)
        frame = read_frames(video, [index], size=side).float() / 127.5 - 1
        for kind in KINDS:
            pairs.append(known_pair(frame, size, kind, random_motion(kind, size, greatest, generator)))
    return pairs


def measure(estimate: Estimate, pairs: Sequence[KnownPair], differentiable: bool = True) -> Result:
    """End-point error of `estimate` on known pairs, averaged over pixels, then over pairs; and its time."""
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    began = time.perf_counter()
    with torch.no_grad():
        for pair in pairs:
            error = (estimate(pair.first, pair.second) - pair.flow).norm(dim=1)[0]
            errors[pair.kind].append(float(error[pair.valid].mean()))
    forward = (time.perf_counter() - began) / len(pairs) * 1e3
    backward = _with_gradient(estimate, pairs[: len(KINDS)]) if differentiable else None
    mean = {kind: sum(values) / len(values) for kind, values in errors.items()}
    return Result({**mean, "all": sum(mean.values()) / len(mean)}, forward, backward)


def farneback() -> Estimate:
    """OpenCV's dense flow with the settings of its own example; MotionPromptError where OpenCV is missing."""
    try:
        import cv2
    except ImportError as error:
        raise MotionPromptError("Farneback needs OpenCV: pip install opencv-python-headless") from error

    def estimate(first: Tensor, second: Tensor) -> Tensor:
        earlier, later = (
            cv2.cvtColor(
                ((frame[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY
            )
            for frame in (first, second)
        )
        still = torch.zeros(*earlier.shape, 2).numpy()  # where it starts
        flow = cv2.calcOpticalFlowFarneback(
            earlier, later, still, pyr_scale=0.5, levels=5, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
        )
        return torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0)

    return estimate


def _with_gradient(estimate: Estimate, pairs: Sequence[KnownPair]) -> float:
    began = time.perf_counter()
    for pair in pairs:
        frames = [frame.clone().requires_grad_() for frame in (pair.first, pair.second)]
        estimate(*frames).abs().mean().backward()
    return (time.perf_counter() - began) / len(pairs) * 1e3


def _square_root(motion: Tensor) -> Tensor:
    """The map that, done twice, is `motion` (a few Newton steps; motions here are near the identity)."""
    root, other = motion.clone(), torch.eye(3, dtype=motion.dtype)
    for _ in range(8):  # Denman-Beavers
        root, other = (root + torch.linalg.inv(other)) / 2, (other + torch.linalg.inv(root)) / 2
    return root


def _sampled(source: Tensor, points: Tensor) -> Tensor:
    """`source` [1, 3, S, S] at centred pixel coordinates [2, h, w], bicubic."""
    side = source.shape[-1]
    grid = (2 * points / side).permute(1, 2, 0).unsqueeze(0).float()
    return F.grid_sample(source, grid, "bicubic", "border", align_corners=False).clamp(-1, 1)
