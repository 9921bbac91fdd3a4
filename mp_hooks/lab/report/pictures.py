"""Pictures of a comparison: clips side by side with their flow, and plots of traces."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import draw_flow
from mp_hooks.lab.metrics.temporal import NeighbouringFlow
from mp_hooks.lab.report.plots import as_pixels, as_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 2  # pixels between the parts, white


def side_by_side(clips: Sequence[Tensor], flows: Sequence[NeighbouringFlow]) -> Tensor:
    """Clips, uint8 [t, 3, h, w] each, in a row and their flow below: uint8 [t, 3, h', w'].

    The flow is that to the next frame (the last one's is shown twice), in one colour scale for all.
    """
    longest = max(flow.forward.norm(dim=1).max().item() for flow in flows)
    columns = []
    for clip, flow in zip(clips, flows, strict=True):
        drawn = draw_flow(torch.cat([flow.forward, flow.forward[-1:]]), max(longest, 1e-3))
        columns += [F.pad(torch.cat([_padded_below(clip), drawn.to(clip)], dim=2), (0, GAP), value=255)]
    return torch.cat(columns, dim=3)[..., :-GAP]


def data_url(frames: Tensor, fps: float) -> str:
    """uint8 frames [t, 3, h, w] as a looping lossless WebP for a page's img tag."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames.cpu()]
    stream = io.BytesIO()
    first.save(stream, "webp", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, lossless=True)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def trace_plots(records: Sequence[dict]) -> str:
    """Loss parts, phi and the cosine of the tokens to their start over the updates, mean and 10-90 % of the samples.

    `records` are those of one or more trace files; returns an SVG element. The x axis counts a sampling's updates.
    """
    return as_svg(_trace_figure(records))


def trace_image(records: Sequence[dict]) -> Tensor:
    """The same as pixels, uint8 [3, h, w]."""
    return as_pixels(_trace_figure(records))


def _trace_figure(records: Sequence[dict]) -> Figure:
    updates: dict[tuple[int, int], list[dict]] = {}
    for record in records:
        if record["event"] == "iteration":
            updates.setdefault((record["step"], record["iteration"]), []).append(record)
    order = sorted(updates)
    panels = {
        "log(1 - phi)": "disc",
        "total variation": "tv",
        "photometric error": "photo",
        "phi": "phi",
        "cosine of T to T0": "cosine",
    }
    if not updates:
        raise MotionPromptError("the trace holds no update of the tokens; was no step guided?")
    figure = new_figure(3.1 * len(panels), 2.4)
    for axis, (title, key) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        values = [torch.tensor([v for record in updates[at] for v in record[key]]) for at in order]
        middle = [value.mean().item() for value in values]
        low, high = ([value.quantile(q).item() for value in values] for q in (0.1, 0.9))
        positions = range(1, len(order) + 1)
        axis.fill_between(positions, low, high, color="#2563a8", alpha=0.18, linewidth=0)
        axis.plot(positions, middle, color="#2563a8", marker=".", markersize=4)
        for position, (step, iteration) in zip(positions, order, strict=True):
            if iteration == 0:
                axis.axvline(position - 0.5, color="#bbbbbb", linewidth=0.6, zorder=0)
                axis.annotate(
                    str(step), (position, 1.01), xycoords=("data", "axes fraction"), fontsize=6, color="#777777"
                )
        axis.set_title(title, fontsize=9, pad=12)
        axis.set_xlabel("update (small: step)", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _padded_below(clip: Tensor) -> Tensor:
    return F.pad(clip, (0, 0, 0, GAP), value=255)
