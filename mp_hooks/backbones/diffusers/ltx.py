"""LTXPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import BatchedGuidance
from mp_hooks.backbones.diffusers.text import mask_counts, t5_text
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput

AROUND = 2  # latent frames on each side of those that the frames asked for lie in


class LTX(BatchedGuidance):
    """Packed latents, flow matching, T5 with a mask, a VAE that sees both ways in time.

    The text rows of the contract carry the mask as their last column, so that a conditioning and its mask stay
    together. No part of the clip can be decoded exactly: what is decoded are the latent frames of the frames asked for
    and `AROUND` on each side. Where the VAE is conditioned on a time step, the decoding has the pipeline's step but not
    its noise.
    """

    name = "diffusers-ltx"
    pipeline = "LTXPipeline"
    attention_blocks = ("LTXVideoTransformerBlock", "T5Block")
    other_blocks = ("LTXVideoResnetBlock3d",)
    view = 32
    parts = True  # positions are relative

    def prompts(self, call: dict[str, Any]) -> list[str] | None:
        prompts = super().prompts(call)
        if prompts is not None and 1 < self.copies(call) < len(prompts):
            raise MotionPromptError(
                "LTXPipeline gives videos the masks of other prompts where several prompts have several videos each "
                "(diffusers 0.42); call it once a prompt"
            )
        return prompts

    def unpack(self, value: Tensor, arguments: dict[str, Any]) -> Tensor:
        size = (arguments["num_frames"], arguments["height"], arguments["width"])
        return self.host._unpack_latents(value, *size, *self._patch)

    def pack(self, latents: Tensor) -> Tensor:
        return self.host._pack_latents(latents, *self._patch)

    @property
    def _patch(self) -> tuple[int, int]:
        return self.host.transformer_spatial_patch_size, self.host.transformer_temporal_patch_size

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        return with_mask(arguments["encoder_hidden_states"], arguments["encoder_attention_mask"])

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Tensor]:
        return {"encoder_hidden_states": rows[..., :-1], "encoder_attention_mask": rows[..., -1]}

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        return super().branch_arguments(step, rows) | {"num_frames": step.latents.shape[2]}

    def latent_frames(self, frames: int) -> int:
        return -(-(frames - 1) // self.host.vae_temporal_compression_ratio) + 1

    def clip_frames(self, latents: Tensor) -> int:
        return (latents.shape[2] - 1) * self.host.vae_temporal_compression_ratio + 1

    def combine(self, step: Step, unconditional: Tensor, conditional: Tensor) -> Tensor:
        combined = super().combine(step, unconditional, conditional)
        rescale = getattr(self.host, "guidance_rescale", 0.0)  # since diffusers 0.34
        if rescale <= 0:
            return combined
        from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

        return rescale_noise_cfg(combined, conditional, guidance_rescale=rescale)

    @property
    def text(self) -> TextInput:
        return t5_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        length = self.arguments["max_sequence_length"]
        return with_mask(*self.host.encode_prompt(list(prompts), None, False, max_sequence_length=length)[:2])

    def room_for(self, tokens: int) -> AbstractContextManager[None]:
        return mask_counts(self.host, tokens)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        vae, factor = self.host.vae, self.host.vae_temporal_compression_ratio
        first = max(-(-min(frames) // factor) - AROUND, 0)
        clean = clean[:, :, first : -(-max(frames) // factor) + AROUND + 1]
        latents = self.host._denormalize_latents(clean, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        timestep = None
        if vae.config.timestep_conditioning:
            timestep = torch.as_tensor(self.arguments["decode_timestep"], dtype=vae.dtype, device=clean.device)
            timestep = timestep.expand(len(clean))
        decoded = vae.decode(latents.to(vae.dtype), timestep, return_dict=False)[0]
        return decoded[:, :, [frame - first * factor for frame in frames]]  # the first of all decodes to one frame


def with_mask(rows: Tensor, mask: Tensor) -> Tensor:
    """Text rows [b, l, d] with their mask [b, l] as one column more."""
    return torch.cat([rows, mask.to(rows.dtype).unsqueeze(-1)], dim=-1)
