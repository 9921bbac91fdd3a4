"""`motionprompt doctor`: whether a host runs on this machine, tried on tiny random weights."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser("doctor", help="try a host on this machine, with tiny random weights")
    parser.add_argument("name", metavar="NAME", help="the host; an unknown name lists all")
    parser.add_argument("--repo", type=Path, metavar="DIR", help="checkout of the host (default: in third_party)")
    parser.add_argument("--mp-device", choices=("cuda", "cpu"), help="where to run it (default: CUDA if there is any)")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import tempfile

    from mp_hooks.runs import versions
    from mp_hooks.testing.doctor import check_up

    print("  ".join(f"{package} {version}" for package, version in versions().items()), flush=True)
    with tempfile.TemporaryDirectory(prefix="motionprompt-doctor-") as folder:
        found = check_up(args.name, Path(folder), args.repo, args.mp_device)
    print(f"device {found.device}  shims {' '.join(found.shims) or 'none'}\n")
    print(f"{args.name + ', four steps':40} {'seconds':>8} {'peak MiB':>9} {'videos':>7}")
    for what, outcome in (("without guidance", found.plain), ("with guidance, at two of the steps", found.guided)):
        print(f"{what:40} {outcome.seconds:8.1f} {outcome.memory / 2**20:9.0f} {outcome.videos:7d}")
    if found.cuda_memory:
        print(f"{'peak of CUDA memory with guidance':40} {'':8} {found.cuda_memory / 2**20:9.0f}")
    print(f"\n{found.updates} updates of the tokens, {found.skipped} skipped as not finite")
    print(f"{args.name} runs here; tiny random weights say nothing about quality, or about a full-size model's memory")
    return 0
