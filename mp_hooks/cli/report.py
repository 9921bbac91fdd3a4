"""`motionprompt report`: one page for a run."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `report` to the command line."""
    parser = subparsers.add_parser("report", help="a page for a run: clips, flow in colour, traces, configuration")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run of a host or of generate")
    parser.add_argument("--against", type=Path, metavar="DIR", help="clips of the same names made without guidance")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the page (default: RUN/report)")
    parser.add_argument("--flow", default="pyramid", metavar="NAME", help="flow estimator (default: %(default)s)")
    parser.add_argument("--flow-weights", metavar="FILE", help="its weights")
    parser.add_argument("--shown", type=int, default=6, help="clips on the page (default: %(default)s)")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab.metrics import Settings
    from mp_hooks.lab.report.run import write_report

    if args.shown < 0:
        raise MotionPromptError(f"--shown is {args.shown}; it must be at least 0")
    settings = Settings(args.flow, args.flow_weights)
    print(write_report(args.folder, args.against, settings, args.out or args.folder / "report", args.shown))
    return 0
