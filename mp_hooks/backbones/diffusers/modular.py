"""WanModularPipeline: Wan as blocks, with a guider."""

from __future__ import annotations

from typing import Any

from mp_hooks.backbones.base import Site
from mp_hooks.backbones.diffusers.guiders import Guider
from mp_hooks.backbones.diffusers.wan import Wan
from mp_hooks.errors import MotionPromptError


class WanModular(Guider):
    """A block encodes the prompt, another calls the denoiser; components may come from a ComponentsManager."""

    name = "diffusers-wan-modular"
    pipelines = ("WanModularPipeline",)
    prepares = "prepare_inputs_from_block_state"
    mask_argument = None
    attention_blocks, other_blocks, view = Wan.attention_blocks, Wan.other_blocks, Wan.view
    decode = Wan.decode

    def prompts(self, call: dict[str, Any]) -> list[str] | None:
        return super().prompts({**call, **call["kwargs"]})

    def begin(self) -> None:
        super().begin()
        self.arguments = {**self.arguments, **self.arguments["kwargs"]}

    def encoding_site(self) -> Site:
        blocks = [self.host._blocks]
        while blocks:
            block = blocks.pop()
            if hasattr(block, "encode_prompt"):
                return block, "encode_prompt"
            blocks += getattr(block, "sub_blocks", {}).values()
        raise MotionPromptError("MotionPrompt needs the pipeline to encode the prompt; keep its text_encoder block")
