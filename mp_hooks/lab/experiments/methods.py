"""Ways to sample the same prompts and seeds: plain, guided by MotionPrompt, and the baselines it has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mp_hooks import backbones
from mp_hooks.config import PRESETS, MotionPromptConfig
from mp_hooks.guidance import MotionPrompt
from mp_hooks.lab.experiments.baselines import (
    LatentGuidance,
    SearchingMotionPrompt,
    SelfRefining,
    UnmovedMotionPrompt,
    free_init,
)
from mp_hooks.lab.mini.clips import STEADY
from mp_hooks.lab.mini.model import sample

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline


@dataclass(frozen=True)
class SamplingMethod:
    """One way to sample: what it is, what it does to the prompt, and what holds while the pipeline is called."""

    title: str
    prompt: Callable[[str, MotionPromptConfig], str] = lambda prompt, _: prompt
    around: Callable[[AnimateDiffPipeline, MotionPromptConfig], AbstractContextManager[None]] = lambda *_: nullcontext()


def guided_with(**options: Any) -> Callable[[AnimateDiffPipeline, MotionPromptConfig], AbstractContextManager[None]]:
    """Guidance with these options in place of the configuration's."""
    return lambda pipe, config: backbones.attached(pipe, MotionPrompt(replace(config, **options)))


BASELINE = "baseline"
GUIDED = "motionprompt"
METHODS = {
    BASELINE: SamplingMethod("plain sampling"),
    GUIDED: SamplingMethod("MotionPrompt", around=guided_with()),
    "photometric": SamplingMethod(
        "MotionPrompt with the photometric term, which is not the paper's", around=guided_with(lambda_photo=10.0)
    ),
    "discriminator": SamplingMethod(
        "MotionPrompt with the discriminator alone", around=guided_with(lambda_photo=0.0, lambda_tv=0.0)
    ),
    "variation": SamplingMethod(
        "MotionPrompt with the flow's variation alone", around=guided_with(lambda_photo=0.0, lambda_disc=0.0)
    ),
    "balanced": SamplingMethod("MotionPrompt, preset balanced", around=guided_with(**PRESETS["balanced"])),
    "unmoved": SamplingMethod(
        "the token in its place, never moved",
        around=lambda pipe, config: backbones.attached(pipe, UnmovedMotionPrompt(config)),
    ),
    "word": SamplingMethod("the initial word appended", prompt=lambda prompt, config: f"{prompt} {config.init_word}"),
    "steady": SamplingMethod(f"the word '{STEADY}' in front", prompt=lambda prompt, _: f"{STEADY} {prompt}"),
    "search": SamplingMethod(
        "tokens by random search", around=lambda pipe, config: backbones.attached(pipe, SearchingMotionPrompt(config))
    ),
    "freeinit": SamplingMethod("FreeInit", around=lambda pipe, _: free_init(pipe)),
    "latent": SamplingMethod(
        "direct latent guidance", around=lambda pipe, config: LatentGuidance(pipe, MotionPrompt(config))
    ),
    "refine": SamplingMethod("self-refining sampling", around=SelfRefining),
}


def sample_with(
    name: str, pipe: AnimateDiffPipeline, prompts: Sequence[str], seeds: Sequence[int], config: MotionPromptConfig
) -> Tensor:
    """Sample the prompts in one batch by a method of `METHODS`: videos [b, 3, t, h, w] in [-1, 1]."""
    method = METHODS[name]
    with method.around(pipe, config):
        return sample([method.prompt(prompt, config) for prompt in prompts], seeds, pipe=pipe, batch=len(prompts))
