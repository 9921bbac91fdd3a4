"""How well the mini model's samples match held-out captions, how often they show faults, and what flow is worth.

`python -m mp_hooks.lab.mini.evaluate --samples 100 --seed S` prints: how far the flow estimator is from the drawn flow
of clean clips; how the captions match, read by classical means (mp_hooks.lab.mini.tracking) whose own accuracy on drawn
clips is printed first; and the faults and the motion of clean clips, of the same drawn with faults, of samples, and of
samples whose prompt says "steady".
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
from mp_hooks.flow import FlowEstimator, load_flow
from mp_hooks.lab.metrics import dynamic_degree, flow_length, neighbouring_flow
from mp_hooks.lab.mini.clips import STEADY, captions, draw, sample_scenes, true_flow
from mp_hooks.lab.mini.model import GUIDANCE_SCALE, PACKAGED, load_pipeline, sample, shape_of
from mp_hooks.lab.mini.rigidity import LayerMotion, layer_motion
from mp_hooks.lab.mini.tracking import TrackedObject, at_tracking_size, jerk, track_object
from mp_hooks.video import as_frames

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


def fault_figures(
    videos: Tensor, objects: Sequence[TrackedObject], moved: Sequence[LayerMotion]
) -> dict[str, list[float]]:
    """Per clip: morphing (pixels), flicker (levels), jerk (pixels per frame cubed), frames that lack the object."""
    return {
        "morphing": [motion.morphing for motion in moved],
        "flicker": flicker(videos).tolist(),
        "jerk": [jerk(tracked.path) for tracked in objects],
        "missing": [float(tracked.path[:, 0].isnan().sum()) for tracked in objects],
    }


@torch.no_grad()
def motion_figures(videos: Tensor, moved: Sequence[LayerMotion], estimator: FlowEstimator) -> dict[str, float]:
    """Means over clips [b, 3, t, h, w]: flow and motion of the camera, pixels a frame, and VBench's dynamic degree."""
    flows = [neighbouring_flow(as_frames(video), estimator) for video in videos]
    found = {
        "flow": [flow_length(flow) for flow in flows],
        "camera": [motion.camera for motion in moved],
        "dynamic": [float(dynamic_degree(flow)) for flow in flows],
    }
    return {name: round(sum(values) / len(values), 3) for name, values in found.items()}


@torch.no_grad()
def flow_error(clips: Tensor, flow: Tensor, seen: Tensor, estimator: FlowEstimator) -> tuple[float, float, float]:
    """Mean and median distance of the estimator's flow to the drawn one where that can be seen, and its length; pixels.

    clips [n, 3, t, h, w] in [-1, 1]; flow, seen as by `clips.true_flow`.
    """
    distances = []
    for clip, drawn, visible in zip(clips, flow, seen, strict=True):
        frames = clip.transpose(0, 1)
        distances.append((estimator(frames[:-1], frames[1:]) - drawn).norm(dim=1)[visible])
    away = torch.cat(distances)
    return float(away.mean()), float(away.median()), float(flow.norm(dim=2)[seen].mean())


def evaluate(
    model: Path,
    samples: int,
    seed: int,
    steps: int,
    guidance_scale: float,
    held_out: bool = True,
    flow: str = "pyramid",
    flow_weights: str | None = None,
    device: str = "cpu",
) -> dict:
    """Sample captions of unseen scenes, without a quality word, and measure; returns counts and figures as printed."""
    pipe, estimator = load_pipeline(model).to(device), load_flow(flow, flow_weights, device)
    frames, size = shape_of(pipe)
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(samples, generator, held_out=held_out, frames=frames)
    scenes.words[:, 1] = False  # plain prompts: the model itself decides whether a fault appears
    scenes = scenes.to(device)
    ideal = scenes.without_faults()
    sharp, faulty = draw(ideal, size), draw(scenes, size)
    error = flow_error(sharp, *true_flow(ideal, size), estimator)
    seeds = range(seed * 100_000, seed * 100_000 + samples)
    shown = {"clean drawn": sharp, "drawn with the training set's faults": faulty}
    for name, before in (("sampled", ""), (f"sampled with '{STEADY}'", STEADY + " ")):
        prompts, videos = [before + prompt for prompt in captions(scenes)], []
        for start in tqdm(range(0, samples, 8), desc=name, unit="batch"):
            part = slice(start, start + 8)
            videos.append(sample(prompts[part], seeds[part], steps, guidance_scale, pipe))
        shown[name] = torch.cat(videos)
    figures, found, motion = {}, {}, {}
    for name, clips in shown.items():
        small = torch.stack([at_tracking_size(clip) for clip in clips])
        found[name] = [track_object(clip) for clip in tqdm(small.cpu(), desc=f"tracking, {name}")]
        moved = [layer_motion(clip, estimator) for clip in small]
        figures[name] = fault_figures(small, found[name], moved)
        motion[name] = motion_figures(clips, moved, estimator)
    # A clip is called faulty beyond what 99 of 100 clean drawn clips show.
    limits = {name: torch.tensor(values).nanquantile(0.99).item() for name, values in figures["clean drawn"].items()}
    return {
        "samples": samples,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "captions": "held-out combinations" if held_out else "training combinations",
        "flow": flow,
        "flow error": dict(zip(("mean", "median", "of a mean length of"), (round(x, 3) for x in error), strict=True)),
        "read off clean drawn clips": match_counts(found["clean drawn"], scenes.attributes()),
        "read off samples": match_counts(found["sampled"], scenes.attributes()),
        "motion": motion,
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
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--training-captions", action="store_true", help="combinations seen in training instead")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--flow", default="pyramid", help="estimator (default: %(default)s)")
    parser.add_argument("--flow-weights", metavar="FILE", help="its weights")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that samples (default: %(default)s)")
    args = parser.parse_args(arguments)
    result = evaluate(
        args.model,
        args.samples,
        args.seed,
        args.steps,
        args.guidance_scale,
        held_out=not args.training_captions,
        flow=args.flow,
        flow_weights=args.flow_weights,
        device=args.device,
    )
    if args.out:
        with replacing(args.out) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{args.samples} samples, {result['captions']}, {args.steps} steps, guidance scale {args.guidance_scale}")
    error = ", ".join(f"{name} {value} px" for name, value in result["flow error"].items())
    print(f"{args.flow} flow of clean drawn clips, distance to the drawn flow: {error}")
    for source in ("read off clean drawn clips", "read off samples"):
        counts = result[source]
        print(f"{source}: " + ", ".join(f"{k} {v}/{args.samples} ({v / args.samples:.1%})" for k, v in counts.items()))
    for source, summary in result["motion"].items():
        print(f"motion, {source}: " + ", ".join(f"{name} {value}" for name, value in summary.items()))
    for source, summary in result["faults"].items():
        print(f"faults, {source}: " + ", ".join(f"{name} {value}" for name, value in summary.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
