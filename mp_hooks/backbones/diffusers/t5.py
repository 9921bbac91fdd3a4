"""Mochi, Allegro and Latte: both branches at once, text by T5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.branches import BatchedGuidance, SingleFrames


class Mochi(BatchedGuidance):
    """A schedule that rises to the clean end, T5 with a mask."""

    name = "diffusers-mochi"
    pipelines = ("MochiPipeline",)
    mask_argument = "encoder_attention_mask"
    positive: ClassVar = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
    attention_blocks = ("MochiTransformerBlock", "T5Block")
    frames_factor = "vae_temporal_scale_factor"


class Allegro(BatchedGuidance):
    """T5 with a mask, in rows that have a dimension more; every latent frame is four of the clip."""

    name = "diffusers-allegro"
    pipelines = ("AllegroPipeline",)
    copies_argument = None  # its call sets the number to 1
    mask_argument = "encoder_attention_mask"
    positive: ClassVar = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
    attention_blocks = ("AllegroTransformerBlock", "T5Block")
    view = None  # its VAE decodes in tiles

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        rows = arguments["encoder_hidden_states"]
        return super().text_rows({**arguments, "encoder_hidden_states": rows.flatten(0, -3)}, frames)

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Any]:
        arguments = super().text_arguments(rows, frames)
        return {**arguments, "encoder_hidden_states": arguments["encoder_hidden_states"].unsqueeze(1)}

    def clip_frames(self, latents: Tensor) -> int:
        return latents.shape[2] * self.host.vae_scale_factor_temporal

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """One sample at a time, as its tiles are."""
        latents = clean.to(self.host.vae.dtype).split(1)
        return torch.cat([self.host.decode_latents(one)[:, :, list(frames)] for one in latents])

    def latent_frames(self, frames: int) -> int:
        return -(-frames // self.host.vae_scale_factor_temporal)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.arguments["guidance_scale"] > 1


class Latte(SingleFrames):
    """T5, of whose rows a single prompt has no more than its own; a VAE of single frames."""

    name = "diffusers-latte"
    pipelines = ("LattePipeline",)
    copies_argument = "num_images_per_prompt"
    attention_blocks = ("BasicTransformerBlock", "T5Block")
    parts = False  # places in time are those of the whole clip

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype), len(frames))
