"""How far estimators are from flow that is known because we moved the frames ourselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.flow.base import FlowEstimator
from mp_hooks.video import find_videos, read_frames, video_info

KINDS = ("translation", "rotation", "zoom")
MAX_DISPLACEMENT = 8 / 128  # of the frame's side; reached in the corners by rotation and zoom
MARGIN = 1 / 16  # of the frame's side: the scene is larger by this on each side, and errors this close do not count


@dataclass(frozen=True)
class KnownPair:
    """Frames [1, 3, s, s] in [-1, 1], the flow between them [1, 2, s, s], and where it can be judged [s, s]."""

    kind: str
    first: Tensor
    second: Tensor
    flow: Tensor
    valid: Tensor

    def error(self, flow: Tensor) -> float:
        """Mean end-point error in pixels, over pixels off the border that stay in the frame."""
        return float((flow - self.flow).norm(dim=1)[0][self.valid].mean())


def known_pairs(folder: str | Path, count: int, size: int = 128, seed: int = 0) -> list[KnownPair]:
    """`count` random warps of each kind, of random frames spread evenly over the videos below `folder`."""
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> float:
        return torch.rand((), generator=generator).item()

    videos = find_videos(folder)
    pairs = []
    for index in range(count):
        video = videos[index * len(videos) // count % len(videos)]
        frame = int(uniform() * video_info(video).frames)
        scene = read_frames(video, [frame], size=round(size * (1 + 2 * MARGIN))).float()
        pairs += [known_pair(scene, size, kind, MAX_DISPLACEMENT * size * uniform(), uniform()) for kind in KINDS]
    return pairs


def known_pair(scene: Tensor, size: int, kind: str, displacement: float, direction: float) -> KnownPair:
    """Two views [size, size] of `scene` [1, 3, s, s] (0..255), the largest displacement given in pixels.

    `direction` in 0..1: the angle of a translation in turns, else the sign. Each view is half the warp away from
    the scene, so that both are equally blurred by (bicubic) sampling, and both are rounded to 8 bits.
    """
    turn = complex(math.cos(2 * math.pi * direction), math.sin(2 * math.pi * direction))
    relative = math.copysign(displacement / (size / math.sqrt(2)), direction - 0.5)
    # points of the plane as complex numbers about the centre: p moves to factor * p + shift
    factor, shift = {
        "translation": (1, displacement * turn),
        "rotation": (complex(math.cos(relative), math.sin(relative)), 0),
        "zoom": (1 + relative, 0),
    }[kind]
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    start = torch.complex(*torch.meshgrid(axis, axis, indexing="xy"))
    end = factor * start + shift
    half = complex(factor) ** 0.5
    views = [_view(scene, place) for place in (half * start + shift / 2, (start - shift / 2) / half)]
    flow = torch.view_as_real(end - start).permute(2, 0, 1)[None].float()
    inner = (0.5 - MARGIN) * size
    valid = (_reach(start) < inner) & (_reach(end) < size / 2)
    valid &= _reach(half * start + shift / 2) <= (scene.shape[-1] - 1) / 2
    return KnownPair(kind, *views, flow, valid)


def _reach(place: Tensor) -> Tensor:
    """Distance from the centre along the farther axis."""
    return torch.maximum(place.real.abs(), place.imag.abs())


def _view(scene: Tensor, place: Tensor) -> Tensor:
    grid = torch.view_as_real(2 * place / scene.shape[-1])[None].float()
    sampled = F.grid_sample(scene, grid, "bicubic", "border", align_corners=False)
    return sampled.round().clamp(0, 255) / 127.5 - 1


def farneback() -> Callable[[Tensor, Tensor], Tensor] | None:
    """OpenCV's Farneback with the parameters of its documentation, frames to flow as ours; None without OpenCV."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)

    def grey(frame: Tensor) -> object:
        return cv2.cvtColor(((frame[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)

    def estimate(first: Tensor, second: Tensor) -> Tensor:
        flow = cv2.calcOpticalFlowFarneback(grey(first), grey(second), None, 0.5, 3, 15, 3, 5, 1.2, 0)
        return torch.from_numpy(flow).permute(2, 0, 1)[None]

    return estimate


def errors(estimate: Callable[[Tensor, Tensor], Tensor], pairs: Iterable[KnownPair]) -> dict[str, float]:
    """Mean end-point error in pixels by kind of warp, and over all of them."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with torch.no_grad():
        for pair in pairs:
            found[pair.kind].append(pair.error(estimate(pair.first, pair.second)))
    every = [error for kind in KINDS for error in found[kind]]
    return {kind: sum(values) / len(values) for kind, values in {**found, "all": every}.items()}


def forward_backward_ms(estimator: FlowEstimator, pair: KnownPair, repeats: int = 5) -> float:
    """Milliseconds of a forward and a backward to both frames of one pair, the fastest of `repeats`."""

    def once() -> None:
        frames = [frame.clone().requires_grad_() for frame in (pair.first, pair.second)]
        torch.autograd.grad(estimator(*frames).square().mean(), frames)

    return _fastest_ms(once, repeats)


def forward_ms(estimate: Callable[[Tensor, Tensor], Tensor], pair: KnownPair, repeats: int = 5) -> float:
    """Milliseconds of a forward alone on one pair, the fastest of `repeats`."""
    with torch.no_grad():
        return _fastest_ms(lambda: estimate(pair.first, pair.second), repeats)


def _fastest_ms(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)
