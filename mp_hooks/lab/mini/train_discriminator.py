"""The clips the mini model's discriminator is trained on: drawn ones without faults that it has redrawn, and samples.

`python -m mp_hooks.lab.mini.train_discriminator --out DIR` writes DIR/real and DIR/sampled, of the same captions, which
name no quality; then `motionprompt discriminator train --real DIR/real --fake DIR/sampled ...` (docs/mini.md).

The model redraws a real clip when it samples the clip's noised latents to their end (SDEdit, arXiv 2108.01073). So its
own inaccuracy is in both classes, and motion is what tells them apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.errors import exits_cleanly
from mp_hooks.lab.mini.clips import FRAME_RATE, captions, draw, sample_scenes
from mp_hooks.lab.mini.model import CALL, PACKAGED, pipeline_on, sample, shape_of
from mp_hooks.processes import workers_for
from mp_hooks.video import as_frames, write_video

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

CHUNK = 8
SEED = 700_000  # far from the seeds of experiments
STRENGTH = 0.52  # share of the sampling that redraws a clip: 13 steps of 25


def redrawn(pipe: AnimateDiffPipeline, videos: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Clips [b, 3, t, h, w] in [-1, 1], noised and sampled to their end by the model, each with its own generator."""
    from diffusers import AnimateDiffVideoToVideoPipeline

    redraw = AnimateDiffVideoToVideoPipeline(**pipe.components)
    redraw.set_progress_bar_config(disable=True)
    frames = redraw(
        video=(videos.transpose(1, 2) + 1) / 2,
        prompt=list(prompts),
        height=videos.shape[-2],
        width=videos.shape[-1],
        strength=STRENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
        **CALL,
    ).frames
    return frames.transpose(1, 2).float() * 2 - 1


def _write_chunk(model: str, out: Path, device: str, chunk: int) -> None:
    """Eight clips of each kind."""
    pipe, first = pipeline_on(device, model), SEED + CHUNK * chunk
    frames, size = shape_of(pipe)
    scenes = sample_scenes(CHUNK, torch.Generator().manual_seed(first), held_out=None, frames=frames)
    scenes.words[:, 1] = False  # no quality word: the model itself decides whether a fault appears
    prompts, seeds = captions(scenes), range(first, first + CHUNK)
    drawn = draw(scenes.without_faults().to(device), size)
    for name, videos in (
        ("real", redrawn(pipe, drawn, prompts, seeds)),
        ("sampled", sample(prompts, seeds, pipe=pipe)),
    ):
        for number, video in enumerate(videos.cpu(), CHUNK * chunk):
            write_video(out / name / f"{name}-{number:05d}.mp4", as_frames(video), FRAME_RATE, lossless=True)


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.mini.train_discriminator", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=PACKAGED, help="pipeline folder (default: the packaged one)")
    parser.add_argument("--clips", type=int, default=128, help="of each kind, in eights (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that samples (default: %(default)s)")
    args = parser.parse_args(arguments)
    chunks = range(-(-args.clips // CHUNK))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers_for(args.device), context, torch.set_num_threads, (1,)) as pool:
        for _ in tqdm(
            pool.map(partial(_write_chunk, str(args.model), args.out, args.device), chunks),
            total=len(chunks),
            desc="clips",
            unit="batch",
        ):
            pass
    print(f"clips: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
