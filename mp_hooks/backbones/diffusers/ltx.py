"""LTXPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.branches import BatchedGuidance
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step

AROUND = 2  # latent frames on each side of those that the frames asked for lie in


class LTX(BatchedGuidance):
    """Packed latents, flow matching, T5 with a mask, a VAE that sees both ways in time.

    No part of the clip can be decoded exactly: what is decoded are the latent frames of the frames asked for and
    `AROUND` on each side. Where the VAE is conditioned on a time step, the decoding has the pipeline's step but not its
    noise.
    """

    name = "diffusers-ltx"
    pipelines: ClassVar[tuple[str, ...]] = ("LTXPipeline", "LTXImageToVideoPipeline")
    channels_dimension = 2
    mask_argument = "encoder_attention_mask"
    positive: ClassVar = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
    frames_factor = "vae_temporal_compression_ratio"
    attention_blocks = ("LTXVideoTransformerBlock", "T5Block")
    other_blocks = ("LTXVideoResnetBlock3d",)
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

    def given_frames(self, step: Step) -> int:
        return 1 if "ImageToVideo" in type(self.host).__name__ else 0

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        return super().branch_arguments(step, rows) | {"num_frames": step.latents.shape[2]}

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
