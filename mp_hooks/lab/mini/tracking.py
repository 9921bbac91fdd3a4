"""The moving object of a clip, found by classical means: its colour, its shape, and the path it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.lab.mini.clips import COLOURS, DIRECTIONS, SHAPES, SIDE, shape_distance

SATURATION = 0.22  # backgrounds are nearly grey, objects are not
SMALLEST_AREA = 40.0  # pixels; below it the frame counts as holding no object
LARGEST_RADIUS = 22.0  # pixels; what lies farther from the centroid is not the object
TURN = math.pi / 12  # between the templates tried of a shape
SMALLEST_MOVE = 3.0  # pixels from the first to the last frame


@dataclass(frozen=True)
class TrackedObject:
    """The object found in one clip; an attribute that cannot be told is None.

    path is [t, 2], the object's centroid (x, y) in pixels, NaN where the frame holds no object.
    """

    colour: str | None
    shape: str | None
    direction: str | None
    path: Tensor

    @property
    def attributes(self) -> tuple[str | None, str | None, str | None]:
        return self.colour, self.shape, self.direction


def at_tracking_size(video: Tensor) -> Tensor:
    """A clip [3, t, h, w] at the side that everything here is made for, `SIDE` pixels."""
    return F.interpolate(video[None], (video.shape[1], SIDE, SIDE), mode="area")[0]


def track_object(video: Tensor) -> TrackedObject:
    """Find the object of one clip [3, t, h, w] in [-1, 1]."""
    pixels = (video.detach().float().clamp(-1, 1) + 1) / 2
    mask = saturation_mask(video)
    area, centre = _moments(mask)
    # Stray coloured pixels would pull the centroid: keep what lies near it and look once more.
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in mask.shape[-2:]), indexing="ij")
    offset = torch.stack([x, y]) - centre[:, :, None, None]
    mask = mask * (offset.square().sum(1) < LARGEST_RADIUS**2)
    area, centre = _moments(mask)
    present = area > SMALLEST_AREA
    path = torch.where(present[:, None], centre, torch.full_like(centre, float("nan")))
    if int(present.sum()) < 3:
        return TrackedObject(None, None, None, path)
    colour = _colour(pixels[:, present], mask[present])
    return TrackedObject(colour, _shape(mask[present], centre[present], area[present]), _direction(path), path)


def saturation_mask(video: Tensor) -> Tensor:
    """How much each pixel is of the object, in [0, 1]: [t, h, w] of a clip [3, t, h, w] in [-1, 1]."""
    pixels = (video.detach().float().clamp(-1, 1) + 1) / 2
    return ((pixels.amax(0) - pixels.amin(0) - SATURATION) / 0.15).clamp(0, 1)


def jerk(path: Tensor) -> float:
    """Mean length of the third difference of a path [t, 2], pixels per frame cubed; gaps are bridged by straight lines.

    NaN where fewer than two frames hold the object. The steady motion of a drawn clip has jerk 0.
    """
    present = ~path[:, 0].isnan()
    known = present.nonzero()[:, 0]
    if len(known) < 2:
        return float("nan")
    frames = torch.arange(len(path))
    right = torch.searchsorted(known, frames).clamp(1, len(known) - 1)
    before, after = known[right - 1], known[right]
    share = ((frames - before) / (after - before))[:, None]
    bridged = path[before] + share * (path[after] - path[before])
    return bridged.diff(n=3, dim=0).norm(dim=-1).mean().item()


def velocity(path: Tensor) -> Tensor:
    """Slope (x, y) of the least-squares line through a path [t, 2], pixels per frame; NaN below two frames."""
    present = ~path[:, 0].isnan()
    if present.sum() < 2:
        return path.new_full((2,), float("nan"))
    time = torch.arange(len(path), dtype=torch.float32)[present]
    time = time - time.mean()
    known = path[present]
    return (time[:, None] * (known - known.mean(0))).sum(0) / time.square().sum()


def _moments(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Area [t] and centroid [t, 2] (x, y) of each frame's mask [t, h, w]."""
    x, y = (torch.arange(n, dtype=torch.float32) for n in (mask.shape[-1], mask.shape[-2]))
    area = mask.sum((-2, -1))
    sums = torch.stack([(mask.sum(-2) * x).sum(-1), (mask.sum(-1) * y).sum(-1)], dim=-1)
    return area, sums / area.clamp(min=1e-6)[:, None]


def _colour(pixels: Tensor, mask: Tensor) -> str:
    """The colour whose chroma direction is nearest to that of the mean object pixel. pixels [3, t, h, w]."""
    mean = (pixels * mask).sum((1, 2, 3)) / mask.sum()
    table = torch.tensor(list(COLOURS.values()))
    chroma, wanted = mean - mean.mean(), table - table.mean(1, keepdim=True)
    return list(COLOURS)[int(torch.cosine_similarity(chroma[None], wanted).argmax())]


def _shape(mask: Tensor, centre: Tensor, area: Tensor) -> str:
    """The shape whose template of the same area, laid and turned on the centroid, overlaps best, over all frames."""
    h, w = mask.shape[-2:]
    dx = torch.arange(w, dtype=torch.float32)[None, None, :] - centre[:, 0, None, None]
    dy = torch.arange(h, dtype=torch.float32)[None, :, None] - centre[:, 1, None, None]
    radius = (area / math.pi).sqrt()[:, None, None]
    overlaps = []
    for index in range(len(SHAPES)):
        turned = []
        for angle in torch.arange(0, 2 * math.pi / (3 if SHAPES[index] == "triangle" else 4), TURN).tolist():
            x, y = math.cos(angle) * dx + math.sin(angle) * dy, math.cos(angle) * dy - math.sin(angle) * dx
            template = (0.5 - shape_distance(x, y, torch.tensor(index), radius)).clamp(0, 1)
            both = torch.minimum(mask, template).sum((-2, -1))
            turned.append(both / torch.maximum(mask, template).sum((-2, -1)))
        overlaps.append(torch.stack(turned).amax(0).mean())
    return SHAPES[int(torch.stack(overlaps).argmax())]


def _direction(path: Tensor) -> str | None:
    """The direction the path goes in; None where the object hardly moves."""
    slope = velocity(path)
    if slope.norm() * (len(path) - 1) < SMALLEST_MOVE:
        return None
    steps = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)
    return list(DIRECTIONS)[int((steps @ slope).argmax())]
