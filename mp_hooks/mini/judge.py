"""The clips a judge of the mini model is trained on: drawn ones without faults, and the model's own samples.

`python -m mp_hooks.mini.judge --out DIR` writes DIR/real and DIR/sampled; then
`motionprompt discriminator train --real DIR/real --fake DIR/sampled --flow-size 64 --out DIR/judge`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mp_hooks.errors import exits_cleanly
from mp_hooks.mini.clips import FRAME_RATE, captions, draw, sample_scenes
from mp_hooks.mini.model import PACKAGED, load_pipeline, sample
from mp_hooks.video import as_frames, write_video

CHUNK = 8
SEED = 700_000  # far from the seeds of experiments


@cache
def _pipeline(model: str) -> Any:
    torch.set_num_threads(1)
    return load_pipeline(model)


@torch.no_grad()
def _write_chunk(model: str, out: Path, chunk: int) -> None:
    """Eight clips of each kind. Drawn ones pass the autoencoder, so that its blur does not give the classes away."""
    pipe = _pipeline(model)
    scenes = sample_scenes(CHUNK, torch.Generator().manual_seed(SEED + chunk), held_out=None)
    scenes.words[:, 1] = False  # no quality word: the model itself decides whether a fault appears
    drawn = draw(scenes.without_faults())
    latents = pipe.vae.encode(drawn.transpose(1, 2).flatten(0, 1)).latent_dist.mean
    drawn = pipe.vae.decode(latents).sample.unflatten(0, (CHUNK, -1)).transpose(1, 2)
    seeds = range(SEED + CHUNK * chunk, SEED + CHUNK * (chunk + 1))
    for name, videos in (("real", drawn), ("sampled", sample(captions(scenes), seeds, pipe=pipe))):
        for number, video in enumerate(videos, CHUNK * chunk):
            write_video(out / name / name / f"{name}-{number:05d}.mp4", as_frames(video), FRAME_RATE)


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.mini.judge", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=PACKAGED, help="pipeline folder (default: the packaged one)")
    parser.add_argument("--clips", type=int, default=448, help="of each kind (default: %(default)s)")
    args = parser.parse_args(arguments)
    chunks = range(args.clips // CHUNK)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(_write_chunk, str(args.model), args.out, chunk) for chunk in chunks]
        for future in tqdm(done, desc="clips", unit="batch"):
            future.result()
    print(f"clips: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
