"""What `motionprompt compare` shows: a table in the terminal, files with figures, and the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from mp_hooks.config import MotionPromptConfig
from mp_hooks.files import replacing
from mp_hooks.flow import load_flow
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.experiments.methods import BASELINE, GUIDED, METHODS
from mp_hooks.lab.experiments.paired import MEASURES, Experiment, comparisons, load_clips, trace_file
from mp_hooks.lab.metrics import Comparison, neighbouring_flow
from mp_hooks.lab.mini.clips import FRAME_RATE
from mp_hooks.lab.report.page import Figure, write_page
from mp_hooks.lab.report.pictures import data_url, side_by_side, trace_plots
from mp_hooks.lab.report.tables import Table
from mp_hooks.video import write_video

RESULTS_FILE, TABLE_FILE, PAGE_FILE = "results.json", "measures.csv", "index.html"


def table_text(experiment: Experiment, results: dict[str, dict]) -> str:
    """Means of every method, then each method's paired difference to the baseline with its interval and test."""

    def differences(row: dict[str, Comparison]) -> list[str]:
        return [f"  {MEASURES[name].title:40} {comparison}" for name, comparison in row.items()]

    lines = [f"{experiment.prompts} prompts x {experiment.seeds} seeds, means; seed {experiment.seed}"]
    width = max(len(method) for method in results) + 2
    columns = {name: max(10, len(name) + 2) for name in MEASURES}
    lines.append(" " * width + "".join(f"{name:>{size}}" for name, size in columns.items()))
    for method, values in results.items():
        cells = [f"{_mean(values[name]):>{size}.{MEASURES[name].digits}f}" for name, size in columns.items()]
        lines.append(f"{method:{width}}" + "".join(cells))
    for method, row in comparisons(results).items():
        lines.append(
            f"\n{method} ({METHODS[method].title}) against {BASELINE}: mean difference [95 % interval], clips up, down"
        )
        lines += differences(row)
    for method in results:
        if GUIDED in results and method not in (BASELINE, GUIDED):
            row = comparisons({name: results[name] for name in (method, GUIDED)}, against=method)[GUIDED]
            lines.append(f"\n{GUIDED} against {method}")
            lines += differences(row)
    return "\n".join(lines)


def write_results(experiment: Experiment, results: dict[str, dict], out: Path, shown: int) -> Path:
    """Write results.json, measures.csv, side-by-side clips and the page into `out`; returns the page's path."""
    compared = comparisons(results)
    with replacing(out / RESULTS_FILE) as path:
        summary = {
            "means": {method: {name: _mean(values[name]) for name in MEASURES} for method, values in results.items()},
            "against baseline": {method: {n: asdict(c) for n, c in row.items()} for method, row in compared.items()},
        }
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    clips = experiment.clips()
    with replacing(out / TABLE_FILE) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "prompt", "seed", *MEASURES])
        for method, values in results.items():
            for (prompt, _, seed), *row in zip(clips, *(values[name] for name in MEASURES), strict=True):
                writer.writerow([method, prompt, seed, *row])
    columns = [BASELINE, GUIDED] if GUIDED in results else list(results)[:2]
    guided = [trace_file(out, GUIDED, chunk) for chunk in range(experiment.chunks())] if GUIDED in results else []
    records = [record for path in guided for record in read_trace(path)]
    write_page(
        out / PAGE_FILE,
        title="MotionPrompt on the mini model",
        lead=f"{len(clips)} pairs of clips: the same prompts and seeds with and without guidance. Differences are "
        "means over pairs with bootstrapped 95 % intervals.",
        tables=[_table(results, compared)],
        figures=_figures(experiment, out, columns, min(shown, len(clips))),
        columns=columns,
        plots=trace_plots(records) if records else "",
        facts=_facts(experiment),
    )
    return out / PAGE_FILE


def _table(results: dict[str, dict], compared: dict[str, dict]) -> Table:
    rows = []
    for name, measure in MEASURES.items():
        better = {None: "", True: " (more is better)", False: " (less is better)"}[measure.higher_is_better]
        cells = [f"{_mean(results[BASELINE][name]):.{measure.digits}f}"]
        for method, row in compared.items():
            c = row[name]
            difference = f"{c.mean:+.{measure.digits}f} [{c.low:+.{measure.digits}f}, {c.high:+.{measure.digits}f}]"
            cells.append(f"{_mean(results[method][name]):.{measure.digits}f}  ({difference})")
        rows.append([measure.title + better, *cells])
    return Table(["", BASELINE, *(f"{method}: {METHODS[method].title}" for method in compared)], rows)


def _figures(experiment: Experiment, out: Path, columns: Sequence[str], shown: int) -> list[Figure]:
    """Side-by-side pictures of the first clips, also written as mp4 and gif."""
    estimator = load_flow(experiment.flow, experiment.flow_weights)
    figures = []
    for number, (prompt, _, seed) in enumerate(experiment.clips()[:shown]):
        parts = [load_clips(out, method, number // experiment.batch)[number % experiment.batch] for method in columns]
        flows = [neighbouring_flow(part, estimator) for part in parts]
        frames = side_by_side(parts, flows)
        for suffix in (".mp4", ".gif"):
            enlarged = frames.repeat_interleave(2, 2).repeat_interleave(2, 3)
            write_video(out / "side-by-side" / f"{number:02d}-seed{seed}{suffix}", enlarged, FRAME_RATE)
        figures.append(Figure(f"{prompt} (seed {seed})", data_url(frames, FRAME_RATE)))
    return figures


def _facts(experiment: Experiment) -> list[tuple[str, str]]:
    default = MotionPromptConfig()
    changed = {
        field.name: getattr(experiment.guidance, field.name)
        for field in fields(MotionPromptConfig)
        if field.name != "discriminator" and getattr(experiment.guidance, field.name) != getattr(default, field.name)
    }
    return [
        ("prompts, seeds, seed", f"{experiment.prompts}, {experiment.seeds}, {experiment.seed}"),
        ("flow of the measures", experiment.flow),
        ("discriminator", Path(experiment.guidance.discriminator).name),
        ("guidance", ", ".join(f"{k} {v}" for k, v in changed.items()) or "defaults"),
    ]


def _mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.double).nanmean().item()
