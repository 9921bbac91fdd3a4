"""WanPipeline, and what shares its transformer or its VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mp_hooks.backbones.diffusers.branches import SeparateGuidance
from mp_hooks.backbones.diffusers.causal import warmed
from mp_hooks.backbones.diffusers.modules import uncompiled
from mp_hooks.guidance import Step


class Wan(SeparateGuidance):
    """Flow matching, UMT5 with a mask, a causal VAE.

    The VAE decodes latent frames one after the other: what is decoded is the shortest prefix that holds the frames
    asked for, without a gradient to latent frames before them. Wan 2.2 has a second transformer for the steps of little
    noise. Helios samples one section of the clip after the other: each has a guided window of its own.
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
        *("HeliosTransformerBlock", "UMT5Block"),
    )
    other_blocks = ()  # the VAE's change their cache: not to be computed twice
    view = 28
    parts = True  # positions are relative

    def scale(self, step: Step) -> float:
        return self.host._guidance_scale_2 if self._active == self.second else self.host.guidance_scale

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        own, timestep = super().branch_arguments(step, rows), step.call.arguments.arguments["timestep"]
        if timestep.ndim == 2:  # one a patch (Wan 2.2's 5B model), alike in all frames
            _, high, wide = self.network.config.patch_size
            frames, height, width = step.latents.shape[2:]
            own["timestep"] = timestep[:, : frames * (height // high) * (width // wide)]
        return own

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        vae = self.host.vae
        first, last = (-(-frame // self.host.vae_scale_factor_temporal) for frame in (min(frames), max(frames)))
        latents = self.denormalised(clean[:, :, : last + 1])
        with warmed(uncompiled(vae).decoder, pieces=last + 1, first=first):
            return vae.decode(latents.to(vae.dtype), return_dict=False)[0][:, :, list(frames)]
