"""AnimateDiffPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import BatchedGuidance
from mp_hooks.backbones.diffusers.text import clip_text
from mp_hooks.guidance.tokens import TextInput


class AnimateDiff(BatchedGuidance):
    """Text rows repeated per frame, a VAE of single frames."""

    name = "diffusers-animatediff"
    pipeline = "AnimateDiffPipeline"
    denoiser = "unet"
    latents_argument = "sample"

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        return arguments["encoder_hidden_states"][::frames]

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Tensor]:
        return {"encoder_hidden_states": rows.repeat_interleave(frames, dim=0)}

    def clip_frames(self, latents: Tensor) -> int:
        return latents.shape[2]

    @property
    def text(self) -> TextInput:
        return clip_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        device = self.host.text_encoder.device
        embeds, _ = self.host.encode_prompt(list(prompts), device, 1, False, clip_skip=self.host.clip_skip)
        return embeds

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype))
