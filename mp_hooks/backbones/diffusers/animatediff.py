"""AnimateDiffPipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import Call, SingleFrames
from mp_hooks.guidance import Host, Step
from mp_hooks.hooks import Hooks


class MotionModules(SingleFrames):
    """Their layers add to each frame its place in time, which frames of a sub-clip keep."""

    position_layers: ClassVar[str]  # class of the layers that add it

    def branch(self, step: Step, rows: Tensor) -> Tensor:
        self._first = step.call.first
        return super().branch(step, rows)

    def during(self, step: Step, hooks: Hooks) -> None:
        """Not undone after a call: checkpointed blocks run again."""

        def place(original: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
            return original(F.pad(rows, (0, 0, self._first, 0)))[:, self._first :]

        for part in self.host.unet.modules():
            if type(part).__name__ == self.position_layers:
                hooks.wrap(part, "forward", place)


class AnimateDiff(MotionModules):
    """Text rows repeated per frame, a VAE of single frames."""

    name = "diffusers-animatediff"
    pipelines = (
        *("AnimateDiffPipeline", "AnimateDiffSDXLPipeline", "AnimateDiffControlNetPipeline"),
        *("AnimateDiffSparseControlNetPipeline", "AnimateDiffVideoToVideoPipeline"),
        *("AnimateDiffVideoToVideoControlNetPipeline", "PIAPipeline"),
    )
    copies_argument = None  # its call sets the number to 1
    denoiser = "unet"
    latents_argument = "sample"
    position_layers = "SinusoidalPositionalEmbedding"

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        return arguments["encoder_hidden_states"][::frames]

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Tensor]:
        return {"encoder_hidden_states": rows.repeat_interleave(frames, dim=0)}

    def sub_clip(self, step: Step, frames: range) -> Step | None:
        """None with FreeNoise, whose windows are cut for the whole clip."""
        return None if getattr(self.host, "free_noise_enabled", False) else super().sub_clip(step, frames)


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
