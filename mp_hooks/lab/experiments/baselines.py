"""What MotionPrompt has to beat: tokens by random search, direct latent guidance, FreeInit, self-refining sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mp_hooks import backbones
from mp_hooks.backbones.diffusers.schedule import clean_latents
from mp_hooks.config import MotionPromptConfig
from mp_hooks.guidance import MotionPrompt, Step
from mp_hooks.guidance.method import TokenOptimizer, Update
from mp_hooks.guidance.schedule import guided_window
from mp_hooks.hooks import Hooks

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

LATENT_RATE = 0.02  # of LatentGuidance, chosen on the first mini model
UNCERTAIN = 0.25  # of SelfRefining: change of z0_hat, in deviations of the latents, beyond which a place is refined


class RandomSearch(TokenOptimizer):
    """The tokens by random search: a random step of the length Adam takes, kept for the samples whose loss it lowers.

    Two forward passes an iteration, which cost what one forward and backward pass do when only tokens need a gradient.
    """

    def optimise(self, step: Step, record: Callable[[Update], None]) -> None:
        with torch.no_grad():
            for _ in range(self.config.iterations):
                pairs = self.draw_pairs(step)
                noise = torch.randn(self.tokens.shape, generator=self.generator).to(self.tokens)
                moved = self.tokens + self.rate * noise
                before, after = (self.loss(step, tokens, pairs).total for tokens in (self.tokens, moved))
                self.tokens = moved.where((after < before).view(-1, 1, 1), self.tokens)


class SearchingMotionPrompt(MotionPrompt):
    """MotionPrompt with `RandomSearch` in place of gradients."""

    optimizer_type = RandomSearch


class Unmoved(TokenOptimizer):
    """The tokens as they start, at the guided steps: what their words do without any guidance."""

    def optimise(self, step: Step, record: Callable[[Update], None]) -> None:
        return None


class UnmovedMotionPrompt(MotionPrompt):
    """MotionPrompt without an update."""

    optimizer_type = Unmoved


class LatentGuidance:
    """The poster's baseline: descend the gradient with respect to z0_hat itself, at the same steps, K times each.

    z_{t-1} = sqrt(abar_{t-1}) (z0_hat - gamma grad l(z0_hat)) + sqrt(1 - abar_{t-1}) eps, with the loss over all
    neighbouring frames and gamma such that a step moves z0_hat by `LATENT_RATE` of its own norm.
    """

    def __init__(self, pipe: AnimateDiffPipeline, method: MotionPrompt) -> None:
        self.pipe, self.method = pipe, method
        self.hooks = Hooks()
        self.adapter = backbones.adapter_for(pipe)

    def __enter__(self) -> None:
        self.hooks.wrap(self.pipe.scheduler, "step", self._around_step)

    def __exit__(self, *_: object) -> None:
        self.hooks.remove()

    def _around_step(
        self, original: Callable[..., Any], output: Tensor, timestep: Tensor, latents: Tensor, **kwargs: Any
    ) -> Any:
        if _is_guided(self.pipe, timestep, self.method.config):
            alpha = float(self.pipe.scheduler.alphas_cumprod[int(timestep)])
            clean = clean_latents(self.pipe.scheduler, latents, output, float(timestep))
            move = self._descend(clean) - clean
            # the same eps with z0_hat moved is the formula above
            latents = latents + alpha**0.5 * move
            if self.pipe.scheduler.config.prediction_type == "v_prediction":
                output = output - (1 - alpha) ** 0.5 * move
        return original(output, timestep, latents, **kwargs)

    def _descend(self, clean: Tensor) -> Tensor:
        nothing = clean.new_zeros(len(clean), 1, 1)
        for _ in range(self.method.config.iterations):
            with torch.enable_grad():
                moved = clean.detach().requires_grad_()
                frames = self.adapter.decode(moved, range(clean.shape[2])).float().transpose(1, 2)
                crops = torch.zeros(frames.shape[1] - 1)
                loss = self.method.objective(frames[:, :-1], frames[:, 1:], nothing, nothing[0], crops)
                (gradient,) = torch.autograd.grad(loss.total.sum(), moved)
            length, slope = (part.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) for part in (clean, gradient))
            clean = clean - LATENT_RATE * length * gradient / slope.clamp(min=1e-12)
        return clean


def _is_guided(pipe: AnimateDiffPipeline, timestep: Tensor, config: MotionPromptConfig) -> bool:
    """Whether guidance would take the step at this timestep."""
    schedule = pipe.scheduler.timesteps
    return int((schedule - timestep).abs().argmin()) in guided_window(len(schedule), config.start, config.stop)


@contextmanager
def free_init(pipe: AnimateDiffPipeline) -> Iterator[None]:
    """diffusers' FreeInit with its own defaults: three samplings, each from the low frequencies of the last."""
    pipe.enable_free_init()
    try:
        yield
    finally:
        pipe.disable_free_init()


class SelfRefining:
    """Self-refining video sampling (arXiv 2601.18577): predict z0_hat, perturb it to the same noise level, again.

    At the steps that guidance would take, 2 K + 1 times: on the mini model at 1.2 times the cost of guidance. Where two
    predictions in a row agree (`UNCERTAIN`, ours) latents stay as they are. The same noise for every sample.
    """

    def __init__(self, pipe: AnimateDiffPipeline, config: MotionPromptConfig) -> None:
        self.pipe, self.config = pipe, config
        self.refinements = 2 * config.iterations + 1
        self.hooks = Hooks()
        self.generator = torch.Generator().manual_seed(0)
        self.refined: Tensor | None = None  # latents of the step, to take the place of the pipeline's

    def __enter__(self) -> None:
        self.hooks.wrap(self.pipe.unet, "forward", self._around_denoiser)
        self.hooks.wrap(self.pipe.scheduler, "step", self._around_step)

    def __exit__(self, *_: object) -> None:
        self.hooks.remove()

    def _around_denoiser(
        self, original: Callable[..., Any], sample: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        output = original(sample, timestep, *args, **kwargs)
        if not _is_guided(self.pipe, timestep, self.config):
            return output
        alpha = float(self.pipe.scheduler.alphas_cumprod[int(timestep)])
        latents, both = sample.chunk(2)[0], output.sample
        clean = self._clean(both, latents, timestep)
        for _ in range(self.refinements):
            noise = torch.randn(latents[:1].shape, generator=self.generator).to(latents)
            perturbed = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
            fresh = original(torch.cat([perturbed] * 2), timestep, *args, **kwargs).sample
            again = self._clean(fresh, perturbed, timestep)
            changed = (again - clean).abs().mean(1, keepdim=True) > UNCERTAIN
            clean, latents = (torch.where(changed, *pair) for pair in ((again, clean), (perturbed, latents)))
            both = torch.where(torch.cat([changed] * 2), fresh, both)
        self.refined = latents
        output.sample = both
        return output

    def _around_step(
        self, original: Callable[..., Any], output: Tensor, timestep: Tensor, latents: Tensor, **kwargs: Any
    ) -> Any:
        refined, self.refined = self.refined, None
        return original(output, timestep, latents if refined is None else refined, **kwargs)

    def _clean(self, both: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        unconditional, conditional = both.chunk(2)
        output = unconditional + self.pipe.guidance_scale * (conditional - unconditional)
        return clean_latents(self.pipe.scheduler, latents, output, float(timestep))
