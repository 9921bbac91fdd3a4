"""WanPipeline, and what shares its transformer or its VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import SeparateGuidance
from mp_hooks.guidance import Step


class Wan(SeparateGuidance):
    """Flow matching, UMT5 with a mask, a causal VAE.

    The VAE decodes latent frames one after the other: what is decoded is the shortest prefix that holds the frames
    asked for. Wan 2.2 has a second transformer for the steps of little noise. Helios samples one section of the clip after the
    other: each has a guided window of its own.
    """

    name = "diffusers-wan"
    pipelines = (
        *("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"),
        *("LucyEditPipeline", "ChronoEditPipeline", "SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
        "HeliosPipeline",
    )
    second = "transformer_2"
    attention_blocks = (
        *("WanTransformerBlock", "WanVACETransformerBlock", "SkyReelsV2TransformerBlock"),
        "HeliosTransformerBlock",
    )

    def scale(self, step: Step) -> float:
        return self.host._guidance_scale_2 if self._active == self.second else self.host.guidance_scale

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        vae = self.host.vae
        needed = -(-max(frames) // self.host.vae_scale_factor_temporal) + 1
        mean, deviation = (
            torch.tensor(values, dtype=clean.dtype, device=clean.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        latents = clean[:, :, :needed] * deviation + mean
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0][:, :, list(frames)]
