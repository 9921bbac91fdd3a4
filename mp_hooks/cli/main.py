"""The `motionprompt` command: parses, then hands over to one module a subcommand."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from mp_hooks import __version__
from mp_hooks.errors import exits_cleanly

# Each module has `register(subparsers)`; heavy imports wait until the subcommand runs.
COMMANDS = [
    "mp_hooks.cli.generate",
    "mp_hooks.cli.compare",
    "mp_hooks.cli.evaluate",
    "mp_hooks.cli.report",
    "mp_hooks.cli.drift",
    "mp_hooks.cli.study",
    "mp_hooks.cli.sweep",
    "mp_hooks.cli.flow",
    "mp_hooks.cli.discriminator",
    "mp_hooks.cli.doctor",
    "mp_hooks.cli.cost",
]


def build_parser() -> argparse.ArgumentParser:
    """The whole command line of `motionprompt`."""
    parser = argparse.ArgumentParser(
        prog="motionprompt", description="Optical-flow guided prompt optimisation for text-to-video models."
    )
    parser.add_argument("--version", action="version", version=f"mp_hooks {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(module).register(subparsers)
    return parser


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return args.run(args)
