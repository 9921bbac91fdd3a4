"""TextToVideoSDPipeline (ModelScope)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import SingleFrames
from mp_hooks.backbones.diffusers.text import clip_text
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput


class TextToVideoSD(SingleFrames):
    """Both branches in one call, a guidance scale that is not stored, a VAE of single frames."""

    name = "diffusers-text-to-video-sd"
    pipeline = "TextToVideoSDPipeline"
    denoiser = "unet"
    latents_argument = "sample"

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.arguments["guidance_scale"] > 1

    def scale(self, step: Step) -> float:
        return self.arguments["guidance_scale"]

    @property
    def text(self) -> TextInput:
        return clip_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        how = {"clip_skip": self.arguments["clip_skip"], "lora_scale": self.lora_scale}
        return self.host.encode_prompt(list(prompts), self.host._execution_device, 1, False, **how)[0]

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype))
