"""Stable Diffusion inflated to video: hosts that carry a pipeline of their own, written on an early diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mp_hooks.backbones.diffusers.pipeline import SingleFrames
from mp_hooks.backbones.diffusers.text import clip_text
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput
from mp_hooks.hooks import Hooks

LATENT_SCALE = 0.18215  # Stable Diffusion's, written out in the hosts' decode_latents


class InflatedStableDiffusion(SingleFrames):
    """Both branches in one call, a guidance scale that is not stored, Stable Diffusion's text encoder and VAE.

    The hosts' own decoding ends in numpy arrays or whole brightness levels, through which no gradient passes: the VAE
    is called as they do.
    """

    module: ClassVar[str]  # where the pipeline class is
    denoiser = "unet"
    latents_argument = "sample"

    @classmethod
    def recognises(cls, host: Any) -> bool:
        return (type(host).__module__, type(host).__name__) == (cls.module, cls.pipeline)

    @classmethod
    def host_class(cls) -> str:
        return f"{cls.module}.{cls.pipeline}"

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.arguments["guidance_scale"] > 1

    def scale(self, step: Step) -> float:
        return self.arguments["guidance_scale"]

    def attention(self, hooks: Hooks) -> None:
        """The host's own keeps the matrix; layers in time, whose matrices are small, may have another function."""

        def attend(_original: Any, layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Tensor:
            # heads apart, as CUDA's kernels take no more than 65,535 of either and a clip has many places
            given = (
                each if each is None else each.unflatten(0, (-1, layer.heads)) for each in (query, key, value, mask)
            )
            output = F.scaled_dot_product_attention(*given, scale=layer.scale)
            return layer.reshape_batch_dim_to_heads(output.flatten(0, 1))

        for kind in {type(layer) for layer in self.host.unet.modules() if type(layer).__name__ == "CrossAttention"}:
            hooks.wrap(kind, "_attention", attend)

    @property
    def text(self) -> TextInput:
        return clip_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        device = self.host.text_encoder.device
        return self.host._encode_prompt(list(prompts), device, 1, False, negative_prompt=None)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        latents = clean[:, :, list(frames)].transpose(1, 2) / LATENT_SCALE
        decoded = self.host.vae.decode(latents.flatten(0, 1).to(self.host.vae.dtype)).sample
        return decoded.unflatten(0, (len(clean), len(frames))).transpose(1, 2)
