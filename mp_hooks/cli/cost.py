"""`motionprompt cost`: what guidance costs a host at its real size; `motionprompt tradeoff`: what that buys."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mp_hooks.cli.arguments import positive

if TYPE_CHECKING:
    from mp_hooks.config import MotionPromptConfig
    from mp_hooks.lab.cost import Cost, Count


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `cost` to the command line."""
    from mp_hooks.config import add_config_flags

    parser = subparsers.add_parser("cost", help="count a full-size host's operations and memory, with guidance or not")
    parser.add_argument("name", metavar="NAME", help="the host; an unknown name lists all")
    parser.add_argument("--repo", type=Path, metavar="DIR", help="checkout of the host (default: in third_party)")
    parser.add_argument(
        "--measure", type=positive, metavar="ROUNDS", help="mini: also sample, plain and guided by turns"
    )
    parser.add_argument(
        "--clips", type=positive, default=1, metavar="N", help="clips that --measure samples at once (default: 1)"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="also sample it there, on random weights: seconds and peak memory"
    )
    add_config_flags(parser)
    parser.set_defaults(run=_cost)

    parser = subparsers.add_parser("tradeoff", help="gain against cost of the methods of a finished `compare`, drawn")
    parser.add_argument("out", type=Path, metavar="DIR", help="folder of the experiment")
    parser.set_defaults(run=_tradeoff)


def _cost(args: argparse.Namespace) -> int:
    import warnings
    from dataclasses import replace

    import torch

    from mp_hooks.config import config_from_flags
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.guidance.memory import POLICIES
    from mp_hooks.lab import mini

    if args.name == "mini":
        args.mp_config = args.mp_config or mini.GUIDANCE
    elif args.measure:
        raise MotionPromptError("--measure is for the mini model, which has weights here; leave it out")
    config = config_from_flags(args)
    config = replace(config, progress=False, seed=config.seed or 0)  # the same pairs each time
    if args.name == "mini":
        config = mini.guidance(config)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise MotionPromptError("torch finds no GPU here; leave --device out to count alone")
    policies = list(POLICIES) if config.checkpointing == "auto" else [config.checkpointing]
    warnings.filterwarnings("ignore", category=UserWarning)  # of fake tensors that have no address
    _counted(args, config, policies)
    if args.device:
        _timed(args, config, policies)
    if args.measure:
        _measure(config, args.measure, args.clips)
    return 0


def _counted(args: argparse.Namespace, config: MotionPromptConfig, policies: list[str]) -> None:
    from dataclasses import replace

    from mp_hooks.guidance.memory import SUB_CLIP
    from mp_hooks.guidance.run import SUB_CLIP_FRAMES
    from mp_hooks.lab.cost import cost, full_size

    parts = {}
    if config.checkpointing == "auto" and config.subclip is None:
        policies = [*policies, SUB_CLIP]  # what `auto` comes to at last
    for number, policy in enumerate(policies):
        with full_size(args.name, args.repo) as full:
            last = {"checkpointing": "all", "subclip": SUB_CLIP_FRAMES}
            counted = cost(full, replace(config, **(last if policy == SUB_CLIP else {"checkpointing": policy})))
            shape = "x".join(map(str, full.latents[1:]))
        if number == 0:
            print(
                f"{args.name}, float32, one clip of latents {shape}, {counted.steps} steps of which "
                f"{counted.guided_steps} are guided, K = {config.iterations}\n"
            )
            print(f"{'a run':36}{'TFLOP':>16}{'peak GiB of a step':>24}{'of the run':>20}")
            _run("without guidance", counted, False)
            parts = {"a step without guidance": counted.plain, "decoding the clip": counted.decode}
        kept = "sub-clip" if policy == SUB_CLIP else f"checkpointing {policy}"
        _run(f"guided, {kept}", counted, True)
        parts[f"a guided step, {kept}"] = counted.guided
    print(f"\nof every peak {_gibi(counted.weights)} GiB are the host's weights, which are left out below")
    for what, count in sorted(parts.items(), key=lambda part: -part[1].total):
        _show(what, count)


def _timed(args: argparse.Namespace, config: MotionPromptConfig, policies: list[str]) -> None:
    """The same runs on random weights: a few steps are sampled, and the whole run is put together from them."""
    from dataclasses import replace

    import torch

    from mp_hooks.guidance.schedule import guided_window
    from mp_hooks.lab.cost import full_size
    from mp_hooks.lab.cost.hosts import DTYPES, Weights
    from mp_hooks.lab.cost.timing import Price, Subject, timed, windowed

    steps, few, dtype = 10, 2, DTYPES[args.name]
    with full_size(args.name, args.repo, Weights(False, args.device, dtype)) as full:
        subject, guided = Subject(full.host, full.sample), len(guided_window(full.steps, config.start, config.stop))
        timed(subject, 2, args.device, windowed(config, 2, 1))  # what is done once is done
        plain = timed(subject, steps, args.device)
        whole, before = full.steps * plain.seconds / steps, _gibi(plain.peak)
        card = torch.cuda.get_device_name() if args.device == "cuda" else "this CPU"
        print(f"\nsampled on {card} in {dtype}, {few} guided steps of {steps}, nothing decoded; of that a run\n")
        print(f"{'':36}{'s a step':>16}{'s of the run':>24}{'peak GiB':>20}")
        print(f"{'without guidance':36}{_four(plain.seconds / steps):>16}{_four(whole):>24}{before:>20}")
        for policy in policies:
            taken = timed(subject, steps, args.device, windowed(replace(config, checkpointing=policy), steps, few))
            price = Price(plain, taken)
            seconds = price.run(full.steps, guided)
            run, peak = (
                f"{_four(seconds)} ({seconds / whole:.2f}x)",
                f"{_gibi(taken.peak)} ({taken.peak / plain.peak:.2f}x)",
            )
            note = f"  {taken.unguided} steps were not guided" if taken.unguided else ""
            print(f"{f'guided, checkpointing {policy}':36}{_four(price.guided_step):>16}{run:>24}{peak:>20}{note}")


def _measure(config: MotionPromptConfig, rounds: int, clips: int) -> None:
    from statistics import median

    from mp_hooks.lab.cost.measuring import measure, operations
    from mp_hooks.lab.experiments.methods import BASELINE, GUIDED

    def shown(values: list[float]) -> str:
        return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    print(f"\nclips sampled {clips} at once on one thread, {rounds} rounds by turns: median (least to greatest)")
    print(f"{'':10}{'processor s a clip':>24}{'wall s a clip':>24}{'peak resident MiB':>28}")
    found = measure(config, rounds, clips)
    for kind, those in found.items():
        seconds, wall = shown([one.processor for one in those]), shown([one.wall for one in those])
        print(f"{kind:10}{seconds:>24}{wall:>24}{shown([one.memory / 2**20 for one in those]):>28}")
    ratios = [ours.processor / plain.processor for plain, ours in zip(found["plain"], found["guided"], strict=True)]
    plain, guided = (operations(method, config)[0] for method in (BASELINE, GUIDED))
    print(f"guided to plain: {shown(ratios)} in processor seconds, {guided / plain:.2f} in FLOPs")


def _tradeoff(args: argparse.Namespace) -> int:
    from mp_hooks.lab.experiments.tradeoff import GAINS, draw, points

    found = points(args.out)
    print(
        f"{'method':14}{'FLOPs':>8}{'peak':>8}" + "".join(f"{name + ', mean [95 %]':>36}{'kept':>22}" for name in GAINS)
    )
    for point in sorted(found, key=lambda point: point.flops):
        cells = [f"{point.method:14}{point.flops:7.2f}x{point.peak:7.2f}x"]
        for name in GAINS:
            gain = point.gains[name]
            interval = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            kept = f"{point.kept[name].share:.0%} [{point.kept[name].low:.0%}, {point.kept[name].high:.0%}]"
            cells.append(f"{interval:>36}{kept:>22}")
        print("".join(cells))
    print(f"drawn: {draw(found, args.out)}")
    return 0


def _run(what: str, counted: Cost, guided: bool) -> None:
    """A line of the table of runs; those with guidance are compared to that without."""

    def shown(value: Callable[[bool], int], as_text: Callable[[int], str]) -> str:
        ratio = f" ({value(True) / value(False):.2f}x)" if guided else ""
        return as_text(value(guided)) + ratio

    flops, step, run = (counted.run_flops, _tera), (counted.step_peak, _gibi), (counted.run_peak, _gibi)
    print(f"{what:36}{shown(*flops):>16}{shown(*step):>24}{shown(*run):>20}")


def _show(what: str, count: Count) -> None:
    print(f"\n{what + ':':42}{_tera(count.total):>8} TFLOP {_gibi(count.peak):>10} GiB at its peak")
    parts = sorted(((flops, part) for part, flops in count.flops.items() if flops), reverse=True)
    for flops, part in parts if len(parts) > 1 else []:
        kept = f", kept for the backward pass {_gibi(count.saved[part])}" if part in count.saved else ""
        print(f"  {part:40}{_tera(flops):>8}{_gibi(count.at_peak.get(part, 0)):>17}{kept}")


def _tera(operations: int) -> str:
    return _four(operations / 1e12)


def _gibi(size: int) -> str:
    return _four(size / 2**30)


def _four(value: float) -> str:
    return f"{value:.4g}"
