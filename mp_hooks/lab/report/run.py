"""The report of one run: its clips, what guidance did, its configuration and versions, on one page."""

from __future__ import annotations

from pathlib import Path

from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.metrics.evaluation import evaluate, groups_of_folders
from mp_hooks.lab.metrics.measures import Settings
from mp_hooks.lab.report.evaluation import write_evaluation
from mp_hooks.lab.report.pictures import trace_plots


def write_report(run: Path, against: Path | None, settings: Settings, out: Path, shown: int) -> Path:
    """Write the page of the run in folder `run`, beside the clips of the same names in `against`; returns its path.

    A run's folder holds videos and, there or in motionprompt/, config.yaml, versions.txt and traces (*.jsonl). Raises
    MotionPromptError where it holds no video, or none that `against` has.
    """
    groups = groups_of_folders([run] if against is None else [against, run])
    notes = [folder for folder in (run / "motionprompt", run) if (folder / "config.yaml").is_file()]
    records = [record for path in sorted(run.rglob("*.jsonl")) for record in read_trace(path)]
    guided = any(record["event"] == "iteration" for record in records)
    return write_evaluation(
        evaluate(groups, settings, out),
        groups,
        settings,
        out,
        shown,
        plots=trace_plots(records) if guided else "",
        facts=[fact for folder in notes[:1] for fact in _facts(folder)],
    )


def _facts(folder: Path) -> list[tuple[str, str]]:
    """Lines of versions.txt ("NAME VALUE"), then the options of config.yaml."""
    import yaml

    versions = folder / "versions.txt"
    lines = versions.read_text(encoding="utf-8").splitlines() if versions.is_file() else []
    try:
        options = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        options = [(name, str(value)) for name, value in options.items()]
    except (yaml.YAMLError, AttributeError) as error:
        raise MotionPromptError(f"{folder / 'config.yaml'} is no configuration; move it away") from error
    return [*((line.partition(" ")[0], line.partition(" ")[2]) for line in lines), *options]
