"""MotionPrompt itself (arXiv 2411.15540): at a guided step, K updates of the learnable tokens' embeddings.

This module knows no backbone. A `Host` answers for the model that samples; `mp_hooks.backbones` has one for each.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mp_hooks.config import OPTIMIZERS, MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.contract import Anchor, Host, Step
from mp_hooks.guidance.decoder import TinyDecoder
from mp_hooks.guidance.numerics import LossScale, full_precision, runs_in_float16
from mp_hooks.guidance.objective import Loss, Objective
from mp_hooks.guidance.outcome import Outcome
from mp_hooks.guidance.schedule import Pairs, draw_pairs, draw_place
from mp_hooks.guidance.tokens import initial_tokens, injected


@dataclass(frozen=True)
class Update:
    """One update of the tokens, as it was made.

    step: what it looked at, a sub-clip beginning with the clip's frame `first`, or the whole. before, after: T
    [b, n, d]. gradient: of the total loss with respect to T, [b, n, d]. moved: which samples' tokens it moved, [b].
    """

    iteration: int
    step: Step
    first: int
    pairs: Pairs
    before: Tensor
    after: Tensor
    loss: Loss
    gradient: Tensor
    moved: Tensor
    loss_scale: float
    seconds: float


FIXED_PAIRS = 4  # on which the loss before and after a step's updates is compared


@dataclass(frozen=True)
class Descent:
    """The total loss [b] on `FIXED_PAIRS` frame pairs, the same at every guided step, before and after its updates."""

    step: Step
    before: Tensor
    after: Tensor

    def record(self) -> dict[str, Any]:
        """For the trace; lists hold a value per sample."""
        return {
            "step": self.step.index,
            "timestep": self.step.timestep,
            "before": self.before.tolist(),
            "after": self.after.tolist(),
        }


class TokenOptimizer:
    """The learnable tokens of one sampling, T [b, n, d], carried from step to step, and how a guided step moves them.

    initial: T0 [n, d]. generator: of frame pairs, so that the host's noise stays its own.
    """

    def __init__(
        self,
        config: MotionPromptConfig,
        objective: Objective,
        decoder: TinyDecoder | None,
        host: Host,
        prompts: Sequence[str],
        outcome: Outcome,
        loss_scale: LossScale,
    ) -> None:
        self.config, self.objective, self.decoder = config, objective, decoder
        self.host, self.prompts, self.outcome, self.loss_scale = host, prompts, outcome, loss_scale
        self._text = host.text
        word = host.word_ids(config.init_word)
        if not word:
            raise MotionPromptError(f"init_word '{config.init_word}' is nothing to the host's tokenizer; give a word")
        self.initial = initial_tokens(self._text, word, config.tokens)
        self.tokens = self.initial.expand(len(prompts), -1, -1).clone()
        self.seed = host.noise_seed() if config.seed is None else config.seed
        self.generator = torch.Generator().manual_seed(self.seed)

    @cached_property
    def rate(self) -> float:
        """The learning rate: embeddings of one model are a hundred times another's, and Adam moves each by about it."""
        if self.config.learning_rate is not None:
            return self.config.learning_rate
        return self.config.relative_rate * float(self.initial.square().mean().sqrt())

    def optimise(self, step: Step, record: Callable[[Update], None]) -> Descent | None:
        """K updates of T at z_t: a fresh optimiser each step, T carried over. Each update is handed to `record`.

        Returns how the loss on fixed pairs fell, where the configuration asks for it: two more forward passes.
        """
        tokens = self.tokens.detach().requires_grad_()
        optimizer = getattr(torch.optim, OPTIMIZERS[self.config.optimizer])([tokens], lr=self.rate)
        step, first = self.looked_at(step)
        loss_before = self.fixed_loss(step) if self.config.descent else None
        for iteration in range(self.config.iterations):
            began = time.perf_counter()
            before = tokens.detach().clone()
            scale = self.loss_scale.value if runs_in_float16(step.latents) else 1.0
            pairs = self.draw_pairs(step)
            loss, motion, pull = self.gradient(step, tokens, pairs, scale)
            moved = self.move(tokens, optimizer, loss, motion, pull)
            after, seconds = tokens.detach().clone(), time.perf_counter() - began
            record(Update(iteration, step, first, pairs, before, after, loss, motion + pull, moved, scale, seconds))
        self.tokens = tokens.detach()
        return None if loss_before is None else Descent(step, loss_before, self.fixed_loss(step))

    def fixed_loss(self, step: Step) -> Tensor:
        """The total loss [b] of T as it is, on pairs that are the same at every step."""
        with torch.no_grad():
            return self.loss(step, self.tokens, self.fixed_pairs(step)).total

    def fixed_pairs(self, step: Step) -> Pairs:
        """`FIXED_PAIRS` frame pairs, the same at every step."""
        config, generator, view = self.config, torch.Generator().manual_seed(self.seed), self.host.view is not None
        return draw_pairs(step.frames, FIXED_PAIRS, config.min_interval, config.max_interval, generator, view)

    def encode(self, tokens: Tensor) -> Tensor:
        """c(T) = text_encoder(P + S), the rows of S being T."""
        with self.host.room_for(self.config.tokens), injected(self._text, tokens, self.config.placement) as report:
            conditioning = self.host.encode(self.prompts)
        if report["lost"] and not self.outcome.lost:
            self.outcome.lost = report["lost"]
            warnings.warn(
                f"a prompt fills the host's text context: its last {report['lost']} tokens make room for the "
                f"{self.config.tokens} learnable ones",
                stacklevel=2,
            )
        return conditioning

    def draw_pairs(self, step: Step) -> Pairs:
        """Random frame pairs (i, j) for an update."""
        config, view = self.config, self.host.view is not None
        return draw_pairs(step.frames, config.pairs, config.min_interval, config.max_interval, self.generator, view)

    def loss(self, step: Step, tokens: Tensor, pairs: Pairs) -> Loss:
        """l_total at these pairs: z0_hat under c(T), the pairs' frames decoded, their flow, what is made of it."""
        if self.decoder is not None and not self.decoder.fits(step):
            self.decoder = None
            warnings.warn("the tiny decoder does not know this host's latents: its own decoder is taken", stacklevel=2)
        clean = full_precision(self.host.predict_clean(step, self.encode(tokens)))
        if step.anchor is not None:
            clean = step.anchor(clean)
        with torch.autocast(clean.device.type, enabled=False):
            return self.objective(*self.pixels(clean, pairs), tokens, self.initial, pairs.crops[:, 0])

    def pixels(self, clean: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The pairs' earlier and later frames in [-1, 1], each [b, p, 3, h, w]; what the host's view shows of them."""
        decode = self.decoder.to(clean.device) if self.decoder else self.host.decode
        if self.host.view is not None:
            views = [view_of(clean, self.host.view, crop) for crop in pairs.crops.tolist()]
            both = map(decode, views, pairs.frames.tolist())
            first, second = torch.stack([full_precision(frames) for frames in both], 1).unbind(3)
            return first, second
        wanted = sorted({frame for pair in pairs.frames.tolist() for frame in pair})
        frames = full_precision(decode(clean, wanted)).transpose(1, 2)  # [b, n, 3, h, w]
        first, second = (frames[:, [wanted.index(frame) for frame in side]] for side in pairs.frames.T.tolist())
        return first, second

    def gradient(self, step: Step, tokens: Tensor, pairs: Pairs, scale: float) -> tuple[Loss, Tensor, Tensor]:
        """The loss at these pairs, and the gradients of its motion terms and of its regulariser, each [b, n, d].

        scale: what the motion terms are multiplied by on their way back through a float16 host.
        """
        loss = self.loss(step, tokens, pairs)
        motion = None
        with torch.autocast(tokens.device.type, enabled=False):
            if loss.motion.requires_grad:  # not where the denoiser has no backward pass at all
                (motion,) = torch.autograd.grad(loss.motion.sum() * scale, tokens, allow_unused=True)
            (pull,) = torch.autograd.grad(loss.pull.sum(), tokens)
        return loss, torch.zeros_like(tokens) if motion is None else motion / scale, pull

    def move(
        self, tokens: Tensor, optimizer: torch.optim.Optimizer, loss: Loss, motion: Tensor, pull: Tensor
    ) -> Tensor:
        """One update of `tokens` in place; returns which samples' it moved, [b].

        A sample keeps its tokens where loss or gradient are not finite, or the motion terms' gradient is exactly zero.
        """
        gradient = motion + pull
        finite = gradient.isfinite().flatten(1).all(1) & loss.total.detach().isfinite()
        moved = finite & (motion != 0).flatten(1).any(1)
        keep = moved.view(-1, 1, 1)
        before = tokens.detach().clone()
        tokens.grad = gradient.where(keep, torch.zeros_like(gradient))
        optimizer.step()
        with torch.no_grad():
            tokens.copy_(tokens.where(keep, before))
        skipped = int((~finite).sum())
        if skipped:
            self.loss_scale.back_off()
        self.outcome.count_updates(len(moved), skipped=skipped, still=int((finite & ~moved).sum()))
        return moved

    # --- a part of the clip

    sub_clip: int | None = None  # frames of the clip that updates look at; None for all
    before: tuple[int, Tensor] | None = None  # index and z0_hat of the last step

    def looked_at(self, step: Step) -> tuple[Step, int]:
        """What the updates look at, a random part of the clip if so configured, and its first frame."""
        if self.sub_clip is None or self.sub_clip >= step.frames:
            return step, 0
        total, length = step.latents.shape[2], self.host.latent_frames(self.sub_clip)
        place = draw_place(total, length, self.generator)
        part = self.host.sub_clip(step, range(place, place + length)) if length < total else None
        if part is None:
            self.sub_clip = None
            warnings.warn("no part of this clip can be had alone: subclip has no effect here", stacklevel=2)
            return step, 0
        if self.before is not None and step.index - self.before[0] in (0, 1):  # 0: the second call of one step
            part = replace(part, anchor=Anchor(self.before[1][:, :, place : place + length]))
        return part, place * (step.frames - part.frames) // (total - length)


def view_of(clean: Tensor, side: int, place: Sequence[float]) -> Tensor:
    """A square of z0_hat, of `side` latents or the frame's height or width where that is less, at one of its places.

    [b, c, t, h, w] -> [b, c, t, s, s]. place: how far down and across in [0, 1); if uniform, every place is as likely.
    """
    side = min(side, *clean.shape[-2:])
    top, left = (int(part * (size - side + 1)) for part, size in zip(place, clean.shape[-2:], strict=True))
    return clean[..., top : top + side, left : left + side]
