"""AnimateDiffPAGPipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.animatediff import AnimateDiff
from mp_hooks.backbones.diffusers.pipeline import Call
from mp_hooks.guidance import Host, Step


class AnimateDiffPAG(AnimateDiff):
    """A third branch, of the same text with its attention perturbed; layers want all of them in one batch."""

    name = "diffusers-animatediff-pag"
    pipelines = ("AnimateDiffPAGPipeline",)

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        call = self.bound(*args, **kwargs)
        latents = self.latents_in(call.arguments)
        rows = self.text_rows(call.arguments, latents.shape[2])
        self._branches = 1 + self.do_classifier_free_guidance + self.host.do_perturbed_attention_guidance
        number = 1 if self.do_classifier_free_guidance else 0
        parts = rows.chunk(self._branches)
        return self.step(latents.chunk(self._branches)[0], parts[number], Call(call, parts[0] if number else None))

    def own_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        return {}

    def whole(self, step: Step, rows: Tensor) -> Tensor:
        """The denoiser's output for the batch of all branches."""
        negative = [] if step.call.negative is None else [step.call.negative.to(rows)]
        texts = negative + [rows] * (self._branches - len(negative))
        latents = torch.cat([step.latents] * self._branches)
        return self.branch(replace(step, latents=latents), torch.cat(texts))

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        output = self.whole(step, conditioning)
        guided = self.do_classifier_free_guidance
        if self.host.do_perturbed_attention_guidance:
            scale, time = self.host.guidance_scale, step.timestep
            return self.clean(step, self.host._apply_perturbed_attention_guidance(output, guided, scale, time), None)
        parts = output.chunk(self._branches)
        return self.clean(step, parts[-1], parts[0] if guided else None)

    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        return self.returned(step, self.whole(step, conditioning))

    parts, clean_in = False, Host.clean_in
