"""What `motionprompt evaluate` shows: the poster's table with the paper's figures, differences, files, the page."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mp_hooks.files import replacing
from mp_hooks.flow import load_flow
from mp_hooks.lab.metrics.evaluation import Evaluation, Groups
from mp_hooks.lab.metrics.measures import VBENCH, Measure, Settings
from mp_hooks.lab.metrics.paper import PAPER, published
from mp_hooks.lab.metrics.temporal import neighbouring_flow
from mp_hooks.lab.report.page import Figure, write_page
from mp_hooks.lab.report.pictures import data_url, side_by_side
from mp_hooks.lab.report.tables import Table
from mp_hooks.video import read_frames, video_info

NONE = "-"


def headline(evaluation: Evaluation) -> Table:
    """The poster's layout: a row of means a group and of differences, measures as columns; then the paper's figures."""
    measures = evaluation.measures
    rows: list[list[str]] = []
    for name, part in _parts(evaluation):
        rows += [[f"{name}, {len(part.clips)} clips"], *_means(part)]
    for model in PAPER if set(VBENCH) <= set(measures) else ():
        baseline, guided = published(model)
        change = {name: guided[name] - baseline[name] for name in baseline}
        rows += [[f"{model}, the paper's figures"], _row("baseline", baseline, measures)]
        rows += [_row("MotionPrompt", guided, measures), _row("difference", change, measures, signed=True)]
    return Table(["", *(measure.title for measure in measures.values())], rows, "Means")


def differences(evaluation: Evaluation) -> Table:
    """A row a measure: its mean difference to the baseline with interval, clips up and down, the sign test."""
    rows: list[list[str]] = []
    for name, part in _parts(evaluation):
        for group in list(part.values)[1:]:
            rows.append([f"{name}: {group} - {part.baseline}"])
            for measure, c in part.comparisons(group).items():
                shown = evaluation.measures[measure]
                better = {None: "", True: "more", False: "less"}[shown.higher_is_better]
                if not c.pairs:  # the clips are too short for it, say
                    rows.append([shown.title, better, *[NONE] * 6])
                    continue
                interval = f"[{c.low:+.{shown.digits}f}, {c.high:+.{shown.digits}f}]"
                counts = [str(c.up), str(c.down), str(c.pairs), f"{c.p:.2g}"]
                rows.append([shown.title, better, f"{c.mean:+.{shown.digits}f}", interval, *counts])
    header = ["", "better", "difference", "95 % interval", "up", "down", "pairs", "sign test p"]
    return Table(header, rows, "Differences, pair by pair")


def notes(evaluation: Evaluation, settings: Settings) -> list[str]:
    """What a reader of the tables must know: the flow they used, what is missing and what would bring it."""
    return [f"flow of every measure: {settings.flow} (VBench takes RAFT for the dynamic degree)", *evaluation.remarks()]


def write_tables(evaluation: Evaluation, remarks: Sequence[str], out: Path) -> str:
    """Write measures.csv, a row a clip, and table.txt, table.csv and table.tex into `out`; returns the text."""
    with replacing(out / "measures.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "clip", *evaluation.measures])
        for group, values in evaluation.values.items():
            for clip, *row in zip(evaluation.clips, *(values[name] for name in evaluation.measures), strict=True):
                writer.writerow([group, clip, *("" if math.isnan(value) else value for value in row)])
    table = headline(evaluation)
    text = "\n\n".join([table.text(), differences(evaluation).text(), "\n".join(remarks)]) + "\n"
    for name, content in (("table.txt", text), ("table.csv", table.csv()), ("table.tex", table.latex())):
        with replacing(out / name) as path:
            path.write_text(content, encoding="utf-8")
    return text


def write_evaluation(
    evaluation: Evaluation,
    groups: Groups,
    settings: Settings,
    out: Path,
    shown: int,
    plots: str = "",
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page with the tables and `shown` of the clips side by side into `out`; returns its path."""
    compared = [differences(evaluation)] if len(evaluation.values) > 1 else []
    remarks = [tuple(line.split(": ", 1)) for line in notes(evaluation, settings)]
    write_page(
        out / "index.html",
        title=" against ".join(reversed(evaluation.values)),
        lead=f"{len(evaluation.clips)} clips a group; differences are means over pairs, intervals are bootstrapped.",
        tables=[headline(evaluation), *compared],
        figures=list(_figures(evaluation, groups, settings, shown)),
        columns=list(groups),
        plots=plots,
        facts=[*facts, *remarks],
    )
    return out / "index.html"


def _parts(evaluation: Evaluation) -> list[tuple[str, Evaluation]]:
    return [*evaluation.parts().items(), ("all", evaluation)]


def _means(part: Evaluation) -> Iterator[list[str]]:
    for group in part.values:
        yield _row(group, {name: part.mean(group, name) for name in part.measures}, part.measures)
        if group != part.baseline:
            change = {name: c.mean for name, c in part.comparisons(group).items()}
            yield _row("difference", change, part.measures, signed=True)


def _row(name: str, values: Mapping[str, float], measures: Mapping[str, Measure], signed: bool = False) -> list[str]:
    sign = "+" if signed else ""
    known = {key: value for key, value in values.items() if not math.isnan(value)}
    return [name, *(f"{known[key]:{sign}.{m.digits}f}" if key in known else NONE for key, m in measures.items())]


def _figures(evaluation: Evaluation, groups: Groups, settings: Settings, shown: int) -> Iterator[Figure]:
    estimator = load_flow(settings.flow, settings.flow_weights)
    for clip in _spread(evaluation.clips, shown):
        paths = [clips[clip] for clips in groups.values()]
        parts = [read_frames(path) for path in paths]
        parts = [part[: min(map(len, parts))] for part in parts]
        frames = side_by_side(parts, [neighbouring_flow(part, estimator) for part in parts])
        yield Figure(clip, data_url(frames, video_info(paths[0]).fps))


def _spread(clips: Sequence[str], number: int) -> list[str]:
    """`number` of the clips, evenly spread, so that every folder is seen."""
    number = min(number, len(clips))
    return [clips[i * len(clips) // number] for i in range(number)]
