"""Does a discriminator see faults of motion, and from which noise level on? Asked where faults are known: mini clips.

`python -m mp_hooks.lab.mini.evaluate_discriminator DIR` prints: how it scores drawn clips with and without faults, and
whether its score follows what the tracker measures; what "steady" in the prompt does to the score of samples; and
whether it tells clean from faulty in z0_hat, which is what guidance shows it. All drawn clips pass the autoencoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.discriminator import FlowDiscriminator
from mp_hooks.discriminator.evaluation import auc
from mp_hooks.errors import exits_cleanly
from mp_hooks.flow import load_flow
from mp_hooks.lab.metrics import clip_logits, compare, rank_correlation
from mp_hooks.lab.mini.clips import STEADY, captions, draw, sample_scenes
from mp_hooks.lab.mini.evaluate import flicker
from mp_hooks.lab.mini.model import DISCRIMINATOR, PACKAGED, load_pipeline
from mp_hooks.lab.mini.tracking import jerk, track_object
from mp_hooks.lab.mini.train_discriminator import CHUNK, encoded, predicted, sampled

SEED = 800_000  # far from the seeds of training and of experiments
STEPS = [4, 8, 11, 14, 17, 20, 23]  # of 25


@torch.no_grad()
def evaluate(folder: Path, model: Path, clips: int, seed: int, steps: Sequence[int]) -> Iterable[str]:
    """What is found, line by line."""
    discriminator, pipe = FlowDiscriminator.from_pretrained(folder), load_pipeline(model)
    flow = load_flow(discriminator.config.flow)
    parts: dict[str, list[Tensor]] = {}
    for chunk in tqdm(range(clips // CHUNK), desc="clips", unit="batch"):
        number = seed + CHUNK * chunk
        scenes = sample_scenes(CHUNK, torch.Generator().manual_seed(number), fault_share=1.0, held_out=None)
        scenes.words[:, :2] = False
        prompts = captions(scenes)
        clean, faulty = (encoded(pipe, draw(drawn)) for drawn in (scenes.without_faults(), scenes))
        videos, predictions = sampled(pipe, prompts, number)
        steady, _ = sampled(pipe, [f"{STEADY} {prompt}" for prompt in prompts], number)
        decoded = {"clean": pipe.decode_latents(clean), "faulty": pipe.decode_latents(faulty)}
        shown = {**decoded, "samples": videos, STEADY: steady}
        for name, latents in (("clean", clean), ("faulty", faulty)):
            for step in steps:
                noise = torch.Generator().manual_seed(number)
                shown[f"{name} {step}"] = pipe.decode_latents(predicted(pipe, latents, prompts, step, noise))
        shown |= {f"samples {step}": pipe.decode_latents(predictions[step]) for step in steps}
        for name, batch in shown.items():
            parts.setdefault(name, []).append(clip_logits(batch, discriminator, flow))
        for name, batch in {**decoded, "samples": videos}.items():
            parts.setdefault(f"flicker of {name}", []).append(flicker(batch))
            jerks = torch.tensor([jerk(track_object(video).path) for video in batch])
            parts.setdefault(f"jerk of {name}", []).append(jerks)
    found = {name: torch.cat(values) for name, values in parts.items()}

    def separation(real: str, other: str) -> str:
        truth = torch.cat([torch.ones_like(found[real]), torch.zeros_like(found[other])])
        return f"{auc(torch.cat([found[real], found[other]]), truth):.2f}"

    for name in ("clean", "faulty", "samples", STEADY):
        yield f"mean logit, {name}: {found[name].mean():+.3f}"
    told = separation("clean", "faulty"), separation("clean", "samples")
    yield f"AUC per clip, clean against faulty: {told[0]}; samples: {told[1]}"
    rise = compare(found["samples"].tolist(), found[STEADY].tolist())
    way = float(found["clean"].mean() - found["samples"].mean())
    yield f'"{STEADY}" raises the logit of samples by {rise}, of {way:.3f} to clean clips: {rise.mean / way:.0%}'
    for measure in ("flicker", "jerk"):
        for names in (["clean", "faulty"], ["samples"]):
            score = torch.cat([found[name] for name in names])
            fault = torch.cat([found[f"{measure} of {name}"] for name in names])
            correlation = rank_correlation(score.tolist(), fault.tolist())
            yield f"rank correlation of the logit with {measure}, {' and '.join(names)}: {correlation}"
    for step in steps:
        both = separation(f"clean {step}", f"faulty {step}"), separation(f"clean {step}", f"samples {step}")
        yield f"AUC in z0_hat at step {step} of 25, clean against faulty: {both[0]}; samples: {both[1]}"


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.mini.evaluate_discriminator", description=__doc__)
    parser.add_argument("discriminator", type=Path, nargs="?", default=DISCRIMINATOR, metavar="DIR")
    parser.add_argument("--model", type=Path, default=PACKAGED, help="pipeline folder (default: the packaged one)")
    parser.add_argument("--clips", type=int, default=64, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of 25 (default: %(default)s)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for line in evaluate(args.discriminator, args.model, args.clips, args.seed, args.steps):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
