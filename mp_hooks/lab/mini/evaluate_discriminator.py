"""Does a discriminator see faults of motion, and from which noise level on? Asked where faults are known: mini clips.

`motionprompt discriminator eval MODEL --drawn N` prints: how it scores drawn clips with and without faults, and whether
its score follows the faults measured; what "steady" in the prompt does to the score of samples; and whether it tells
clean from faulty in z0_hat, which is what guidance shows it. All drawn clips pass the autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.backbones.diffusers.schedule import clean_latents
from mp_hooks.discriminator import FlowDiscriminator
from mp_hooks.discriminator.evaluation import auc
from mp_hooks.flow import load_flow
from mp_hooks.hooks import Hooks
from mp_hooks.lab.metrics import clip_logits, compare, rank_correlation
from mp_hooks.lab.mini.clips import STEADY, Scenes, captions, draw, sample_scenes
from mp_hooks.lab.mini.evaluate import fault_figures
from mp_hooks.lab.mini.model import GUIDANCE_SCALE, load_pipeline, sample, shape_of
from mp_hooks.lab.mini.rigidity import layer_motion
from mp_hooks.lab.mini.tracking import at_tracking_size, track_object
from mp_hooks.lab.mini.train_discriminator import CHUNK, redrawn

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

SEED = 800_000  # far from the seeds of training and of experiments
STEPS = [2, 4, 8, 11, 14, 17, 20, 23]  # of 25
REDRAWN = "clean, redrawn by the model"


@torch.no_grad()
def evaluate(
    discriminator: FlowDiscriminator,
    clips: int,
    flow_weights: Path | None = None,
    seed: int = SEED,
    steps: Sequence[int] = STEPS,
    device: str = "cpu",
) -> Iterator[str]:
    """What is found of so many clips of each kind, line by line. flow_weights: of the discriminator's estimator."""
    pipe, pyramid = load_pipeline().to(device), load_flow("pyramid", device=device)
    discriminator, flow = discriminator.to(device), load_flow(discriminator.config.flow, flow_weights, device)
    frames, size = shape_of(pipe)
    parts: dict[str, list[Tensor]] = {}
    for chunk in tqdm(range(-(-clips // CHUNK)), desc="drawn clips", unit="batch"):
        number = seed + CHUNK * chunk
        scenes = bending_scenes(torch.Generator().manual_seed(number), frames)
        scenes.words[:, :2] = False
        prompts, scenes = captions(scenes), scenes.to(device)
        drawn = draw(scenes.without_faults(), size)
        clean, faulty = encoded(pipe, drawn), encoded(pipe, draw(scenes, size))
        videos, predictions = sampled(pipe, prompts, number)
        steady, _ = sampled(pipe, [f"{STEADY} {prompt}" for prompt in prompts], number)
        decoded = {"clean": pipe.decode_latents(clean), "faulty": pipe.decode_latents(faulty)}
        again = redrawn(pipe, drawn, prompts, range(number, number + CHUNK))
        shown = {**decoded, REDRAWN: again, "samples": videos, STEADY: steady}
        for name, latents in (("clean", clean), ("faulty", faulty)):
            for step in steps:
                noise = torch.Generator().manual_seed(number)
                shown[f"{name} {step}"] = pipe.decode_latents(predicted(pipe, latents, prompts, step, noise))
        shown |= {f"samples {step}": pipe.decode_latents(predictions[step]) for step in steps}
        for name, batch in shown.items():
            parts.setdefault(name, []).append(clip_logits(batch, discriminator, flow).cpu())
        for name, batch in {**decoded, "samples": videos}.items():
            small = torch.stack([at_tracking_size(video) for video in batch])
            tracked = [track_object(video) for video in small.cpu()]
            moved = [layer_motion(video, pyramid) for video in small]
            for measure, values in fault_figures(small, tracked, moved).items():
                parts.setdefault(f"{measure} of {name}", []).append(torch.tensor(values))
    found = {name: torch.cat(values) for name, values in parts.items()}

    def separation(real: str, other: str) -> str:
        truth = torch.cat([torch.ones_like(found[real]), torch.zeros_like(found[other])])
        return f"{auc(torch.cat([found[real], found[other]]), truth):.2f}"

    for name in ("clean", REDRAWN, "faulty", "samples", STEADY):
        yield f"mean logit, {name}: {found[name].mean():+.3f}"
    told = separation("clean", "faulty"), separation("clean", "samples")
    yield f"AUC per clip, clean against faulty: {told[0]}; samples: {told[1]}"
    rise = compare(found["samples"].tolist(), found[STEADY].tolist())
    way = float(found["clean"].mean() - found["samples"].mean())
    yield f'"{STEADY}" raises the logit of samples by {rise}, of {way:.3f} to clean clips: {rise.mean / way:.0%}'
    for measure in ("morphing", "flicker", "jerk"):
        for names in (["clean", "faulty"], ["samples"]):
            score = torch.cat([found[name] for name in names])
            fault = torch.cat([found[f"{measure} of {name}"] for name in names])
            correlation = rank_correlation(score.tolist(), fault.tolist())
            yield f"rank correlation of the logit with {measure}, {' and '.join(names)}: {correlation}"
    for step in steps:
        both = separation(f"clean {step}", f"faulty {step}"), separation(f"clean {step}", f"samples {step}")
        yield f"AUC in z0_hat at step {step} of 25, clean against faulty: {both[0]}; samples: {both[1]}"


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


def predicted(
    pipe: AnimateDiffPipeline, latents: Tensor, prompts: Sequence[str], step: int, generator: torch.Generator
) -> Tensor:
    """z0_hat [b, c, t, h, w] of clean latents that carry as much noise as a sampling at `step`."""
    timestep = pipe.scheduler.timesteps[step]
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = pipe.scheduler.add_noise(latents, noise, timestep[None])
    text, empty = pipe.encode_prompt(list(prompts), latents.device, 1, True)
    conditional, unconditional = (
        pipe.unet(noisy, timestep, rows.repeat_interleave(latents.shape[2], dim=0)).sample for rows in (text, empty)
    )
    output = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
    return clean_latents(pipe.scheduler, noisy, output, float(timestep))
