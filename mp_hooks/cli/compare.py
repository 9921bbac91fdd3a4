"""`motionprompt compare`: the same prompts and seeds with and without MotionPrompt, and by the baselines to beat."""

from __future__ import annotations

import argparse
from pathlib import Path

METHODS = (
    *("baseline", "motionprompt", "photometric", "discriminator", "variation", "unmoved", "word", "steady"),
    *("search", "freeinit", "latent", "refine"),
)
CHEAPER = "balanced"  # and not 'fast', whose tiny decoder does not know the mini model's latents


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `compare` to the command line, and its former name `prove`, which help does not show."""
    _add_arguments(
        subparsers.add_parser(
            "compare", help="paired experiment on the embedded mini model: measures, intervals, a page with the clips"
        )
    )
    _add_arguments(subparsers.add_parser("prove"))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from mp_hooks.config import add_config_flags

    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="a second run goes on in it")
    parser.add_argument("--prompts", type=int, default=64, help="captions of random scenes (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="noises a prompt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noises (default: %(default)s)")
    names = f"of: {', '.join(METHODS)} (default: these), {CHEAPER}"
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help=names)
    parser.add_argument("--arms", nargs="+", dest="methods", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help="processes of one thread (default: one a core, on a GPU one)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that samples (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="clips sampled together (default: %(default)s)")
    parser.add_argument("--measure-flow", default="pyramid", metavar="NAME", help="flow that measures use")
    parser.add_argument("--measure-flow-weights", metavar="FILE", help="its weights")
    parser.add_argument("--model", type=Path, metavar="DIR", help="another mini model (default: the packaged one)")
    parser.add_argument("--shown", type=int, default=6, help="clips on the page (default: %(default)s)")
    add_config_flags(parser)
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from mp_hooks.config import config_from_flags
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab import mini
    from mp_hooks.lab.experiments.methods import BASELINE
    from mp_hooks.lab.experiments.paired import Experiment, run
    from mp_hooks.lab.experiments.results import table_text, write_results

    for name in ("prompts", "seeds", "shown", "batch"):
        if getattr(args, name) < 1:
            raise MotionPromptError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    args.mp_config = args.mp_config or mini.GUIDANCE
    methods = list(dict.fromkeys([BASELINE, *args.methods]))
    experiment = Experiment(
        model=str(args.model or mini.PACKAGED),
        seed=args.seed,
        prompts=args.prompts,
        seeds=args.seeds,
        flow=args.measure_flow,
        flow_weights=args.measure_flow_weights,
        guidance=mini.guidance(config_from_flags(args)),
        batch=args.batch,
    )
    results = run(experiment, methods, args.out, args.workers, args.device)
    print(table_text(experiment, results))
    print(f"clips, flow and plots: {write_results(experiment, results, args.out, args.shown)}")
    return 0
