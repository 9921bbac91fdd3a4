"""`motionprompt drift`: how far the tokens move by step, in the best and in the worst clips."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `drift` to the command line."""
    parser = subparsers.add_parser(
        "drift", help="cosine of the tokens to their start by step, best against worst clips"
    )
    parser.add_argument(
        "traces", nargs="+", type=Path, metavar="TRACE", help="trace files, or folders of them, in sampling order"
    )
    parser.add_argument("--by", type=Path, required=True, metavar="CSV", help="a row a clip, in the same order")
    parser.add_argument("--measure", default="subject_consistency", help="its column (default: %(default)s)")
    parser.add_argument("--group", metavar="NAME", help="take the rows of this group (or method) only")
    parser.add_argument("--clips", type=int, default=50, help="clips in each of both groups (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/drift"), help="folder (default: %(default)s)")
    parser.set_defaults(run=_drift)


def _drift(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.files import replacing
    from mp_hooks.lab.report.drift import drift, drift_plot

    if args.clips < 1:
        raise MotionPromptError(f"--clips is {args.clips}; it must be at least 1")
    traces = [file for path in args.traces for file in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    result = drift(traces, args.by, args.measure, args.clips, args.group)
    for name, content in (("drift.csv", result.table().csv()), ("drift.svg", drift_plot(result))):
        with replacing(args.out / name) as path:
            path.write_text(content, encoding="utf-8")
    print(result.table().text())
    print(f"figure: {args.out / 'drift.svg'}")
    return 0
