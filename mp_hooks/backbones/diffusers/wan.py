"""WanPipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mp_hooks.backbones.base import Site
from mp_hooks.backbones.diffusers.causal import warmed
from mp_hooks.backbones.diffusers.pipeline import Call, DiffusersPipeline, uncompiled
from mp_hooks.backbones.diffusers.text import mask_counts, t5_text
from mp_hooks.guidance import Step
from mp_hooks.guidance.numerics import all_finite
from mp_hooks.guidance.tokens import TextInput


class Wan(DiffusersPipeline):
    """The branches of classifier-free guidance in calls of their own, flow matching, UMT5 with a mask, a causal VAE.

    A step is guided at its conditional call, the first of the two; the second is answered with the branch that the
    updates computed. The VAE decodes latent frames one after the other: what is decoded is the shortest prefix that
    holds the frames asked for, without a gradient to latent frames before them. Of Wan 2.2's two transformers, only the
    one for high noise is guided.
    """

    name = "diffusers-wan"
    pipeline = "WanPipeline"
    attention_blocks = ("WanTransformerBlock", "UMT5Block")
    other_blocks = ()  # the VAE's change their cache: not to be computed twice
    view = 28
    parts = True  # positions are relative

    def begin(self) -> None:
        self._conditional = False
        self._step: Step | None = None

    def watch_run(self) -> dict[Site, Callable[..., Any]]:
        return {(self.host, "encode_prompt"): self._note_negative, self.step_site(): self._turns}

    def _note_negative(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        positive, negative = original(*args, **kwargs)
        if negative is not None:
            self._negative = negative
        return positive, negative

    def _turns(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Tell the two calls of a step apart; the second has nothing to compute where the updates have done it."""
        if self.current is not None:
            self._conditional = not (self.do_classifier_free_guidance and self._conditional)
            if self._conditional:
                self._step = None
            elif self._step is not None and all_finite(self.unconditional(self._step)):
                return self.returned(self._step, self.unconditional(self._step))
        return original(*args, **kwargs)

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        if not self._conditional:
            return None
        call = self.bound(*args, **kwargs)
        rows = self.text_rows(call.arguments, 0)
        negative = self._negative if self.do_classifier_free_guidance else None
        return self.step(call.arguments["hidden_states"], rows, Call(call, negative))

    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        self._step = step
        return self.returned(step, self.branch(step, conditioning))

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        own, timestep = super().branch_arguments(step, rows), step.call.arguments.arguments["timestep"]
        if timestep.ndim == 2:  # one a patch (Wan 2.2's 5B model), alike in all frames
            _, high, wide = self.network.config.patch_size
            frames, height, width = step.latents.shape[2:]
            own["timestep"] = timestep[:, : frames * (height // high) * (width // wide)]
        return own

    def clean_in(self, step: Step, result: Any) -> Tensor:
        unconditional = self.unconditional(step) if self.do_classifier_free_guidance else None
        return self.clean(step, self.unpack(result[0], step.call.arguments.arguments), unconditional)

    @property
    def text(self) -> TextInput:
        return t5_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        length = self.arguments["max_sequence_length"]
        return self.host.encode_prompt(list(prompts), None, False, max_sequence_length=length)[0]

    def room_for(self, tokens: int) -> AbstractContextManager[None]:
        return mask_counts(self.host, tokens)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        vae = self.host.vae
        first, last = (-(-frame // self.host.vae_scale_factor_temporal) for frame in (min(frames), max(frames)))
        mean, deviation = (
            torch.tensor(values, dtype=clean.dtype, device=clean.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        latents = clean[:, :, : last + 1] * deviation + mean
        with warmed(uncompiled(vae).decoder, pieces=last + 1, first=first):
            return vae.decode(latents.to(vae.dtype), return_dict=False)[0][:, :, list(frames)]
