"""What each way of sampling the mini model gains, against what it computes: the points and their picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.guidance import MotionPromptConfig
from mp_hooks.lab.cost.measuring import operations
from mp_hooks.lab.experiments.methods import BASELINE, GUIDED
from mp_hooks.lab.experiments.paired import MEASURES_FILE, SETTINGS_FILE
from mp_hooks.lab.metrics import Comparison, Kept, compare, gain_kept

GAINS = {"flickering": 1, "warping": -1}  # measure: the sign of what is better
PICTURE_FILE = "tradeoff.svg"


@dataclass(frozen=True)
class Point:
    """An arm of an experiment: operations and peak memory as multiples of plain sampling's, and its paired gains.

    kept: which part of the exact algorithm's gain that is.
    """

    arm: str
    flops: float
    peak: float
    gains: dict[str, Comparison]
    kept: dict[str, Kept]


def points(out: Path) -> list[Point]:
    """The arms of a finished `motionprompt prove --out OUT`; each samples one clip more, whose operations are counted.

    Raises MotionPromptError where there is no such experiment.
    """
    try:
        results = json.loads((out / MEASURES_FILE).read_text(encoding="utf-8"))
        settings = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError) as error:
        raise MotionPromptError(f"no experiment in {out}; run: motionprompt prove --out {out}") from error
    if GUIDED not in results:
        raise MotionPromptError(f"{out} has no arm '{GUIDED}' to compare with; add it with --arms")
    config = MotionPromptConfig(**settings["guidance"] | {"trace": None, "progress": False})
    counted = {arm: operations(arm, config) for arm in results}
    return [
        Point(
            arm,
            *(ours / plain for ours, plain in zip(counted[arm], counted[BASELINE], strict=True)),
            {name: compare(results[BASELINE][name], values[name]) for name in GAINS},
            {name: gain_kept(results[BASELINE][name], results[GUIDED][name], values[name]) for name in GAINS},
        )
        for arm, values in results.items()
        if arm != BASELINE
    ]


def draw(found: Sequence[Point], out: Path) -> Path:
    """Gain against operations, a panel a measure, with 95 % intervals; returns the path of the SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mp_hooks"  # the same picture for the same points
    from matplotlib import pyplot

    titles = {"flickering": "temporal flickering", "warping": "warping error x 1000, less of it"}
    figure, axes = pyplot.subplots(1, len(GAINS), figsize=(4.4 * len(GAINS), 3.2), constrained_layout=True)
    for axis, (name, sign) in zip(axes, GAINS.items(), strict=True):
        axis.axhline(0, color="#bbbbbb", linewidth=0.8)
        axis.plot(1, 0, "o", color="#777777", markersize=4)
        axis.annotate("plain", (1, 0), textcoords="offset points", xytext=(5, 4), fontsize=7)
        for point in found:
            gain = point.gains[name]
            low, high = sorted((sign * gain.low, sign * gain.high))
            colour = "#c2410c" if point.arm == GUIDED else "#2563a8"
            axis.vlines(point.flops, low, high, color=colour, linewidth=1)
            axis.plot(point.flops, sign * gain.mean, "o", color=colour, markersize=4)
            place = (point.flops, sign * gain.mean)
            above = 4 if point.arm == GUIDED else -9  # apart where costs are close
            axis.annotate(point.arm, place, textcoords="offset points", xytext=(5, above), fontsize=7)
        axis.set_title(f"gain in {titles[name]}", fontsize=9)
        axis.set_xlabel("operations, times plain sampling", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(out / PICTURE_FILE) as path:
        figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return out / PICTURE_FILE
