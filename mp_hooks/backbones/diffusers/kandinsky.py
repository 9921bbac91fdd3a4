"""Kandinsky 5, text-to-video."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.branches import SeparateGuidance


class Kandinsky5(SeparateGuidance):
    """Latents [b, t, h, w, c]; Qwen2.5-VL in a template, whose rows grow by the tokens; CLIP's pooled vector."""

    name = "diffusers-kandinsky5"
    pipelines = ("Kandinsky5T2VPipeline",)
    channels_dimension = -1
    positive: ClassVar = {"encoder_hidden_states": 0, "pooled_projections": 1}
    negative: ClassVar = {}
    prompt_end = "<|im_end|>"
    attention_blocks = ("Kandinsky5TransformerDecoderBlock", "Kandinsky5TransformerEncoderBlock")

    def unpack(self, value: Tensor, arguments: dict[str, Any]) -> Tensor:
        return value.permute(0, 4, 1, 2, 3)

    def pack(self, latents: Tensor) -> Tensor:
        return latents.permute(0, 2, 3, 4, 1)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.host.guidance_scale > 1

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Any]:
        return {"encoder_hidden_states": rows, "text_rope_pos": torch.arange(rows.shape[1], device=rows.device)}

    def template_tokens(self) -> int:
        return self.host.prompt_template_encode_start_idx
