"""What MotionPrompt has to beat: tokens by random search, direct latent guidance, FreeInit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mp_hooks import backbones
from mp_hooks.backbones.diffusers.schedule import clean_latents
from mp_hooks.guidance import MotionPrompt, Step
from mp_hooks.guidance.method import TokenOptimizer, Update
from mp_hooks.guidance.schedule import guided_window
from mp_hooks.hooks import Hooks

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

LATENT_RATE = 0.02  # of LatentGuidance, chosen like the other defaults (docs/mini.md)


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
        config, schedule = self.method.config, self.pipe.scheduler.timesteps
        index = int((schedule - timestep).abs().argmin())
        if index in guided_window(len(schedule), config.start, config.stop):
            alpha = float(self.pipe.scheduler.alphas_cumprod[int(timestep)])
            clean = clean_latents(self.pipe.scheduler, latents, output, float(timestep))
            move = self._descend(clean) - clean
            # the same eps with z0_hat moved is the formula above
            latents = latents + alpha**0.5 * move
            if self.pipe.scheduler.config.prediction_type == "v_prediction":
                output = output - (1 - alpha) ** 0.5 * move
        return original(output, timestep, latents, **kwargs)

    def _descend(self, clean: Tensor) -> Tensor:
        nothing = torch.zeros(len(clean), 1, 1)
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


@contextmanager
def free_init(pipe: AnimateDiffPipeline) -> Iterator[None]:
    """diffusers' FreeInit with its own defaults: three samplings, each from the low frequencies of the last."""
    pipe.enable_free_init()
    try:
        yield
    finally:
        pipe.disable_free_init()
