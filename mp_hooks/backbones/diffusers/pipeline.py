"""What diffusers pipelines share: prompts from the pipeline's call, steps from its denoiser's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mp_hooks.backbones.base import Site
from mp_hooks.backbones.diffusers.encoding import Encoding
from mp_hooks.backbones.diffusers.modules import call_site, own_attention, staying, uncompiled, wrappers_off
from mp_hooks.backbones.diffusers.schedule import check_scheduler, clean_latents, schedule_step
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step, full_precision

# Arguments of denoisers that hold something for every frame.
PER_FRAME = {
    *("down_block_additional_residuals", "image_latents", "control_hidden_states", "indices_hidden_states"),
    *("inpaint_latents", "video_coords"),
}


@dataclass
class Call:
    """One call of the denoiser.

    negative: the unconditional branch's text rows [b, l, d], None without classifier-free guidance. unconditional: that
    branch's output [b, c, t, h, w] once it is known. first: the clip's latent frame that the latents begin with. kind:
    the type of what the denoiser returned, tail: what it returned beside its prediction, unused: channels of that
    which the pipeline drops (a variance). branches: what further ones gave, by number, where a guider has any.
    """

    arguments: inspect.BoundArguments
    negative: Tensor | None
    unconditional: Tensor | None = None
    first: int = 0
    kind: type = tuple
    tail: tuple[Any, ...] = ()
    unused: int = 0
    branches: dict[int, Tensor] = field(default_factory=dict)


class DiffusersPipeline(Encoding):
    """Pipelines whose denoiser is one module, or several that take turns.

    The run site is the pipeline class's `__call__` (an instance attribute would not be called), acting on this
    pipeline alone; the step site is the call of its denoiser, as `forward` is replaced and put back by diffusers and
    accelerate whenever they offload. A subclass tells how the denoiser's arguments relate to the contract's tensors.
    """

    pipelines: ClassVar[tuple[str, ...]]  # class names
    denoiser: ClassVar[str] = "transformer"
    latents_argument: ClassVar[str] = "hidden_states"
    channels_dimension: ClassVar[int] = 1  # of the denoiser's latents, where a condition may be joined to them
    copies_argument: ClassVar[str | None] = "num_videos_per_prompt"  # of the pipeline's call, None where it heeds none
    mask_argument: ClassVar[str | None] = None  # of the denoiser: the text's mask
    view: ClassVar[int | None] = 32
    parts: ClassVar[bool] = False  # whether some of the clip's latent frames alone are a clip to the denoiser
    frames_factor: ClassVar[str] = "vae_scale_factor_temporal"  # of the pipeline: frames of the clip to a latent one

    # --- what pipelines differ in

    def unpack(self, value: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The denoiser's latents, going in or coming out, as [b, c, t, h, w]."""
        return value

    def pack(self, latents: Tensor) -> Tensor:
        """Latents [b, c, t, h, w] as the denoiser takes and returns them."""
        return latents

    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        """The text in the denoiser's arguments as rows [b, l, d]; `frames` are those of the latents.

        A mask is their last column, so that a conditioning and its mask stay together.
        """
        rows = arguments["encoder_hidden_states"]
        return rows if self.mask_argument is None else with_mask(rows, arguments[self.mask_argument])

    def text_arguments(self, rows: Tensor, frames: int) -> dict[str, Any]:
        """Text rows [b, l, d] as the denoiser's arguments."""
        if self.mask_argument is None:
            return {"encoder_hidden_states": rows}
        return {"encoder_hidden_states": rows[..., :-1], self.mask_argument: rows[..., -1].detach()}

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        """What of the denoiser's arguments belongs to one branch: its text rows [b, l, d]."""
        arguments = self.text_arguments(rows.to(step.latents.dtype), step.latents.shape[2])
        given = step.call.arguments.arguments
        if self.mask_argument is not None and not given[self.mask_argument].is_floating_point():
            arguments[self.mask_argument] = arguments[self.mask_argument].to(given[self.mask_argument].dtype)
        return arguments

    def clip_frames(self, latents: Tensor) -> int:
        """Frames of the clip that latents [b, c, t, h, w] decode to."""
        return (latents.shape[2] - 1) * getattr(self.host, self.frames_factor) + 1

    def latent_frames(self, frames: int) -> int:
        return -(-(frames - 1) // getattr(self.host, self.frames_factor)) + 1

    def given_frames(self, step: Step) -> int:
        """Latent frames in front that are given, not sampled: the picture of image-to-video."""
        return 0

    def denormalised(self, clean: Tensor) -> Tensor:
        """z0_hat [b, c, t, h, w] as the VAE decodes it."""
        config = self.host.vae.config
        scaled = clean / (config.get("scaling_factor") or 1)
        if config.get("latents_mean") is None:
            return scaled
        mean, deviation = (
            torch.tensor(config[name], dtype=clean.dtype, device=clean.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return scaled * deviation + mean

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """The whole clip is decoded, then the frames are taken: right for every VAE."""
        latents = self.denormalised(clean).to(self.host.vae.dtype)
        return self.host.vae.decode(latents).sample[:, :, list(frames)]

    def scale(self, step: Step) -> float:
        """The guidance scale of this step."""
        return self.host.guidance_scale

    def combine(self, step: Step, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """Classifier-free guidance on the branches' outputs [b, c, t, h, w], rescaled where the pipeline says so."""
        combined = unconditional + self.scale(step) * (conditional - unconditional)
        rescale = getattr(self.host, "guidance_rescale", 0.0)
        if not rescale:
            return combined
        deviations = [values.flatten(1).std(1).view(-1, 1, 1, 1, 1) for values in (conditional, combined)]
        return combined * (1 - rescale + rescale * deviations[0] / deviations[1])

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether this run uses classifier-free guidance."""
        return self.host.do_classifier_free_guidance

    # --- what they share

    @classmethod
    def recognises(cls, host: Any) -> bool:
        return any(
            base.__name__ in cls.pipelines and base.__module__.startswith("diffusers.") for base in type(host).__mro__
        )

    @classmethod
    def host_class(cls) -> str:
        return ", ".join(f"diffusers.{name}" for name in cls.pipelines)

    def run_site(self) -> Site:
        return type(self.host), "__call__"

    def step_site(self) -> Site:
        return call_site(getattr(self.host, self.denoiser))

    def begin(self) -> None:
        super().begin()
        self._first = sys.maxsize  # step of the schedule that this sampling begins with

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

    def noise_seed(self) -> int:
        given = self.arguments.get("generator")
        first = given[0] if isinstance(given, list) and given else given
        return first.initial_seed() if isinstance(first, torch.Generator) else super().noise_seed()

    def modules(self) -> list[nn.Module]:
        return [self.network, uncompiled(self.host.vae), uncompiled(self.host.text_encoder)]

    def vae(self) -> nn.Module:
        return self.host.vae

    def bound(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """The denoiser's arguments by name."""
        return inspect.signature(self.network.forward).bind(*args, **kwargs)

    def step(self, latents: Tensor, rows: Tensor, call: Call) -> Step:
        """The step of this call, from the conditional branch's latents [b, c, t, h, w] and text rows [b, l, d]."""
        timestep = float(self.timestep(call.arguments.arguments))
        index, total = schedule_step(self.host.scheduler, timestep)
        self._first = min(self._first, index)  # video-to-video begins later in the schedule
        return Step(
            latents=latents,
            conditioning=rows,
            index=index - self._first,
            total=total - self._first,
            timestep=timestep,
            frames=self.clip_frames(latents),
            call=call,
        )

    def timestep(self, arguments: dict[str, Any]) -> float:
        """The scheduler's timestep; of what is given, not sampled, the denoiser is told a smaller one."""
        return float(torch.as_tensor(arguments["timestep"]).max())

    def latents_in(self, arguments: dict[str, Any]) -> Tensor:
        """The denoiser's latents [b, c, t, h, w], without a condition that is joined to them."""
        latents = self.unpack(arguments[self.latents_argument], arguments)
        return latents[:, : self.channels(arguments)]

    def channels(self, arguments: dict[str, Any]) -> int:
        """Channels of the clip's latents."""
        config = self.host.vae.config
        return config.get("z_dim") or config.get("latent_channels")

    def in_float32(self, step: Step) -> Step:
        tensors = {"latents": full_precision(step.latents), "conditioning": full_precision(step.conditioning)}
        given, full = step.call.arguments, partial(tree_map_only, Tensor, full_precision)
        arguments = inspect.BoundArguments(given.signature, full(given.arguments))
        call = replace(step.call, arguments=arguments, negative=full(step.call.negative))
        return replace(step, **tensors, call=replace(call, unconditional=None, branches={}))

    def sub_clip(self, step: Step, frames: range) -> Step | None:
        if not self.parts or self.controlled(step):
            return None
        part = slice(frames.start, frames.stop)
        unconditional = self.unconditional(step)[:, :, part] if self.do_classifier_free_guidance else None
        call = Call(step.call.arguments, step.call.negative, unconditional, first=frames.start)
        latents = step.latents[:, :, part]
        return replace(step, latents=latents, frames=self.clip_frames(latents), call=call)

    def controlled(self, step: Step) -> bool:
        """Whether more than latents and text is given for every frame: a control, a condition, a history."""
        given = {name: value for name, value in step.call.arguments.arguments.items() if value is not None}
        dimension = self.channels_dimension
        joined = given[self.latents_argument].shape[dimension] > self.pack(step.latents).shape[dimension]
        return joined or self.given_frames(step) > 0 or not PER_FRAME.isdisjoint(given)

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
        clean = clean_latents(self.host.scheduler, step.latents, output, step.timestep)
        given = self.given_frames(step)
        return torch.cat([step.latents[:, :, :given].to(clean), clean[:, :, given:]], 2) if given else clean

    def unconditional(self, step: Step) -> Tensor:
        """The unconditional branch, computed once a step and without a graph."""
        if step.call.unconditional is None:
            with torch.no_grad():
                step.call.unconditional = self.branch(step, step.call.negative)
        return step.call.unconditional

    def branch(self, step: Step, rows: Tensor) -> Tensor:
        """The denoiser on one branch: its text rows [b, l, d] -> its output [b, c, t, h, w]."""
        call = inspect.BoundArguments(step.call.arguments.signature, step.call.arguments.arguments.copy())
        call.arguments.update(self.own_arguments(step, rows))
        given = call.arguments[self.latents_argument]
        packed = self.pack(step.latents)
        if packed.shape[self.channels_dimension] < given.shape[self.channels_dimension]:  # a condition is joined
            channels = packed.shape[self.channels_dimension]
            rest = given.narrow(self.channels_dimension, channels, given.shape[self.channels_dimension] - channels)
            packed = torch.cat([packed, rest.to(packed)], self.channels_dimension)
        call.arguments[self.latents_argument] = packed
        call.arguments.update(self.branch_arguments(step, rows))
        result = type(self.network)._call_impl(self.network, *call.args, **call.kwargs)  # neither hooked nor compiled
        output = self.unpack(result[0], call.arguments)
        step.call.kind, step.call.tail = type(result), tuple(result[1:])
        step.call.unused = output.shape[1] - step.latents.shape[1]
        return output[:, : step.latents.shape[1]]

    def own_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        """What of the host's call's arguments is this branch's, beside text and latents."""
        return {}

    def returned(self, step: Step, output: Tensor) -> Any:
        """An output [b, c, t, h, w] in the form in which the denoiser returns its own."""
        kind = step.call.kind
        output = F.pad(output, (0, 0) * 3 + (0, step.call.unused))
        return (self.pack(output), *step.call.tail) if kind is tuple else kind(sample=self.pack(output))


def with_mask(rows: Tensor, mask: Tensor) -> Tensor:
    """Text rows [b, l, d] with their mask [b, l] as one column more."""
    return torch.cat([rows, mask.to(rows.dtype).unsqueeze(-1)], dim=-1)
