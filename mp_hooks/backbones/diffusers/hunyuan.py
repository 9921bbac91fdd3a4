"""HunyuanVideo, its image-to-video relatives and FramePack."""

from __future__ import annotations

from typing import ClassVar

from mp_hooks.backbones.diffusers.branches import SeparateGuidance
from mp_hooks.guidance import Step


class HunyuanVideo(SeparateGuidance):
    """Distilled: the guidance scale is an argument, and classifier-free guidance comes with true_cfg_scale.

    Llama reads the prompt in a template and sees the tokens; CLIP's pooled vector stays the prompt's. FramePack samples
    one section of the clip after the other: each has a guided window of its own.
    """

    name = "diffusers-hunyuan-video"
    pipelines = (
        *("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline", "HunyuanSkyreelsImageToVideoPipeline"),
        "HunyuanVideoFramepackPipeline",
    )
    mask_argument = "encoder_attention_mask"
    positive: ClassVar = {"encoder_hidden_states": 0, "pooled_projections": 1, "encoder_attention_mask": 2}
    negative: ClassVar = {}
    prompt_end = "<|eot_id|>"
    attention_blocks = ("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock")

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.arguments["true_cfg_scale"] > 1 and self.arguments["negative_prompt"] is not None

    def scale(self, step: Step) -> float:
        return self.arguments["true_cfg_scale"]

    def template_tokens(self) -> int:
        return self.arguments["prompt_template"].get("crop_start") or 0

    def given_frames(self, step: Step) -> int:
        return 1 if self.network.config.get("image_condition_type") == "token_replace" else 0
