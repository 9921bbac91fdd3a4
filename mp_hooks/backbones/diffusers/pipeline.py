"""What diffusers pipelines share: prompts from the pipeline's call, steps from its denoiser's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.backbones.base import Adapter, Site
from mp_hooks.backbones.diffusers.schedule import check_scheduler, clean_latents, schedule_step
from mp_hooks.compat import swapped
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step, full_precision


@dataclass
class Call:
    """One call of the denoiser.

    negative: the unconditional branch's text rows [b, l, d], None without classifier-free guidance. unconditional: that
    branch's output [b, c, t, h, w] once it is known. first: the clip's latent frame that the latents begin with. kind:
    the type of what the denoiser returned.
    """

    arguments: inspect.BoundArguments
    negative: Tensor | None
    unconditional: Tensor | None = None
    first: int = 0
    kind: type = tuple


class DiffusersPipeline(Adapter):
    """A pipeline whose denoiser is one module.

    The run site is the pipeline class's `__call__` (an instance attribute would not be called), acting on this
    pipeline alone; the step site is the call of its denoiser, as `forward` is replaced and put back by diffusers and
    accelerate whenever they offload. A subclass tells how the denoiser's arguments relate to the contract's tensors.
    """

    pipeline: ClassVar[str]  # class name
    denoiser: ClassVar[str] = "transformer"
    latents_argument: ClassVar[str] = "hidden_states"
    copies_argument: ClassVar[str | None] = "num_videos_per_prompt"  # of the pipeline's call, None where it heeds none
    parts: ClassVar[bool] = False  # whether some of the clip's latent frames alone are a clip to the denoiser

    # --- what pipelines differ in

    def unpack(self, value: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The denoiser's latents, going in or coming out, as [b, c, t, h, w]."""
        return value

    def pack(self, latents: Tensor) -> Tensor:
        """Latents [b, c, t, h, w] as the denoiser takes and returns them."""
        return latents

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        """The text in the denoiser's arguments as rows [b, l, d]; `frames` are those of the latents."""
        return arguments["encoder_hidden_states"]

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Tensor]:
        """Text rows [b, l, d] as the denoiser's arguments."""
        return {"encoder_hidden_states": rows}

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        """What of the denoiser's arguments belongs to one branch: its text rows [b, l, d]."""
        return self.text_arguments(rows.to(step.latents.dtype), step.latents.shape[2])

    def clip_frames(self, latents: Tensor) -> int:
        """Frames of the clip that latents [b, c, t, h, w] decode to."""
        return (latents.shape[2] - 1) * self.host.vae_scale_factor_temporal + 1

    def latent_frames(self, frames: int) -> int:
        return -(-(frames - 1) // self.host.vae_scale_factor_temporal) + 1

    def scale(self, step: Step) -> float:
        """The guidance scale of this step."""
        return self.host.guidance_scale

    def combine(self, step: Step, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """Classifier-free guidance on the branches' outputs [b, c, t, h, w]."""
        return unconditional + self.scale(step) * (conditional - unconditional)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether this run uses classifier-free guidance."""
        return self.host.do_classifier_free_guidance

    # --- what they share

    @classmethod
    def recognises(cls, host: Any) -> bool:
        return any(
            base.__name__ == cls.pipeline and base.__module__.startswith("diffusers.") for base in type(host).__mro__
        )

    @classmethod
    def host_class(cls) -> str:
        return f"diffusers.{cls.pipeline}"

    def run_site(self) -> Site:
        return type(self.host), "__call__"

    def step_site(self) -> Site:
        module = getattr(self.host, self.denoiser)
        return module, "_call_impl" if module._compiled_call_impl is None else "_compiled_call_impl"

    @property
    def network(self) -> nn.Module:
        """The denoiser itself, also where torch.compile has wrapped it."""
        return uncompiled(getattr(self.host, self.denoiser))

    def refuse(self) -> None:
        check_scheduler(self.host.scheduler)
        if getattr(self.network, "is_cache_enabled", False):
            raise MotionPromptError(
                f"MotionPrompt cannot guide with a step cache, which answers for the {self.denoiser} from other calls; "
                f"call pipe.{self.denoiser}.disable_cache() first"
            )
        if self.latents_argument not in inspect.signature(self.network.forward).parameters:
            raise MotionPromptError(
                f"the forward of the {self.denoiser} has been replaced, as caches like DeepCache do, "
                "under which MotionPrompt cannot guide; disable that first"
            )

    def prompts(self, call: dict[str, Any]) -> list[str] | None:
        if call["self"] is not self.host:
            return None
        prompt = call.get("prompt")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
            raise MotionPromptError("MotionPrompt needs the prompt as text, one a video; pass prompt='...' or a list")
        return [one for one in prompts for _ in range(self.copies(call))]

    def copies(self, call: dict[str, Any]) -> int:
        """Videos of each prompt that the pipeline's call asks for."""
        return (call.get(self.copies_argument) if self.copies_argument else None) or 1

    @property
    def lora_scale(self) -> float | None:
        """Of a LoRA on the text encoder, where the pipeline's call gives one."""
        return (self.arguments.get("cross_attention_kwargs") or {}).get("scale")

    def noise_seed(self) -> int:
        given = self.arguments.get("generator")
        first = given[0] if isinstance(given, list) and given else given
        return first.initial_seed() if isinstance(first, torch.Generator) else super().noise_seed()

    def word_ids(self, word: str) -> list[int]:
        return self.host.tokenizer(word, add_special_tokens=False).input_ids

    def modules(self) -> list[nn.Module]:
        return [self.network, uncompiled(self.host.vae), uncompiled(self.host.text_encoder)]

    def vae(self) -> nn.Module:
        return self.host.vae

    def bound(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """The denoiser's arguments by name."""
        return inspect.signature(self.network.forward).bind(*args, **kwargs)

    def step(self, latents: Tensor, rows: Tensor, call: Call) -> Step:
        """The step of this call, from the conditional branch's latents [b, c, t, h, w] and text rows [b, l, d]."""
        timestep = float(torch.as_tensor(call.arguments.arguments["timestep"]).flatten()[0])
        index, total = schedule_step(self.host.scheduler, timestep)
        return Step(
            latents=latents,
            conditioning=rows,
            index=index,
            total=total,
            timestep=timestep,
            frames=self.clip_frames(latents),
            call=call,
        )

    def in_float32(self, step: Step) -> Step:
        tensors = {"latents": full_precision(step.latents), "conditioning": full_precision(step.conditioning)}
        return replace(step, **tensors, call=replace(step.call, unconditional=None))

    def sub_clip(self, step: Step, frames: range) -> Step | None:
        if not self.parts:
            return None
        part = slice(frames.start, frames.stop)
        unconditional = self.unconditional(step)[:, :, part] if self.do_classifier_free_guidance else None
        call = Call(step.call.arguments, step.call.negative, unconditional, first=frames.start)
        latents = step.latents[:, :, part]
        return replace(step, latents=latents, frames=self.clip_frames(latents), call=call)

    @contextmanager
    def guided_step(self, step: Step) -> Iterator[None]:
        with super().guided_step(step), wrappers_off(self.host), staying(self.modules()), own_attention(self.network):
            yield

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        output = self.branch(step, conditioning)
        return self.clean(step, output, self.unconditional(step) if self.do_classifier_free_guidance else None)

    def clean(self, step: Step, conditional: Tensor, unconditional: Tensor | None) -> Tensor:
        """z0_hat [b, c, t, h, w] of the branches' outputs; None without classifier-free guidance."""
        output = conditional if unconditional is None else self.combine(step, unconditional, conditional)
        return clean_latents(self.host.scheduler, step.latents, output, step.timestep)

    def unconditional(self, step: Step) -> Tensor:
        """The unconditional branch, computed once a step and without a graph."""
        if step.call.unconditional is None:
            with torch.no_grad():
                step.call.unconditional = self.branch(step, step.call.negative)
        return step.call.unconditional

    def branch(self, step: Step, rows: Tensor) -> Tensor:
        """The denoiser on one branch: its text rows [b, l, d] -> its output [b, c, t, h, w]."""
        call = inspect.BoundArguments(step.call.arguments.signature, step.call.arguments.arguments.copy())
        call.arguments[self.latents_argument] = self.pack(step.latents)
        call.arguments.update(self.branch_arguments(step, rows))
        timestep = torch.as_tensor(call.arguments["timestep"])
        if timestep.ndim:  # one a sample of both branches
            call.arguments["timestep"] = timestep[: len(step.latents)]
        result = type(self.network)._call_impl(self.network, *call.args, **call.kwargs)  # neither hooked nor compiled
        step.call.kind = type(result)
        return self.unpack(result[0], call.arguments)

    def returned(self, step: Step, output: Tensor) -> Any:
        """An output [b, c, t, h, w] in the form in which the denoiser returns its own."""
        kind = step.call.kind
        return (self.pack(output),) if kind is tuple else kind(sample=self.pack(output))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where it is wrapped by torch.compile(module)."""
    return getattr(module, "_orig_mod", module)


@contextmanager
def wrappers_off(pipe: Any) -> Iterator[None]:
    """Inside, the pipeline's parts are themselves and not what torch.compile(part) wrapped them in: hooks act."""
    wrapped = {name: part for name, part in vars(pipe).items() if hasattr(part, "_orig_mod")}
    vars(pipe).update({name: uncompiled(part) for name, part in wrapped.items()})
    try:
        yield
    finally:
        vars(pipe).update(wrapped)


@contextmanager
def own_attention(network: nn.Module) -> Iterator[None]:
    """Inside, attention is torch's own, whatever backend diffusers was told to take: not all have a backward pass."""
    try:
        from diffusers.models.attention_dispatch import attention_backend
    except ImportError:  # before diffusers 0.35, which has one
        yield
        return
    processors = [getattr(part, "processor", None) for part in network.modules()]
    with ExitStack() as stack:
        for processor in processors:
            if getattr(processor, "_attention_backend", None) is not None:
                stack.enter_context(swapped(processor, "_attention_backend", None))
        stack.enter_context(attention_backend("native"))
        yield


@contextmanager
def staying(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Whole models that accelerate offloads (enable_model_cpu_offload) stay on the device once they are called.

    It moves each model away as the next one is called, and the backward pass comes back to all of them.
    """
    offloaded = [(module, module._hf_hook) for module in modules if hasattr(module, "_hf_hook")]
    offloaded = [(module, hook) for module, hook in offloaded if hasattr(hook, "prev_module_hook")]
    places = [next(module.parameters()).device for module, _ in offloaded]
    with ExitStack() as stack:
        for _, hook in offloaded:
            stack.enter_context(swapped(hook, "prev_module_hook", None))
        try:
            yield
        finally:
            for (module, _), place in zip(offloaded, places, strict=True):
                module.to(place)


class BatchedGuidance(DiffusersPipeline):
    """Pipelines that call their denoiser on both branches of classifier-free guidance at once, [uncond, cond]."""

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        call = self.bound(*args, **kwargs)
        if call.arguments.get("added_cond_kwargs") is not None:
            raise MotionPromptError("MotionPrompt does not know IP-Adapter images; unload the IP-Adapter")
        latents = self.unpack(call.arguments[self.latents_argument], call.arguments)
        rows = self.text_rows(call.arguments, latents.shape[2])
        if not self.do_classifier_free_guidance:
            return self.step(latents, rows, Call(call, None))
        negative, positive = rows.chunk(2)
        return self.step(latents.chunk(2)[1], positive, Call(call, negative))

    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        """The host's batch of both branches, of which the unconditional one is known from the updates."""
        output = self.branch(step, conditioning)
        if self.do_classifier_free_guidance:
            output = torch.cat([self.unconditional(step), output])
        return self.returned(step, output)

    def clean_in(self, step: Step, result: Any) -> Tensor:
        output = self.unpack(result[0], step.call.arguments.arguments)
        unconditional, conditional = output.chunk(2) if self.do_classifier_free_guidance else (None, output)
        return self.clean(step, conditional, unconditional)


class SingleFrames(BatchedGuidance):
    """Those whose VAE knows single frames: a frame of latents is a frame of the clip, and any sub-clip will do."""

    parts = True

    def clip_frames(self, latents: Tensor) -> int:
        return latents.shape[2]

    def latent_frames(self, frames: int) -> int:
        return frames
