"""LTXConditionPipeline."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mp_hooks.backbones.diffusers.ltx import LTX
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step, full_precision


class LTXCondition(LTX):
    """Each token has a noise of its own, less where pictures and clips are given."""

    name = "diffusers-ltx-condition"
    pipelines = ("LTXConditionPipeline",)

    def unpack(self, value: Tensor, arguments: dict[str, Any]) -> Tensor:
        host, given = self.host, self.arguments
        frames = (given["num_frames"] - 1) // host.vae_temporal_compression_ratio + 1
        size = (given[side] // host.vae_spatial_compression_ratio for side in ("height", "width"))
        shape = (frames, *size)
        if value.shape[1] != math.prod(shape):
            raise MotionPromptError(
                "MotionPrompt knows pictures and clips given at the first frame only (frame_index=0)"
            )
        return host._unpack_latents(value, *shape, *self._patch)

    def clean(self, step: Step, conditional: Tensor, unconditional: Tensor | None) -> Tensor:
        output = conditional if unconditional is None else self.combine(step, unconditional, conditional)
        latents, output = full_precision(step.latents), full_precision(output)
        times = step.call.arguments.arguments["timestep"][: len(latents)] / 1000
        noise = times.unsqueeze(-1).expand(-1, self.pack(latents).shape[1], latents.shape[1])
        return latents - self.unpack(noise, {}) * output
