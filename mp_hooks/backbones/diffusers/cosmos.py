"""Cosmos 1, 2 and 2.5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mp_hooks.backbones.diffusers.branches import SeparateGuidance
from mp_hooks.backbones.diffusers.wan import Wan
from mp_hooks.guidance import Step, full_precision


class Cosmos(SeparateGuidance):
    """EDM's scaled input, T5; the guidance scale counts from the conditional branch."""

    name = "diffusers-cosmos"
    pipelines = ("CosmosTextToWorldPipeline",)
    attention_blocks = ("CosmosTransformerBlock",)

    def scale(self, step: Step) -> float:
        return self.host.guidance_scale + 1

    def timestep(self, arguments: dict[str, Any]) -> float:
        scheduler = self.host.scheduler  # the denoiser's are sigmas
        return float(scheduler.timesteps[scheduler.step_index or 0])

    def denormalised(self, clean: Tensor) -> Tensor:
        config, frames = self.host.vae.config, clean.shape[2]
        scaled = clean / self.host.scheduler.config.sigma_data
        if config.latents_mean is None:
            return scaled
        mean, deviation = (
            scaled.new_tensor(values).view(1, config.latent_channels, -1, 1, 1)[:, :, :frames]
            for values in (config.latents_mean, config.latents_std)
        )
        return scaled * deviation + mean


class Cosmos2(Cosmos):
    """Flow matching on input that is scaled by 1 - t; frames in front may be given; Wan's VAE."""

    name = "diffusers-cosmos2"
    pipelines = ("Cosmos2VideoToWorldPipeline",)

    def given_frames(self, step: Step) -> int:
        return int(step.call.arguments.arguments["condition_mask"][0, 0, :, 0, 0].sum())

    def clean(self, step: Step, conditional: Tensor, unconditional: Tensor | None) -> Tensor:
        output = conditional if unconditional is None else self.combine(step, unconditional, conditional)
        times = step.call.arguments.arguments["timestep"]
        latents, output, noise = (full_precision(value) for value in (step.latents, output, times.amax()))
        given = self.given_frames(step)
        clean = latents - noise * output
        clean[:, :, :given] = latents[:, :, :given]
        return clean

    def denormalised(self, clean: Tensor) -> Tensor:
        return Wan.denormalised(self, clean / self.host.scheduler.config.sigma_data)


class Cosmos25(Cosmos2):
    """Qwen2.5-VL in a chat template, all of its layers as one row; of given frames the velocity is known."""

    name = "diffusers-cosmos2.5"
    pipelines = ("Cosmos2_5_PredictBasePipeline",)
    prompt_end = "<|im_end|>"
    denormalised, decode = Wan.denormalised, Wan.decode  # nothing scaled by sigma_data
