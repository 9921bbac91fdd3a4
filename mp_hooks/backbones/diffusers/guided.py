"""HunyuanVideo 1.5 and Motif, which have a guider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.guiders import Guider


class HunyuanVideo15(Guider):
    """Qwen2.5-VL reads the prompt in a template and sees the tokens; ByT5, which reads what is in quotes, does not."""

    name = "diffusers-hunyuan-video15"
    pipelines = ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline")
    positive: ClassVar = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
    prompt_end = "<|im_end|>"
    attention_blocks = ("HunyuanVideo15TransformerBlock",)

    def template_tokens(self) -> int:
        return self.host.prompt_template_encode_start_idx

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """One sample at a time: the mask in the VAE's attention does not fit more (diffusers 0.42)."""
        return torch.cat([super(HunyuanVideo15, self).decode(one, frames) for one in clean.split(1)])


class MotifVideo(Guider):
    """The encoder of T5-Gemma 2, with a mask; Wan's VAE."""

    name = "diffusers-motif-video"
    pipelines = ("MotifVideoPipeline", "MotifVideoImage2VideoPipeline")
    positive: ClassVar = {"encoder_hidden_states": 0, "encoder_attention_mask": 2}
    attention_blocks = ("MotifVideoTransformerBlock", "MotifVideoSingleTransformerBlock")
