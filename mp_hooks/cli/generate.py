"""`motionprompt generate`: clips for one's own prompts, with the embedded mini model or a diffusers pipeline."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `generate` to the command line."""
    from mp_hooks.config import add_config_flags

    parser = subparsers.add_parser("generate", help="sample clips for your prompts with the embedded mini model")
    parser.add_argument("--prompt", action="append", required=True, help="what to show (repeatable)")
    parser.add_argument("--out", type=Path, default=Path("runs/generate"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, for every prompt (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default: %(default)s")
    parser.add_argument("--model", type=Path, metavar="DIR", help="another mini model (default: the packaged one)")
    parser.add_argument("--motionprompt", action="store_true", help="guide the sampling with MotionPrompt")
    add_config_flags(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from mp_hooks import mini
    from mp_hooks.backbones import motionprompt
    from mp_hooks.config import config_from_flags
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.metrics import temporal_flickering
    from mp_hooks.video import as_frames, write_video

    if args.steps < 1:
        raise MotionPromptError(f"--steps is {args.steps}; it must be at least 1")
    pipe = mini.load_pipeline(args.model or mini.PACKAGED)
    args.out.mkdir(parents=True, exist_ok=True)
    guidance = nullcontext()
    if args.motionprompt:
        args.mp_config = args.mp_config or mini.GUIDANCE
        config = mini.guidance(config_from_flags(args))
        config = replace(config, trace=config.trace or str(args.out / "trace.jsonl"))
        config.save(args.out / "config.yaml")
        guidance = motionprompt(pipe, config)
    seeds = [args.seed] * len(args.prompt)
    with guidance:
        videos = mini.sample(args.prompt, seeds, args.steps, args.guidance_scale, pipe)
    for number, (prompt, video) in enumerate(zip(args.prompt, videos, strict=True)):
        frames = as_frames(video)
        name = f"{number:02d}-seed{args.seed}{'-motionprompt' if args.motionprompt else ''}"
        for suffix in (".mp4", ".gif"):
            write_video(args.out / (name + suffix), frames, mini.FRAME_RATE)
        print(f"{args.out / name}.mp4  flickering {temporal_flickering(frames):.4f}  {prompt}")
    return 0
