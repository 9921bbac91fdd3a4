"""Figures drawn with matplotlib: the same picture for the same data, whatever backend is set."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. Raises MotionPromptError where there is no matplotlib."""
    try:
        from matplotlib import figure
    except ImportError as error:
        raise MotionPromptError("drawing needs matplotlib: pip install 'mp_hooks[metrics]'") from error
    return figure.Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element, for a page or a file of its own."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mp_hooks"}):  # ids are random without it
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def as_pixels(figure: Figure, dpi: int = 150) -> Tensor:
    """The figure as an image, uint8 [3, h, w]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    return (
        torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
        .view(height, width, 4)[..., :3]
        .permute(2, 0, 1)
    )
