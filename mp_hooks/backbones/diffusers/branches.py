"""The ways in which pipelines call their denoiser on the branches of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.backbones.base import Site
from mp_hooks.backbones.diffusers.modules import call_site, uncompiled
from mp_hooks.backbones.diffusers.pipeline import Call, DiffusersPipeline
from mp_hooks.guidance import Step
from mp_hooks.guidance.numerics import all_finite


class BatchedGuidance(DiffusersPipeline):
    """Pipelines that call their denoiser on both branches of classifier-free guidance at once, [uncond, cond]."""

    shared: ClassVar[tuple[str, ...]] = ("image_rotary_emb",)  # arguments that both branches have as they are

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        call = self.bound(*args, **kwargs)
        latents = self.latents_in(call.arguments)
        rows = self.text_rows(call.arguments, latents.shape[2])
        if not self.do_classifier_free_guidance:
            return self.step(latents, rows, Call(call, None))
        negative, positive = rows.chunk(2)
        return self.step(latents.chunk(2)[1], positive, Call(call, negative))

    def own_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        """Its half of every argument that has a part for each sample, or for each frame of each."""
        if not self.do_classifier_free_guidance:
            return {}
        arguments = step.call.arguments.arguments
        whole = len(arguments[self.latents_argument])
        sizes = (whole, whole * self.latents_in(arguments).shape[2])
        number = 0 if rows is step.call.negative else 1

        def half(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and len(value) in sizes:
                return value.chunk(2)[number]
            if isinstance(value, dict):
                return {key: half(item) for key, item in value.items()}
            return type(value)(map(half, value)) if type(value) in (list, tuple) else value

        return {name: half(value) for name, value in arguments.items() if name not in self.shared}

    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        """The host's batch of both branches, of which the unconditional one is known from the updates."""
        output = self.branch(step, conditioning)
        if self.do_classifier_free_guidance:
            output = torch.cat([self.unconditional(step), output])
        return self.returned(step, output)

    def clean_in(self, step: Step, result: Any) -> Tensor:
        output = self.unpack(result[0], step.call.arguments.arguments)[:, : step.latents.shape[1]]
        unconditional, conditional = output.chunk(2) if self.do_classifier_free_guidance else (None, output)
        return self.clean(step, conditional, unconditional)


class SingleFrames(BatchedGuidance):
    """Those whose VAE knows single frames: a frame of latents is a frame of the clip, and any sub-clip will do."""

    view = None
    parts = True

    def clip_frames(self, latents: Tensor) -> int:
        return latents.shape[2]

    def latent_frames(self, frames: int) -> int:
        return frames

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype))


class SeparateGuidance(DiffusersPipeline):
    """Pipelines that call their denoiser on one branch after the other, the conditional one first.

    A step is guided at its conditional call; the second is answered with the branch that the updates computed.
    """

    second: ClassVar[str | None] = None  # a further denoiser, for the steps of little noise

    def begin(self) -> None:
        super().begin()
        self._conditional = False
        self._step: Step | None = None
        self._active = self.denoiser

    def watch_run(self) -> dict[Site, Callable[..., Any]]:
        sites = {**super().watch_run(), self.step_site(): self._turns}
        if self.second is not None and getattr(self.host, self.second, None) is not None:
            sites[call_site(getattr(self.host, self.second))] = self._turns_of_second
        return sites

    def _turns(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Tell the two calls of a step apart; the second has nothing to compute where the updates have done it."""
        if self.current is not None:
            self._conditional = not (self.do_classifier_free_guidance and self._conditional)
            if self._conditional:
                self._step = None
            elif self._step is not None and all_finite(self.unconditional(self._step)):
                return self.returned(self._step, self.unconditional(self._step))
        return original(*args, **kwargs)

    def _turns_of_second(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._active = self.second or self.denoiser
        try:
            return self._turns(partial(self._around_step, original), *args, **kwargs)
        finally:
            self._active = self.denoiser

    @property
    def network(self) -> nn.Module:
        return uncompiled(getattr(self.host, getattr(self, "_active", self.denoiser)))

    def modules(self) -> list[nn.Module]:
        second = self.second and getattr(self.host, self.second, None)
        return super().modules() if second is None else [*super().modules(), uncompiled(second)]

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        if not self._conditional:
            return None
        call = self.bound(*args, **kwargs)
        rows = self.text_rows(call.arguments, 0)
        negative = None
        if self.do_classifier_free_guidance:
            encoded = self.negative_text(call.arguments)
            self._negative = {name: value for name, value in encoded.items() if name in call.arguments}
            negative = self.text_rows(encoded, 0).to(rows)
        return self.step(self.latents_in(call.arguments), rows, Call(call, negative))

    def negative_text(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The denoiser's arguments that belong to the negative prompt."""
        if self.negative:
            return self.denoiser_text(self._encoded[0], self.negative)
        return self.denoiser_text(self._encoded[1], self.positive)

    def own_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        if rows is not step.call.negative:
            return {}
        given = step.call.arguments.arguments
        return {name: value.to(given[name]) for name, value in self._negative.items()}

    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        self._step = step
        return self.returned(step, self.branch(step, conditioning))

    def clean_in(self, step: Step, result: Any) -> Tensor:
        unconditional = self.unconditional(step) if self.do_classifier_free_guidance else None
        output = self.unpack(result[0], step.call.arguments.arguments)[:, : step.latents.shape[1]]
        return self.clean(step, output, unconditional)
