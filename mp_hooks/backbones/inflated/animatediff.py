"""AnimateDiff's own code: an AnimationPipeline on an early diffusers. Facts carry the commit in patches/."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mp_hooks.backbones.diffusers.animatediff import MotionModules
from mp_hooks.backbones.inflated.pipeline import InflatedStableDiffusion
from mp_hooks.guidance import Step


class AnimateDiff(MotionModules, InflatedStableDiffusion):
    """With SparseCtrl or without.

    SparseCtrl reads the prompt too, and hands the UNet residuals before it is called. They stay those of the original
    prompt, as given pictures are: the tokens act, and get their gradient, through the UNet alone. Running SparseCtrl
    again for every update would cost its forward and backward each time, and changes the gradient slightly.
    """

    name = "animatediff"
    module = "animatediff.pipelines.pipeline_animation"
    pipeline = "AnimationPipeline"
    position_layers = "PositionalEncoding"
    attention_blocks = ("BasicTransformerBlock", "TemporalTransformerBlock")

    def prompts(self, call: dict[str, Any]) -> list[str] | None:
        prompts, given = super().prompts(call), call.get("latents")
        if prompts is None or given is None or not isinstance(call["prompt"], str):
            return prompts
        return prompts * len(given)  # one for all

    def controlled(self, step: Step) -> bool:
        """SparseCtrl's residuals are cut like the latents."""
        return False

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        """Text rows, and of SparseCtrl's residuals, which the host computed for both, this branch's and its frames'."""
        arguments = super().branch_arguments(step, rows)
        given = step.call.arguments.arguments
        middle = given.get("mid_block_additional_residual")
        if middle is not None:
            residuals = (*given["down_block_additional_residuals"], middle)
            branches = 2 if self.do_classifier_free_guidance else 1
            place = 0 if rows is step.call.negative else branches - 1
            frames = slice(step.call.first, step.call.first + step.frames)
            own = [residual.chunk(branches)[place][:, :, frames] for residual in residuals]
            arguments |= {"down_block_additional_residuals": own[:-1], "mid_block_additional_residual": own[-1]}
        return arguments
