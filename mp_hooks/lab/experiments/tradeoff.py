"""What each way of sampling the mini model gains, against what it computes: the points and their picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.lab import mini
from mp_hooks.lab.cost.measuring import operations
from mp_hooks.lab.experiments.methods import BASELINE, GUIDED
from mp_hooks.lab.experiments.paired import MEASURES_FILE, SETTINGS_FILE
from mp_hooks.lab.metrics import Comparison, GainShare, compare, gain_share
from mp_hooks.lab.report.plots import as_svg, new_figure

GAINS = {"flickering": 1, "warping": -1}  # measure: the sign of what is better
PICTURE_FILE = "tradeoff.svg"


@dataclass(frozen=True)
class Point:
    """A method of an experiment: operations and peak memory as multiples of plain sampling's, and its paired gains.

    kept: which part of the exact algorithm's gain that is.
    """

    method: str
    flops: float
    peak: float
    gains: dict[str, Comparison]
    kept: dict[str, GainShare]


def points(out: Path) -> list[Point]:
    """The methods of a finished `motionprompt compare --out OUT`; each samples one clip more, and that is counted.

    Raises MotionPromptError where there is no such experiment.
    """
    try:
        results = json.loads((out / MEASURES_FILE).read_text(encoding="utf-8"))
        settings = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError) as error:
        raise MotionPromptError(f"no experiment in {out}; run: motionprompt compare --out {out}") from error
    if GUIDED not in results:
        raise MotionPromptError(f"{out} has no method '{GUIDED}' to compare with; add it with --methods")
    given = settings["guidance"] | {"trace": None, "progress": False}
    discriminator = Path(given["discriminator"])
    if discriminator.is_absolute() and not discriminator.is_dir():  # moved since; the packaged one computes as much
        given["discriminator"] = None
    config = mini.guidance(MotionPromptConfig(**given))
    counted = {method: operations(method, config) for method in results}
    return [
        Point(
            method,
            *(ours / plain for ours, plain in zip(counted[method], counted[BASELINE], strict=True)),
            {name: compare(results[BASELINE][name], values[name]) for name in GAINS},
            {name: gain_share(results[BASELINE][name], results[GUIDED][name], values[name]) for name in GAINS},
        )
        for method, values in results.items()
        if method != BASELINE
    ]


def draw(found: Sequence[Point], out: Path) -> Path:
    """Gain against operations, a panel a measure, with 95 % intervals; returns the path of the SVG."""
    titles = {"flickering": "temporal flickering", "warping": "warping error x 1000, less of it"}
    figure = new_figure(4.4 * len(GAINS), 3.2)
    for axis, (name, sign) in zip(figure.subplots(1, len(GAINS)), GAINS.items(), strict=True):
        axis.axhline(0, color="#bbbbbb", linewidth=0.8)
        axis.plot(1, 0, "o", color="#777777", markersize=4)
        axis.annotate("plain", (1, 0), textcoords="offset points", xytext=(5, 4), fontsize=7)
        for point in found:
            gain = point.gains[name]
            low, high = sorted((sign * gain.low, sign * gain.high))
            colour = "#c2410c" if point.method == GUIDED else "#2563a8"
            axis.vlines(point.flops, low, high, color=colour, linewidth=1)
            axis.plot(point.flops, sign * gain.mean, "o", color=colour, markersize=4)
            position = (point.flops, sign * gain.mean)
            above = 4 if point.method == GUIDED else -9  # apart where costs are close
            axis.annotate(point.method, position, textcoords="offset points", xytext=(5, above), fontsize=7)
        axis.set_title(f"gain in {titles[name]}", fontsize=9)
        axis.set_xlabel("operations, times plain sampling", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(out / PICTURE_FILE) as path:
        path.write_text(as_svg(figure), encoding="utf-8")
    return out / PICTURE_FILE
