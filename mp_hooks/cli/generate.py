"""`motionprompt generate`: clips for one's own prompts, with the embedded mini model or a diffusers pipeline."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mp_hooks.config import MotionPromptConfig

BATCH = 8  # clips of a file of prompts sampled together
LONGEST_NAME = 240  # bytes; file systems allow 255, and a temporary name is longer


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `generate` to the command line."""
    from mp_hooks.config import add_config_flags

    parser = subparsers.add_parser("generate", help="sample clips for your prompts with the embedded mini model")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="what to show (repeatable)")
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt a line; clips are called PROMPT-0.mp4, as VBench wants them, and one that is there is kept",
    )
    parser.add_argument("--seeds", type=int, default=1, help="noises a prompt of the file (default: %(default)s)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="sample the I-th of N parts of the file, from 0")
    parser.add_argument("--out", type=Path, default=Path("runs/generate"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, for every prompt (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default: %(default)s")
    parser.add_argument("--model", type=Path, metavar="DIR", help="another mini model (default: the packaged one)")
    parser.add_argument("--motionprompt", action="store_true", help="guide the sampling with MotionPrompt")
    add_config_flags(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from mp_hooks.config import config_from_flags
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab import mini

    if args.steps < 1 or args.seeds < 1:
        raise MotionPromptError(f"--steps is {args.steps} and --seeds {args.seeds}; both must be at least 1")
    pipe = mini.load_pipeline(args.model or mini.PACKAGED)
    args.out.mkdir(parents=True, exist_ok=True)
    config = None
    if args.motionprompt:
        args.mp_config = args.mp_config or mini.GUIDANCE
        config = mini.guidance(config_from_flags(args))
        config = replace(config, seed=args.seed if config.seed is None else config.seed)
    return _for_file(args, pipe, config) if args.prompts else _for_prompts(args, pipe, config)


def _for_prompts(args: argparse.Namespace, pipe: object, config: MotionPromptConfig | None) -> int:
    from mp_hooks.lab import mini
    from mp_hooks.lab.metrics import temporal_flickering
    from mp_hooks.runs import save_configuration
    from mp_hooks.video import as_frames, write_video

    if config:
        config = replace(config, trace=config.trace or str(args.out / "trace.jsonl"))
        save_configuration(args.out, config)
    with _guided(pipe, config):
        videos = mini.sample(args.prompt, [args.seed] * len(args.prompt), args.steps, args.guidance_scale, pipe)
    for number, (prompt, video) in enumerate(zip(args.prompt, videos, strict=True)):
        frames = as_frames(video)
        name = f"{number:02d}-seed{args.seed}{'-motionprompt' if config else ''}"
        for suffix in (".mp4", ".gif"):
            write_video(args.out / (name + suffix), frames, mini.FRAME_RATE)
        print(f"{args.out / name}.mp4  flickering {temporal_flickering(frames):.4f}  {prompt}")
    return 0


def _for_file(args: argparse.Namespace, pipe: object, config: MotionPromptConfig | None) -> int:
    """Sample this shard's batches, less those that are there; a batch is the same in whatever shard it is."""
    from tqdm import tqdm

    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab import mini
    from mp_hooks.runs import claim, save_configuration
    from mp_hooks.video import as_frames, write_video

    clips = _clips(args)
    settings = {
        "prompts": [prompt for _, prompt, _ in clips],
        "seeds": [seed for *_, seed in clips],
        "model": str(args.model or "packaged"),
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "guidance": asdict(config) if config else None,
    }
    claim(args.out / "generate.json", settings)
    if config:
        save_configuration(args.out, config)
    try:
        index, shards = map(int, args.shard.split("/"))
    except ValueError:
        index = shards = 0
    if not 0 <= index < shards:
        raise MotionPromptError(f"--shard is '{args.shard}'; it must be I/N with I from 0 to N - 1, such as 0/4")
    batches = list(enumerate(clips[at : at + BATCH] for at in range(0, len(clips), BATCH)))[index::shards]
    for number, batch in tqdm(batches, desc="sampling", unit="batch"):
        if all((args.out / name).is_file() for name, *_ in batch):
            continue
        trace = str(args.out / "traces" / f"{number:05d}.jsonl")
        with _guided(pipe, replace(config, trace=trace, progress=False) if config else None):
            prompts, seeds = [prompt for _, prompt, _ in batch], [seed for *_, seed in batch]
            videos = mini.sample(prompts, seeds, args.steps, args.guidance_scale, pipe)
        for (name, *_), video in zip(batch, videos, strict=True):
            if not (args.out / name).is_file():  # what a killed run has finished stays
                write_video(args.out / name, as_frames(video), mini.FRAME_RATE)
    print(f"{sum(len(batch) for _, batch in batches)} clips in {args.out}")
    return 0


def _guided(pipe: object, config: MotionPromptConfig | None) -> AbstractContextManager:
    from mp_hooks.backbones import motionprompt

    return motionprompt(pipe, config) if config else nullcontext()


def _clips(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(file name, prompt, seed) of every clip of the file of prompts."""
    from mp_hooks.errors import MotionPromptError

    try:
        prompts = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MotionPromptError(f"cannot read {args.prompts}; give a text file with a prompt a line") from error
    clips = [
        (f"{prompt.replace('/', ' ')}-{number}.mp4", prompt, args.seed + number)
        for prompt in prompts
        for number in range(args.seeds)
    ]
    for name, prompt, _ in clips:
        if len(name.encode()) > LONGEST_NAME or "\0" in name:
            raise MotionPromptError(f"no file can be named after {prompt[:40]!r}; give prompts of up to 200 letters")
    if not clips or len({name for name, *_ in clips}) < len(clips):
        raise MotionPromptError(f"{args.prompts} holds no prompt, or one twice; give each prompt once")
    return clips
