"""How well the mini model's samples match held-out captions, and how often they show temporal faults.

`python -m mp_hooks.lab.mini.evaluate --samples 200 --seed S` prints both; the clips are read by classical means
(mp_hooks.lab.mini.tracking), whose own accuracy on drawn clips is printed first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.errors import exits_cleanly
from mp_hooks.files import replacing
from mp_hooks.lab.mini.clips import captions, draw, sample_scenes
from mp_hooks.lab.mini.model import GUIDANCE_SCALE, PACKAGED, load_pipeline, sample
from mp_hooks.lab.mini.tracking import TrackedObject, jerk, track_object

ATTRIBUTES = ("colour", "shape", "direction")


def match_counts(objects: Sequence[TrackedObject], wanted: Sequence[tuple[str, str, str]]) -> dict[str, int]:
    """How many clips show the wanted colour, shape, direction, and all three."""
    pairs = zip(objects, wanted, strict=True)
    hits = [[r == w for r, w in zip(tracked.attributes, wish, strict=True)] for tracked, wish in pairs]
    return {**{name: sum(row[i] for row in hits) for i, name in enumerate(ATTRIBUTES)}, "all": sum(map(all, hits))}


def flicker(videos: Tensor) -> Tensor:
    """Mean absolute second difference in time of each frame's mean brightness, [b], in brightness levels of 0 to 255.

    Unlike a difference of neighbouring frames it is near 0 for steady motion. videos [b, 3, t, h, w] in [-1, 1].
    """
    return videos.mean((1, 3, 4)).diff(n=2, dim=1).abs().mean(1) * 127.5


def fault_figures(videos: Tensor, objects: Sequence[TrackedObject]) -> dict[str, list[float]]:
    """Per clip: flicker (levels), jerk (pixels per frame cubed), frames in which the object is missing."""
    return {
        "flicker": flicker(videos).tolist(),
        "jerk": [jerk(tracked.path) for tracked in objects],
        "missing": [float(tracked.path[:, 0].isnan().sum()) for tracked in objects],
    }


def evaluate(model: Path, samples: int, seed: int, steps: int, guidance_scale: float, held_out: bool = True) -> dict:
    """Sample captions of unseen scenes, without a quality word, and measure; returns counts and figures as printed."""
    pipe = load_pipeline(model)
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(samples, generator, held_out=held_out)
    scenes.words[:, 1] = False  # plain prompts: the model itself decides whether a fault appears
    clean, faulty = draw(scenes.without_faults()), draw(scenes)
    clean_objects = [track_object(video) for video in tqdm(clean, desc="drawn clips")]
    faulty_objects = [track_object(video) for video in faulty]
    prompts, seeds, videos = captions(scenes), range(seed * 100_000, seed * 100_000 + samples), []
    for start in tqdm(range(0, samples, 10), desc="sampling", unit="batch"):
        part = slice(start, start + 10)
        videos.append(sample(prompts[part], seeds[part], steps, guidance_scale, pipe))
    video = torch.cat(videos)
    objects = [track_object(clip) for clip in tqdm(video, desc="tracking")]
    figures = {
        "clean drawn": fault_figures(clean, clean_objects),
        "drawn with the training set's faults": fault_figures(faulty, faulty_objects),
        "sampled": fault_figures(video, objects),
    }
    # A clip is called faulty beyond what 99 of 100 clean drawn clips show.
    limits = {name: torch.tensor(values).nanquantile(0.99).item() for name, values in figures["clean drawn"].items()}
    return {
        "samples": samples,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "captions": "held-out combinations" if held_out else "training combinations",
        "read off clean drawn clips": match_counts(clean_objects, scenes.attributes()),
        "read off samples": match_counts(objects, scenes.attributes()),
        "faults": {source: _summary(values, limits) for source, values in figures.items()},
    }


def _summary(values: dict[str, list[float]], limits: dict[str, float]) -> dict[str, float]:
    table = {name: torch.tensor(numbers) for name, numbers in values.items()}
    over = torch.stack([(numbers > limits[name] + 1e-6) | numbers.isnan() for name, numbers in table.items()])
    means = {f"mean {name}": round(numbers.nanmean().item(), 3) for name, numbers in table.items()}
    shares = {f"{name} above clean": int(row.sum()) for name, row in zip(table, over, strict=True)}
    return {**means, **shares, "any": int(over.any(0).sum())}


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.mini.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=PACKAGED, help="pipeline folder (default: the packaged one)")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--training-captions", action="store_true", help="combinations seen in training instead")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(arguments)
    result = evaluate(
        args.model, args.samples, args.seed, args.steps, args.guidance_scale, held_out=not args.training_captions
    )
    if args.out:
        with replacing(args.out) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{args.samples} samples, {result['captions']}, {args.steps} steps, guidance scale {args.guidance_scale}")
    for source in ("read off clean drawn clips", "read off samples"):
        counts = result[source]
        print(f"{source}: " + ", ".join(f"{k} {v}/{args.samples} ({v / args.samples:.1%})" for k, v in counts.items()))
    for source, summary in result["faults"].items():
        print(f"faults, {source}: " + ", ".join(f"{name} {value}" for name, value in summary.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
