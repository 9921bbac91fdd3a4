"""`motionprompt generate`: clips of many prompts, with any saved diffusers pipeline or the embedded mini model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mp_hooks.cli.arguments import positive

if TYPE_CHECKING:
    from mp_hooks.config import MotionPromptConfig
    from mp_hooks.generation import Generation

CALL = {"steps": "num_inference_steps", "frames": "num_frames"}  # flags that pipelines' calls name otherwise


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `generate` to the command line."""
    from mp_hooks.config import add_config_flags

    parser = subparsers.add_parser(
        "generate",
        help="sample clips with a saved diffusers pipeline, or the embedded mini model",
        description="Clips are called PROMPT-0.mp4 and so on, as VBench wants them; one that is there is kept. "
        "Processes share the work, however they were started.",
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="what to show (repeatable)")
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt a line, VBench's JSON, or WebDataset tars (or their folder)",
    )
    parser.add_argument("--image", type=Path, metavar="PATH", help="to start from: a picture, or a folder by prompts")
    parser.add_argument("--video", type=Path, metavar="PATH", help="to start from: a video, or a folder by prompts")
    parser.add_argument("--seeds", type=positive, default=1, help="clips a prompt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the next has the next (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/generate"), help="folder (default: %(default)s)")
    parser.add_argument("--webdataset", action="store_true", help="write the clips as WebDataset tars")
    parser.add_argument("--fps", type=float, default=8.0, help="frames a second of the files (default: %(default)s)")
    parser.add_argument("--motionprompt", action="store_true", help="guide the sampling with MotionPrompt")

    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="FOLDER_OR_HUB_ID", help="a diffusers pipeline (default: the mini model)")
    model.add_argument("--pipeline", metavar="CLASS", help="load it as this class of diffusers (default: its own)")
    model.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: bfloat16 on a GPU)")
    model.add_argument("--device", help="default: this process's GPU, or the CPU")
    model.add_argument("--offload", default="none", help="none, model, sequential: from the GPU (default: none)")
    model.add_argument("--scheduler", metavar="CLASS", help="of diffusers, with the model's settings")
    model.add_argument("--lora", metavar="FOLDER_OR_HUB_ID", help="LoRA weights")
    model.add_argument("--lora-scale", type=float, default=1.0, help="default: %(default)s")
    model.add_argument("--allow-pickle", action="store_true", help="weights other than safetensors, which can run code")

    call = parser.add_argument_group("call", "What is not given is the pipeline's own default.")
    call.add_argument("--steps", type=positive, help="sampling steps")
    call.add_argument("--height", type=positive)
    call.add_argument("--width", type=positive)
    call.add_argument("--frames", type=positive)
    call.add_argument("--guidance-scale", type=float)
    call.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE", help="any other of its call (repeatable)"
    )
    call.add_argument("--batch-size", type=positive, default=1, help="clips sampled at once (default: %(default)s)")
    add_config_flags(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from mp_hooks.generation import Prompt, clips_of, generate, read_prompts
    from mp_hooks.processes import processes

    if args.prompts:
        prompts = read_prompts(args.prompts, args.image, args.video)
    else:
        files = [None if path is None else str(path) for path in (args.image, args.video)]
        prompts = [Prompt(prompt, None, *files) for prompt in args.prompt]
    clips = clips_of(prompts, args.seeds, args.seed)
    missing = generate(_settings(args), clips, args.out, args.webdataset)
    if processes().rank == 0:
        print(f"{len(clips) - missing} clips in {args.out}")
    if missing:
        print(f"{missing} are missing: other processes are at them, or start this again")
    return 0


def _settings(args: argparse.Namespace) -> Generation:
    from mp_hooks.generation import Generation
    from mp_hooks.lab import mini

    arguments = dict(map(_argument, args.argument))
    for flag in ("steps", "height", "width", "frames", "guidance_scale"):
        if getattr(args, flag) is not None:
            arguments[CALL.get(flag, flag)] = getattr(args, flag)
    packaged = args.model is None
    return Generation(
        model=str(mini.PACKAGED) if packaged else args.model,
        pipeline=args.pipeline,
        dtype=args.dtype,
        device=args.device,
        offload=args.offload,
        allow_pickle=args.allow_pickle,
        scheduler=args.scheduler,
        lora=args.lora,
        lora_scale=args.lora_scale,
        arguments={**mini.CALL, **arguments} if packaged else arguments,
        batch_size=args.batch_size,
        fps=args.fps,
        guidance=_guidance(args) if args.motionprompt else None,
    )


def _guidance(args: argparse.Namespace) -> MotionPromptConfig:
    """That of the flags; the mini model's own where it is the model and no other is given."""
    from mp_hooks.config import config_from_flags
    from mp_hooks.lab import mini

    if args.model is not None:
        return config_from_flags(args)
    args.mp_config = args.mp_config or mini.GUIDANCE
    return mini.guidance(config_from_flags(args))


def _argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as YAML has it."""
    import yaml

    from mp_hooks.errors import MotionPromptError

    name, equals, value = text.partition("=")
    try:
        if name and equals:
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise MotionPromptError(f"--argument is '{text}'; give NAME=VALUE, such as negative_prompt=blurry")
