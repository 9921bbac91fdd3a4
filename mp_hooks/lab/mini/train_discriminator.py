"""The clips a discriminator of the mini model is trained on: drawn ones without faults, and samples or faulty ones.

`python -m mp_hooks.lab.mini.train_discriminator --out DIR` writes DIR/real and DIR/sampled; then
`motionprompt discriminator train --real DIR/real --fake DIR/sampled --flow-size 64 --out DIR/discriminator`.
With `--fake-from faults` the others are the same scenes drawn with faults that bend flow, in DIR/faulty, and the
classes differ in motion alone. With `--fake-from trace` both are what is predicted of clean clips and samples while
there is still noise: what guidance shows a discriminator. DIR/INDEX.tsv keeps what is predicted of one clip in one part
of a split.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.backbones.diffusers.schedule import clean_latents
from mp_hooks.discriminator.data import INDEX_FILE
from mp_hooks.errors import exits_cleanly
from mp_hooks.files import replacing
from mp_hooks.hooks import Hooks
from mp_hooks.lab.mini.clips import FRAME_RATE, Scenes, captions, draw, sample_scenes
from mp_hooks.lab.mini.model import GUIDANCE_SCALE, PACKAGED, load_pipeline, sample, shape_of
from mp_hooks.video import as_frames, write_video

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

CHUNK = 8
FOLDERS = {"samples": "sampled", "faults": "faulty", "trace": "sampled"}  # of the class that is not real
SEED = 700_000  # far from the seeds of experiments
TRACE_STEPS = [8, 11, 14]  # of 25: early in the window of guidance


@cache
def _pipeline(model: str) -> Any:
    torch.set_num_threads(1)
    return load_pipeline(model)


@torch.no_grad()
def _write_chunk(model: str, out: Path, chunk: int, source: str, steps: Sequence[int]) -> None:
    """Eight clips of each kind, or what is predicted of eight at each of `steps`."""
    pipe = _pipeline(model)
    generator, (frames, size) = torch.Generator().manual_seed(SEED + chunk), shape_of(pipe)
    if source == "faults":
        scenes = bending_scenes(generator, frames)
    else:
        scenes = sample_scenes(CHUNK, generator, held_out=None, frames=frames)
    scenes.words[:, 1] = False  # no quality word: the model itself decides whether a fault appears
    real = encoded(pipe, draw(scenes.without_faults(), size))
    # Drawn clips pass the autoencoder, so that its blur does not give the classes away; guidance sees no compression.
    if source == "faults":
        pairs = {"": (pipe.decode_latents(real), pipe.decode_latents(encoded(pipe, draw(scenes, size))))}
    elif source == "samples":
        pairs = {"": (pipe.decode_latents(real), sampled(pipe, captions(scenes), SEED + CHUNK * chunk)[0])}
    else:
        generator = torch.Generator().manual_seed(SEED + chunk)
        noisy = {step: predicted(pipe, real, captions(scenes), step, generator) for step in steps}
        predictions = sampled(pipe, captions(scenes), SEED + CHUNK * chunk)[1]
        pairs = {f"-{step:02d}": tuple(map(pipe.decode_latents, (noisy[step], predictions[step]))) for step in steps}
    for suffix, videos in pairs.items():
        for name, batch in zip(("real", FOLDERS[source]), videos, strict=True):
            for number, video in enumerate(batch, CHUNK * chunk):
                write_video(
                    out / name / name / f"{name}-{number:05d}{suffix}.mp4", as_frames(video), FRAME_RATE, lossless=True
                )


def bending_scenes(generator: torch.Generator, frames: int) -> Scenes:
    """A chunk of scenes of so many frames, each with a fault that shows in the flow of two frames."""
    return sample_scenes(8 * CHUNK, generator, fault_share=1.0, held_out=None, frames=frames).that_bend()[:CHUNK]


def encoded(pipe: AnimateDiffPipeline, videos: Tensor) -> Tensor:
    """Latents [b, c, t, h, w] of videos [b, 3, t, h, w]."""
    return (
        pipe.vae.encode(videos.transpose(1, 2).flatten(0, 1))
        .latent_dist.mean.unflatten(0, (len(videos), -1))
        .transpose(1, 2)
    )


def sampled(pipe: AnimateDiffPipeline, prompts: Sequence[str], seed: int) -> tuple[Tensor, list[Tensor]]:
    """Clips of the prompts, of seeds from `seed` on, and z0_hat at every step of their sampling."""
    predictions: list[Tensor] = []

    def noted(original: Callable[..., Any], *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        predictions.append(result.pred_original_sample)
        return result if return_dict else (result.prev_sample,)

    hooks = Hooks()
    hooks.wrap(pipe.scheduler, "step", noted)
    try:
        videos = sample(prompts, range(seed, seed + len(prompts)), pipe=pipe)
    finally:
        hooks.remove()
    return videos, predictions


def _write_index(out: Path) -> None:
    """Clips of one number share their prompt, and a prompt is never parted."""
    with replacing(out / INDEX_FILE) as path, path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["path", "model_or_source", "prompt"])
        for clip in sorted(out.glob("*/*/*.mp4")):
            rows.writerow([clip.relative_to(out), clip.parent.name, clip.stem.split("-")[1]])


def predicted(
    pipe: AnimateDiffPipeline, latents: Tensor, prompts: Sequence[str], step: int, generator: torch.Generator
) -> Tensor:
    """z0_hat [b, c, t, h, w] of clean latents that carry as much noise as a sampling at `step`."""
    timestep = pipe.scheduler.timesteps[step]
    noise = torch.randn(latents.shape, generator=generator)
    noisy = pipe.scheduler.add_noise(latents, noise, timestep[None])
    text, empty = pipe.encode_prompt(list(prompts), "cpu", 1, True)
    conditional, unconditional = (
        pipe.unet(noisy, timestep, rows.repeat_interleave(latents.shape[2], dim=0)).sample for rows in (text, empty)
    )
    output = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
    return clean_latents(pipe.scheduler, noisy, output, float(timestep))


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.mini.train_discriminator", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=PACKAGED, help="pipeline folder (default: the packaged one)")
    parser.add_argument("--clips", type=int, default=448, help="of each kind (default: %(default)s)")
    parser.add_argument(
        "--fake-from",
        choices=FOLDERS,
        default="samples",
        help="the model's finished clips, drawn clips with faults, which differ in motion alone and go to DIR/faulty, "
        "or what is predicted of the model's at --steps (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, nargs="+", default=TRACE_STEPS, help="of 25 (default: %(default)s)")
    args = parser.parse_args(arguments)
    chunks = range(args.clips // CHUNK)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        done = [
            pool.submit(_write_chunk, str(args.model), args.out, chunk, args.fake_from, args.steps) for chunk in chunks
        ]
        for future in tqdm(done, desc="clips", unit="batch"):
            future.result()
    _write_index(args.out)
    print(f"clips: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
