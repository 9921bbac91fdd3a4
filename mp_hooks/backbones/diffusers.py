"""Hugging Face diffusers pipelines. Tested with diffusers 0.42.1."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.backbones.base import Adapter, Site
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step, full_precision
from mp_hooks.guidance.tokens import TextInput


@dataclass
class Call:
    """One call of the denoiser: its arguments by name, and the unconditional branch once it is known."""

    arguments: inspect.BoundArguments
    unconditional: Tensor | None = None


class DiffusersPipeline(Adapter):
    """What pipelines share: prompts from the pipeline's call, steps from its denoiser's.

    The run site is the pipeline class's `__call__` (an instance attribute would not be called), acting on this
    pipeline alone; the step site is the forward of its denoiser.
    """

    pipeline: ClassVar[str]  # class name
    denoiser: ClassVar[str] = "unet"

    @classmethod
    def recognises(cls, host: Any) -> bool:
        return any(
            base.__name__ == cls.pipeline and base.__module__.startswith("diffusers.") for base in type(host).__mro__
        )

    def run_site(self) -> Site:
        return type(self.host), "__call__"

    def step_site(self) -> Site:
        return getattr(self.host, self.denoiser), "forward"

    def prompts(self, *args: Any, **kwargs: Any) -> list[str] | None:
        call = inspect.signature(self.original_run).bind(*args, **kwargs).arguments
        if call["self"] is not self.host:
            return None
        prompt = call.get("prompt")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
            raise MotionPromptError("MotionPrompt needs the prompt as text, one a video; pass prompt='...' or a list")
        return list(prompts)

    def modules(self) -> list[nn.Module]:
        return [getattr(self.host, self.denoiser), self.host.vae, self.host.text_encoder]


class AnimateDiff(DiffusersPipeline):
    """AnimateDiffPipeline: batched guidance [uncond, cond], text rows repeated per frame, a VAE of single frames."""

    name = "diffusers-animatediff"
    pipeline = "AnimateDiffPipeline"

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        call = inspect.signature(self.original_step).bind(*args, **kwargs)
        if call.arguments.get("added_cond_kwargs") is not None:
            raise MotionPromptError("MotionPrompt does not know IP-Adapter images; unload the IP-Adapter")
        sample, timestep = call.arguments["sample"], call.arguments["timestep"]
        frames = sample.shape[2]
        rows = call.arguments["encoder_hidden_states"][::frames]
        schedule = self.host.scheduler.timesteps
        return Step(
            latents=sample.chunk(2)[1] if self._guided else sample,
            conditioning=rows.chunk(2)[1] if self._guided else rows,
            # a search, because FreeInit starts the schedule again
            index=int((schedule - timestep).abs().argmin()),
            total=len(schedule),
            timestep=float(timestep),
            frames=frames,
            call=Call(call),
        )

    def take(self, step: Step, conditioning: Tensor) -> Any:
        """The host's batch of both branches, of which the unconditional one is known from the updates."""
        from diffusers.models.unets.unet_motion_model import UNetMotionOutput

        output = self._branch(step, conditioning)
        if self._guided:
            output = torch.cat([self._unconditional(step), output])
        return UNetMotionOutput(sample=output) if step.call.arguments.arguments.get("return_dict", True) else (output,)

    @property
    def text(self) -> TextInput:
        tokenizer = self.host.tokenizer
        embedding = self.host.text_encoder.get_input_embeddings()
        return TextInput(embedding, end=tokenizer.eos_token_id, start=tokenizer.bos_token_id)

    def word_ids(self, word: str) -> list[int]:
        return self.host.tokenizer(word, add_special_tokens=False).input_ids

    def encode(self, prompts: Sequence[str]) -> Tensor:
        device = self.host.text_encoder.device
        embeds, _ = self.host.encode_prompt(list(prompts), device, 1, False, clip_skip=self.host.clip_skip)
        return embeds

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        output = self._branch(step, conditioning)
        if self._guided:
            unconditional = self._unconditional(step)
            output = unconditional + self.host.guidance_scale * (output - unconditional)
        return clean_latents(self.host.scheduler, step.latents, output, step.timestep)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype))

    @property
    def _guided(self) -> bool:
        return self.host.do_classifier_free_guidance

    def _unconditional(self, step: Step) -> Tensor:
        """The unconditional branch, computed once a step and without a graph."""
        if step.call.unconditional is None:
            rows = step.call.arguments.arguments["encoder_hidden_states"]
            with torch.no_grad():
                step.call.unconditional = self._denoise(step, rows[: len(rows) // 2])
        return step.call.unconditional

    def _branch(self, step: Step, conditioning: Tensor) -> Tensor:
        return self._denoise(step, conditioning.to(step.latents.dtype).repeat_interleave(step.frames, dim=0))

    def _denoise(self, step: Step, rows: Tensor) -> Tensor:
        """The denoiser on one branch: text rows [b f, l, d] -> its output [b, c, f, h, w]."""
        arguments = step.call.arguments
        call = inspect.BoundArguments(arguments.signature, arguments.arguments.copy())
        call.arguments.update(sample=step.latents, encoder_hidden_states=rows)
        return self.original_step(*call.args, **call.kwargs)[0]


def clean_latents(scheduler: Any, latents: Tensor, output: Tensor, timestep: float) -> Tensor:
    """z0_hat from a denoiser's output, Tweedie's formula for whatever the output is (float32; shapes kept).

    `latents` are the denoiser's input: for schedulers that divide z_t by sqrt(1 + sigma^2) first (Euler), that input
    is a variance-preserving latent with abar = 1 / (1 + sigma^2), so that one formula serves all.
    """
    latents, output = (full_precision(value) for value in (latents, output))
    alpha = alpha_bar(scheduler, timestep)
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (latents - noise * output) / signal
    if kind == "v_prediction":
        return signal * latents - noise * output
    if kind == "sample":
        return output
    raise MotionPromptError(f"MotionPrompt does not know the prediction type '{kind}' of {type(scheduler).__name__}")


def alpha_bar(scheduler: Any, timestep: float) -> float:
    """abar at a timestep of the current schedule."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return float(scheduler.alphas_cumprod[int(timestep)])
    index = int((scheduler.timesteps - timestep).abs().argmin())
    return 1 / (1 + float(sigmas[index]) ** 2)
