"""`motionprompt cost`: what guidance costs a host at its real size, counted without weights, GPU or time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mp_hooks.cost import Cost, Count


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `cost` to the command line."""
    from mp_hooks.config import add_config_flags

    parser = subparsers.add_parser("cost", help="count a full-size host's operations and memory, with guidance or not")
    parser.add_argument("name", metavar="NAME", help="the host; an unknown name lists all")
    parser.add_argument("--repo", type=Path, metavar="DIR", help="checkout of the host (default: in third_party)")
    add_config_flags(parser)
    parser.set_defaults(run=_cost)


def _cost(args: argparse.Namespace) -> int:
    import warnings
    from dataclasses import replace

    from mp_hooks import mini
    from mp_hooks.backbones.checkpointing import POLICIES
    from mp_hooks.config import config_from_flags
    from mp_hooks.cost import cost, full_size

    if args.name == "mini":
        args.mp_config = args.mp_config or mini.GUIDANCE
    config = replace(config_from_flags(args), progress=False)
    if args.name == "mini":
        config = mini.guidance(config)
    policies = POLICIES if config.checkpointing == "auto" else [config.checkpointing]
    warnings.filterwarnings("ignore", category=UserWarning)  # of fake tensors that have no address
    for number, policy in enumerate(policies):
        with full_size(args.name, args.repo) as full:
            counted = cost(full, replace(config, checkpointing=policy))
            shape = full.latents
        if number == 0:
            print(f"{args.name}, float32, one clip of latents {'x'.join(map(str, shape[1:]))}, K = {config.iterations}")
            _show("a step without guidance", counted.plain)
            _show("decoding the clip", counted.decode)
        _show(f"a guided step, checkpointing {policy}", counted.guided)
        _ratios(counted)
    return 0


def _show(what: str, count: Count) -> None:
    from mp_hooks.cost import PARTS

    parts = [part for part in PARTS if count.flops.get(part)]
    print(f"\n{what + ':':42}{count.total / 1e12:9.2f} TFLOP {count.peak / 2**30:8.2f} GiB at its peak")
    for part in parts if len(parts) > 1 else []:
        kept = f", kept for the backward pass {count.saved[part] / 2**30:.2f}" if part in count.saved else ""
        print(f"  {part:40}{count.flops[part] / 1e12:9.2f} {count.at_peak.get(part, 0) / 2**30:14.2f}{kept}")


def _ratios(counted: Cost) -> None:
    plain, guided = counted.run_flops(False), counted.run_flops(True)
    print(f"  a run of {counted.steps} steps, {counted.guided_steps} guided: {guided / 1e12:.0f} TFLOP for", end=" ")
    print(f"{plain / 1e12:.0f}, {guided / plain:.3f}x")
    print(f"  most memory, with {counted.weights / 2**30:.1f} GiB of weights:", end=" ")
    print(f"step {counted.step_peak(True) / 2**30:.1f} GiB for {counted.step_peak(False) / 2**30:.1f},", end=" ")
    print(f"{counted.step_peak(True) / counted.step_peak(False):.2f}x;", end=" ")
    print(f"run {counted.run_peak(True) / 2**30:.1f} for {counted.run_peak(False) / 2**30:.1f},", end=" ")
    print(f"{counted.run_peak(True) / counted.run_peak(False):.2f}x")
