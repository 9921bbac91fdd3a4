"""A tiny random pipeline sampled once: what `motionprompt doctor` runs for hosts that have no script of their own.

python -m mp_hooks.testing.sample NAME --out DIR [--motionprompt] [--mp-*]
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from mp_hooks import entry
from mp_hooks.backbones import motionprompt
from mp_hooks.config import config_from_flags
from mp_hooks.errors import exits_cleanly
from mp_hooks.testing import tiny
from mp_hooks.video import as_frames, write_video


@exits_cleanly
def main() -> int:
    """Sample the case's prompts, and write a video of each."""
    parser = argparse.ArgumentParser(description="Sample a tiny random pipeline.")
    parser.add_argument("name", help="of the adapter")
    parser.add_argument("--out", type=Path, required=True, help="folder of the videos")
    entry.add_arguments(parser)
    args = parser.parse_args()
    device = args.mp_device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = replace(config_from_flags(args), trace=str(args.out / "motionprompt" / "trace.jsonl"))
    case = tiny(args.name)
    with case.open() as host:
        host.to(device)
        with motionprompt(host, config) if args.motionprompt else nullcontext():
            latents = case.sample(host, case.prompts, seed=7)
        with torch.no_grad():
            videos = case.own_decode(host, latents)
    for prompt, video in zip(case.prompts, videos, strict=True):
        write_video(args.out / f"{prompt.replace(' ', '_')}.mp4", as_frames(video), fps=8)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
