"""`motionprompt evaluate`: folders of videos measured and compared, pair by pair."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate", help="measure folders of videos and compare them: text, CSV, LaTeX, a page with the clips"
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the baseline first; pairs share a name")
    parser.add_argument(
        "--suffixes",
        nargs="+",
        metavar="SUFFIX",
        help="compare clips of the same folder instead, by the end of their name: --suffixes _baseline _ours",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="a second run goes on in it")
    parser.add_argument("--flow", default="pyramid", metavar="NAME", help="flow estimator (default: %(default)s)")
    parser.add_argument("--flow-weights", metavar="FILE", help="its weights")
    parser.add_argument("--dino", metavar="FILE", help="DINO ViT-B/16's weights for subject consistency, or 'hub'")
    parser.add_argument("--clip", metavar="FILE", help="CLIP ViT-B/32's weights for background consistency, or 'hub'")
    parser.add_argument(
        "--vbench-python", metavar="PATH", help="take the six VBench dimensions from VBench itself, run by this Python"
    )
    parser.add_argument("--shown", type=int, default=6, help="clips on the page (default: %(default)s)")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab.metrics import Settings, evaluate, groups_of_folders, groups_of_suffixes
    from mp_hooks.lab.report.evaluation import notes, write_evaluation, write_tables

    if args.shown < 0:
        raise MotionPromptError(f"--shown is {args.shown}; it must be at least 0")
    groups = groups_of_suffixes(args.folders, args.suffixes) if args.suffixes else groups_of_folders(args.folders)
    settings = Settings(args.flow, args.flow_weights, args.dino, args.clip)
    evaluation = evaluate(groups, settings, args.out, args.vbench_python)
    print(write_tables(evaluation, notes(evaluation, settings), args.out), end="")
    print(f"clips and flow: {write_evaluation(evaluation, groups, settings, args.out, args.shown)}")
    return 0
