"""Hugging Face diffusers pipelines. Tested with diffusers 0.42.1."""

from __future__ import annotations

import inspect
import math
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
        self.call = inspect.signature(self.original_run).bind(*args, **kwargs)
        self.call.apply_defaults()
        prompt = call.get("prompt")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
            raise MotionPromptError("MotionPrompt needs the prompt as text, one a video; pass prompt='...' or a list")
        return list(prompts)

    def modules(self) -> list[nn.Module]:
        return [getattr(self.host, self.denoiser), self.host.vae, self.host.text_encoder]


class BatchedGuidance(DiffusersPipeline):
    """Pipelines that call their denoiser on both branches of classifier-free guidance at once, [uncond, cond].

    A subclass names the denoiser's arguments and tells how its tensors relate to the contract's.
    """

    latents_argument: ClassVar[str] = "hidden_states"
    text_argument: ClassVar[str] = "encoder_hidden_states"

    def latents_of(self, value: Tensor) -> Tensor:
        """The denoiser's latents as [b, c, t, h, w]; its own inverse."""
        return value

    def text_of(self, rows: Tensor, frames: int) -> Tensor:
        """The denoiser's text rows as [b, l, d]; `frames` are those of the latents."""
        return rows

    def rows_of(self, text: Tensor, frames: int) -> Tensor:
        """Text [b, l, d] as the denoiser's rows."""
        return text

    def clip_frames(self, latents: Tensor) -> int:
        """Frames of the clip that latents [b, c, t, h, w] decode to."""
        return latents.shape[2]

    def scale(self, step: Step) -> float:
        """The guidance scale of this step."""
        return self.host.guidance_scale

    def output(self, value: Tensor, return_dict: bool) -> Any:
        """The denoiser's output in the form its caller wants."""
        raise NotImplementedError

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        call = inspect.signature(self.original_step).bind(*args, **kwargs)
        if call.arguments.get("added_cond_kwargs") is not None:
            raise MotionPromptError("MotionPrompt does not know IP-Adapter images; unload the IP-Adapter")
        latents = self.latents_of(call.arguments[self.latents_argument])
        rows = self.text_of(call.arguments[self.text_argument], latents.shape[2])
        timestep = torch.as_tensor(call.arguments["timestep"]).flatten()[0]
        schedule = self.host.scheduler.timesteps
        return Step(
            latents=latents.chunk(2)[1] if self._guided else latents,
            conditioning=rows.chunk(2)[1] if self._guided else rows,
            # a search, because FreeInit starts the schedule again
            index=int((schedule - timestep).abs().argmin()),
            total=len(schedule),
            timestep=float(timestep),
            frames=self.clip_frames(latents),
            call=Call(call),
        )

    def take(self, step: Step, conditioning: Tensor) -> Any:
        """The host's batch of both branches, of which the unconditional one is known from the updates."""
        output = self._branch(step, conditioning)
        if self._guided:
            output = torch.cat([self._unconditional(step), output])
        return self.output(self.latents_of(output), step.call.arguments.arguments.get("return_dict", True))

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        output = self._branch(step, conditioning)
        if self._guided:
            unconditional = self._unconditional(step)
            output = unconditional + self.scale(step) * (output - unconditional)
        return clean_latents(self.host.scheduler, step.latents, output, step.timestep)

    def word_ids(self, word: str) -> list[int]:
        return self.host.tokenizer(word, add_special_tokens=False).input_ids

    @property
    def _guided(self) -> bool:
        return self.host.do_classifier_free_guidance

    def _unconditional(self, step: Step) -> Tensor:
        """The unconditional branch, computed once a step and without a graph."""
        if step.call.unconditional is None:
            rows = step.call.arguments.arguments[self.text_argument]
            with torch.no_grad():
                step.call.unconditional = self._denoise(step, rows[: len(rows) // 2])
        return step.call.unconditional

    def _branch(self, step: Step, conditioning: Tensor) -> Tensor:
        rows = self.rows_of(conditioning.to(step.latents.dtype), step.latents.shape[2])
        return self._denoise(step, rows)

    def _denoise(self, step: Step, rows: Tensor) -> Tensor:
        """The denoiser on one branch: its text rows -> its output [b, c, t, h, w]."""
        arguments = step.call.arguments
        call = inspect.BoundArguments(arguments.signature, arguments.arguments.copy())
        call.arguments.update({self.latents_argument: self.latents_of(step.latents), self.text_argument: rows})
        timestep = torch.as_tensor(call.arguments["timestep"])
        if timestep.ndim:  # one a sample of both branches
            call.arguments["timestep"] = timestep[: len(step.latents)]
        return self.latents_of(self.original_step(*call.args, **call.kwargs)[0])


class AnimateDiff(BatchedGuidance):
    """AnimateDiffPipeline: text rows repeated per frame, a VAE of single frames."""

    name = "diffusers-animatediff"
    pipeline = "AnimateDiffPipeline"
    latents_argument = "sample"

    def text_of(self, rows: Tensor, frames: int) -> Tensor:
        return rows[::frames]

    def rows_of(self, text: Tensor, frames: int) -> Tensor:
        return text.repeat_interleave(frames, dim=0)

    def output(self, value: Tensor, return_dict: bool) -> Any:
        from diffusers.models.unets.unet_motion_model import UNetMotionOutput

        return UNetMotionOutput(sample=value) if return_dict else (value,)

    @property
    def text(self) -> TextInput:
        tokenizer = self.host.tokenizer
        embedding = self.host.text_encoder.get_input_embeddings()
        return TextInput(embedding, end=tokenizer.eos_token_id, start=tokenizer.bos_token_id)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        device = self.host.text_encoder.device
        embeds, _ = self.host.encode_prompt(list(prompts), device, 1, False, clip_skip=self.host.clip_skip)
        return embeds

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        return self.host.decode_latents(clean[:, :, list(frames)].to(self.host.vae.dtype))


class CogVideoX(BatchedGuidance):
    """CogVideoXPipeline: latents [b, t, c, h, w], v-prediction from zero SNR, T5 without a mask, a causal VAE.

    The VAE decodes chunks of latent frames one after the other, each knowing the ones before. What is decoded is
    therefore the shortest prefix that holds the frames asked for and is cut into the same chunks.
    """

    name = "diffusers-cogvideox"
    pipeline = "CogVideoXPipeline"
    denoiser = "transformer"

    def latents_of(self, value: Tensor) -> Tensor:
        return value.transpose(1, 2)

    @property
    def _guided(self) -> bool:
        return self.call.arguments["guidance_scale"] > 1

    def clip_frames(self, latents: Tensor) -> int:
        return (latents.shape[2] - self._padding(latents) - 1) * self.host.vae_scale_factor_temporal + 1

    def scale(self, step: Step) -> float:
        """With use_dynamic_cfg the host renews its scale after the denoiser's call: here it is known before."""
        arguments = self.call.arguments
        if not arguments.get("use_dynamic_cfg"):
            return self.host.guidance_scale
        steps = arguments["num_inference_steps"]
        rise = math.cos(math.pi * ((steps - step.timestep) / steps) ** 5.0)
        return 1 + arguments["guidance_scale"] * (1 - rise) / 2

    def output(self, value: Tensor, return_dict: bool) -> Any:
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=value) if return_dict else (value,)

    @property
    def text(self) -> TextInput:
        # get_input_embeddings() is T5's shared table, a module that is never called
        return TextInput(self.host.text_encoder.encoder.embed_tokens, end=self.host.tokenizer.eos_token_id)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        length = self.call.arguments["max_sequence_length"]
        return self.host.encode_prompt(list(prompts), None, False, max_sequence_length=length)[0]

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        clean = clean[:, :, self._padding(clean) :]
        total, factor = clean.shape[2], self.host.vae_scale_factor_temporal
        needed = -(-max(frames) // factor) + 1
        needed += (total - needed) % 2  # the first of the chunks of two holds one more where their number is odd
        decoded = self.host.decode_latents(clean[:, :, :needed].transpose(1, 2).to(self.host.vae.dtype))
        return decoded[:, :, list(frames)]

    def _padding(self, latents: Tensor) -> int:
        """Latent frames in front that CogVideoX 1.5 adds to fill its patches and drops before decoding."""
        patch = self.host.transformer.config.patch_size_t
        if patch is None:
            return 0
        asked = self.call.arguments["num_frames"] or self.host.transformer.config.sample_frames
        return -((asked - 1) // self.host.vae_scale_factor_temporal + 1) % patch


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
