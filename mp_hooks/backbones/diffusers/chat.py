"""Sana and EasyAnimate: both branches at once, text by language models."""

from __future__ import annotations

from typing import ClassVar

from mp_hooks.backbones.diffusers.branches import BatchedGuidance
from mp_hooks.guidance import Step


class SanaVideo(BatchedGuidance):
    """Gemma 2 with a mask, behind instructions; the VAE of Wan or of LTX-2."""

    name = "diffusers-sana-video"
    pipelines = ("SanaVideoPipeline", "SanaImageToVideoPipeline")
    mask_argument = "encoder_attention_mask"
    positive: ClassVar = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
    attention_blocks = ("SanaVideoTransformerBlock",)

    def template_tokens(self) -> int:
        instructions = self.arguments["complex_human_instruction"]
        return len(self.host.tokenizer.encode("\n".join(instructions))) if instructions else 0

    def given_frames(self, step: Step) -> int:
        return 1 if "ImageToVideo" in type(self.host).__name__ else 0


class EasyAnimate(BatchedGuidance):
    """Qwen2-VL in a chat template, without a mask for the denoiser."""

    name = "diffusers-easyanimate"
    pipelines = ("EasyAnimatePipeline", "EasyAnimateInpaintPipeline")
    copies_argument = "num_images_per_prompt"
    prompt_end = "<|im_end|>"
    attention_blocks = ("EasyAnimateTransformerBlock",)
    frames_factor = "vae_temporal_compression_ratio"
