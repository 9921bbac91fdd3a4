"""AnimateDiffPipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import SingleFrames
from mp_hooks.backbones.diffusers.text import clip_text
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput
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
    pipeline = "AnimateDiffPipeline"
    copies_argument = None  # its call sets the number to 1
    denoiser = "unet"
    latents_argument = "sample"
    position_layers = "SinusoidalPositionalEmbedding"

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        return arguments["encoder_hidden_states"][::frames]

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Tensor]:
        return {"encoder_hidden_states": rows.repeat_interleave(frames, dim=0)}

    @property
    def text(self) -> TextInput:
        return clip_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        how = {"clip_skip": self.host.clip_skip, "lora_scale": self.lora_scale}
        return self.host.encode_prompt(list(prompts), self.host._execution_device, 1, False, **how)[0]

    def sub_clip(self, step: Step, frames: range) -> Step | None:
        """None with FreeNoise, whose windows are cut for the whole clip."""
        return None if self.host.free_noise_enabled else super().sub_clip(step, frames)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype))
