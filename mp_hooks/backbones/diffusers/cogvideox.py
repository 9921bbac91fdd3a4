"""CogVideoXPipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mp_hooks.backbones.diffusers.causal import warmed
from mp_hooks.backbones.diffusers.pipeline import BatchedGuidance, uncompiled
from mp_hooks.backbones.diffusers.text import t5_text
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput


class CogVideoX(BatchedGuidance):
    """Latents [b, t, c, h, w], v-prediction from zero SNR, T5 without a mask, a causal VAE.

    The VAE decodes chunks of latent frames one after the other, each knowing the ones before. What is decoded is
    therefore the shortest prefix that holds the frames asked for and is cut into the same chunks, without a gradient to
    chunks before them.
    """

    name = "diffusers-cogvideox"
    pipeline = "CogVideoXPipeline"
    copies_argument = None  # its call sets the number to 1
    attention_blocks = ("CogVideoXBlock", "T5Block")
    other_blocks = ("CogVideoXResnetBlock3D",)
    view = 32
    parts = True  # a part is a shorter clip: its places in time count from its own first frame

    def unpack(self, value: Tensor, arguments: dict[str, Any]) -> Tensor:
        return value.transpose(1, 2)

    def pack(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def sub_clip(self, step: Step, frames: range) -> Step | None:
        """None for CogVideoX 1.5, whose patches hold several latent frames."""
        return super().sub_clip(step, frames) if self.network.config.get("patch_size_t") is None else None

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        own, places = super().branch_arguments(step, rows), step.call.arguments.arguments.get("image_rotary_emb")
        if places is not None and self.network.config.get("patch_size_t") is None:
            frames, height, width = step.latents.shape[2:]
            patches = frames * (height // self._patch) * (width // self._patch)
            own["image_rotary_emb"] = tuple(each[:patches] for each in places)
        return own

    @property
    def _patch(self) -> int:
        return self.network.config.patch_size

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.arguments["guidance_scale"] > 1  # the host's own property asks a scale that dynamic CFG changes

    def clip_frames(self, latents: Tensor) -> int:
        return super().clip_frames(latents[:, :, self._padding(latents) :])

    def scale(self, step: Step) -> float:
        """With use_dynamic_cfg the host renews its scale after the denoiser's call: here it is known before."""
        if not self.arguments.get("use_dynamic_cfg"):
            return self.host.guidance_scale
        steps = self.arguments["num_inference_steps"]
        rise = math.cos(math.pi * ((steps - step.timestep) / steps) ** 5.0)
        return 1 + self.arguments["guidance_scale"] * (1 - rise) / 2

    @property
    def text(self) -> TextInput:
        return t5_text(self.host)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        length = self.arguments["max_sequence_length"]
        return self.host.encode_prompt(list(prompts), None, False, max_sequence_length=length)[0]

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        clean = clean[:, :, self._padding(clean) :]
        total, factor = clean.shape[2], self.host.vae_scale_factor_temporal
        needed = -(-max(frames) // factor) + 1
        odd = total % 2
        needed += (odd - needed) % 2  # the first of the chunks of two holds one more where their number is odd
        first = max((min(frames) - odd) // (2 * factor), 0)  # of the chunks
        latents = clean[:, :, :needed].transpose(1, 2).to(self.host.vae.dtype)
        with warmed(uncompiled(self.host.vae).decoder, pieces=max(needed // 2, 1), first=first):
            return self.host.decode_latents(latents)[:, :, list(frames)]

    def _padding(self, latents: Tensor) -> int:
        """Latent frames in front that CogVideoX 1.5 adds to fill its patches and drops before decoding."""
        patch = self.host.transformer.config.get("patch_size_t")  # since diffusers 0.32
        if patch is None:
            return 0
        frames = self.arguments["num_frames"] or self.host.transformer.config.sample_frames
        return -((frames - 1) // self.host.vae_scale_factor_temporal + 1) % patch
