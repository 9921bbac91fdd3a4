"""The poster's figure of token variation: cosine of T to T0 by step, the best clips against the worst."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.report.plots import as_svg, new_figure
from mp_hooks.lab.report.tables import Table


@dataclass(frozen=True)
class Drift:
    """Cosine of T to T0 after each guided step, [steps, clips], of the clips highest and lowest in `measure`."""

    measure: str
    steps: Sequence[int]
    highest: Tensor
    lowest: Tensor

    def table(self) -> Table:
        """Mean and standard error of both groups, a row a step."""
        rows = [
            [
                str(step),
                *_cell(self.highest[i]),
                *_cell(self.lowest[i]),
                f"{self.highest[i].mean() - self.lowest[i].mean():+.4f}",
            ]
            for i, step in enumerate(self.steps)
        ]
        title = f"cosine of T to T0, {self.highest.shape[1]} clips each, by {self.measure}"
        return Table(["step", "highest", "error", "lowest", "error", "difference"], rows, title)


def read_cosines(traces: Sequence[Path]) -> tuple[list[int], Tensor, list[str]]:
    """Guided steps, cosine after each [steps, clips], and the prompts; clips in the order they were sampled.

    Raises MotionPromptError when a trace holds no iteration or the runs have different steps.
    """
    steps: list[int] = []
    columns, prompts = [], []
    for path in traces:
        runs: dict[int, dict[int, list[float]]] = {}
        for record in read_trace(path):
            if record["event"] == "run":
                runs[record["run"]] = {}
                prompts += record["prompts"]
            elif record["event"] == "iteration":
                runs[record["run"]][record["step"]] = record["cosine"]  # the last iteration of a step stands
        for cosines in runs.values():
            if not cosines or (steps and steps != sorted(cosines)):
                raise MotionPromptError(f"{path} has other guided steps than the traces before, or none; leave it out")
            steps = sorted(cosines)
            columns.append(torch.tensor([cosines[step] for step in steps]))
    if not columns:
        raise MotionPromptError("no trace holds an iteration; give the trace.jsonl files of guided runs")
    return steps, torch.cat(columns, dim=1), prompts


def read_measure(path: Path, measure: str, group: str | None = None) -> tuple[Tensor, list[str] | None]:
    """A column of a CSV with a header, in the order of its rows, and its prompts if it has a column `prompt`.

    `group` keeps the rows whose first column says so. Raises MotionPromptError for an unreadable file or column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MotionPromptError(f"cannot read {path}; give a CSV file with a header") from error
    if not rows:
        raise MotionPromptError(f"{path} has no rows; give a CSV file with a header and a row a clip")
    header = list(rows[0])
    if measure not in header:
        raise unknown_name("measure", measure, header)
    if group is not None:
        groups = {row[header[0]] for row in rows}
        if group not in groups:
            raise unknown_name("group", group, list(groups))
        rows = [row for row in rows if row[header[0]] == group]
    try:
        values = torch.tensor([float(row[measure] or "nan") for row in rows], dtype=torch.double)
    except ValueError as error:
        raise MotionPromptError(f"{path}: a value of {measure} is not a number; put it right") from error
    return values, [row["prompt"] for row in rows] if "prompt" in header else None


def drift(traces: Sequence[Path], by: Path, measure: str, clips: int, group: str | None = None) -> Drift:
    """Compare the token paths of the `clips` clips highest in `measure` with those of the `clips` lowest.

    The k-th row of the CSV is the k-th clip of the traces. Raises MotionPromptError when their numbers or prompts
    differ, or when the measure does not tell two groups of clips apart.
    """
    steps, cosines, prompts = read_cosines(traces)
    values, named = read_measure(by, measure, group)
    if len(values) != cosines.shape[1]:
        raise MotionPromptError(
            f"{by} has {len(values)} rows and the traces have {cosines.shape[1]} clips; they must be of the same clips"
            " in the same order (--group picks rows)"
        )
    if named is not None and named != prompts:
        raise MotionPromptError(f"{by} and the traces have other prompts; they must be of the same clips in one order")
    known = (~values.isnan()).nonzero()[:, 0]
    order = known[values[known].argsort(stable=True)]
    clips = min(clips, len(order) // 2)
    if clips < 1:
        raise MotionPromptError(f"{by} has {len(order)} values of {measure}; two groups need at least 2")
    if values[order[clips - 1]] == values[order[-clips]]:
        raise MotionPromptError(f"{measure} is the same for clips of both groups; take another measure or fewer clips")
    return Drift(measure, steps, cosines[:, order[-clips:]], cosines[:, order[:clips]])


def drift_plot(result: Drift) -> str:
    """Both mean curves with their standard errors, as an SVG element."""
    figure = new_figure(5, 3.2)
    axis = figure.subplots()
    for label, cosines, colour, style in (
        ("highest", result.highest, "#2563a8", "-"),
        ("lowest", result.lowest, "#c2571a", "--"),
    ):
        middle, error = cosines.mean(1), _error(cosines)
        axis.fill_between(result.steps, middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
        axis.plot(result.steps, middle, color=colour, linestyle=style, marker=".", label=f"{label} {cosines.shape[1]}")
    axis.set_xlabel("sampling step")
    axis.set_ylabel("cosine of T to T0")
    axis.legend(title=result.measure, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)


def _error(cosines: Tensor) -> Tensor:
    """Standard error of the mean over clips, 0 for one clip."""
    return cosines.std(dim=-1, correction=min(1, cosines.shape[-1] - 1)) / cosines.shape[-1] ** 0.5


def _cell(cosines: Tensor) -> list[str]:
    return [f"{cosines.mean():.4f}", f"{_error(cosines):.4f}"]
