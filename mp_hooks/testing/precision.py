"""How close the tokens' gradient in half precision is to that in float32, on a tiny random pipeline on the CPU.

python -m mp_hooks.testing.precision NAME [--dtype bfloat16] [--repo DIR] [--steps N] [--mp-*]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig, add_config_flags, config_from_flags
from mp_hooks.errors import MotionPromptError, exits_cleanly
from mp_hooks.guidance import MotionPrompt, Run
from mp_hooks.guidance.method import Update
from mp_hooks.guidance.numerics import weights_in_float32
from mp_hooks.testing import tiny
from mp_hooks.testing.diffusers import DiffusersCase


@dataclass(frozen=True)
class Comparison:
    """One gradient. cosine: of half precision and float32, for each sample [b], NaN where float16 overflowed."""

    step: int
    timestep: float
    loss_scale: float
    norm: list[float]
    cosine: list[float]
    updated: list[bool]


def compare_update(run: Run, update: Update) -> Comparison:
    """Its gradient against the one in float32, at the same latents, tokens and frame pairs."""
    with weights_in_float32(*run.host.modules()):
        step = run.host.in_float32(update.step)
        _, motion, pull = run.optimizer.gradient(step, update.before.requires_grad_(), update.pairs, scale=1.0)
    ours, theirs = update.gradient.flatten(1).double(), (motion + pull).flatten(1).double()
    return Comparison(
        step=update.step.index,
        timestep=update.step.timestep,
        loss_scale=update.loss_scale,
        norm=theirs.norm(dim=1).tolist(),
        cosine=torch.cosine_similarity(ours, theirs).tolist(),
        updated=update.moved.tolist(),
    )


def compare(
    case: DiffusersCase, config: MotionPromptConfig, steps: int, dtype: torch.dtype = torch.float16
) -> list[Comparison]:
    """Sample the case's prompts as one batch in half precision, guided, and compare every gradient on the way."""
    method, found = MotionPrompt(config), []
    method.observers.append(lambda run, update: found.append(compare_update(run, update)))
    with case.open() as pipe:
        for module in backbones.adapter_for(pipe).modules():
            module.to(dtype)
        with backbones.attached(pipe, method), torch.no_grad():
            case.sample(pipe, case.prompts, seed=7, num_inference_steps=steps)
    return found


def table(found: list[Comparison]) -> str:
    """A line for each update, and what they come to."""
    lines = [f"{'step':4} {'timestep':>8} {'loss scale':>10}  norm and cosine of each sample"]
    for one in found:
        samples = (f"{norm:10.3g} {cosine:8.5f}" for norm, cosine in zip(one.norm, one.cosine, strict=True))
        lines.append(f"{one.step:4} {one.timestep:8.0f} {one.loss_scale:10.0f}  {'  '.join(samples)}")
    kept = [cosine for one in found for cosine, moved in zip(one.cosine, one.updated, strict=True) if moved]
    skipped = sum(not moved for one in found for moved in one.updated)
    ordered = sorted(kept) or [0.0]
    tenth, median = ordered[len(ordered) // 10], statistics.median(ordered)
    lines.append(
        f"{len(kept)} updates, {skipped} skipped; cosine: median {median:.4f}, 10th percentile {tenth:.4f}, "
        f"least {ordered[0]:.4f}"
    )
    return "\n".join(lines)


@exits_cleanly
def main() -> int:
    """Print a line for each update."""
    parser = argparse.ArgumentParser(description="Compare the tokens' gradient in half precision to that in float32.")
    parser.add_argument("name", help="of the adapter")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="of the host")
    parser.add_argument("--repo", type=Path, metavar="DIR", help="checkout of the host (default: in third_party)")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler (default: 50)")
    add_config_flags(parser)
    args = parser.parse_args()
    case = tiny(args.name, args.repo)
    if not isinstance(case, DiffusersCase):
        raise MotionPromptError(f"{args.name} is not run in half precision here; give a diffusers pipeline or LaVie")
    print(table(compare(case, config_from_flags(args), args.steps, getattr(torch, args.dtype))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
