"""`motionprompt sweep`: ablations over options of guidance, resumable and shared among processes, in one table."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `sweep` to the command line."""
    parser = subparsers.add_parser(
        "sweep",
        help="ablations over options of guidance, for the mini model or any host's command",
        description="Several processes share the work under torchrun: "
        "torchrun --nproc-per-node 2 --no-python motionprompt sweep SPEC.yaml",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.yaml", help="cells, prompts, seeds (docs/sweeps has examples)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a second run goes on in it (default: runs/SPEC)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the mini model")
    parser.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    from mp_hooks.lab.experiments.sweep import read_spec, run
    from mp_hooks.lab.report.evaluation import differences, headline, write_tables
    from mp_hooks.lab.report.page import write_page

    spec = read_spec(args.spec)
    out = args.out or Path("runs") / args.spec.stem
    evaluation = run(spec, out, args.device)
    if evaluation is None:
        print(f"{out}: other processes are still at work; the last one writes the table, or start this again")
        return 0
    print(write_tables(evaluation, evaluation.remarks(), out), end="")
    write_page(
        out / "index.html",
        title=f"Sweep {args.spec.stem}",
        lead=f"{len(evaluation.clips)} clips a cell, on the same prompts and seeds; the first cell is compared with.",
        tables=[headline(evaluation), differences(evaluation)],
        figures=[],
        columns=[],
        plots="",
        facts=[("specification", args.spec.read_text(encoding="utf-8"))],
    )
    print(f"page: {out / 'index.html'}")
    return 0
