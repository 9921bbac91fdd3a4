"""AnimateDiffPipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mp_hooks.backbones.diffusers.branches import SingleFrames
from mp_hooks.guidance import Step
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
    pipelines: ClassVar[tuple[str, ...]] = (
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
