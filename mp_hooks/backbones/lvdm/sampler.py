"""What lvdm hosts share: their DDIM samplers. Facts about their code carry the commit in patches/."""

from __future__ import annotations

import importlib
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mp_hooks.backbones.base import Adapter, Site, detached
from mp_hooks.compat import swapped
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput
from mp_hooks.hooks import Hooks

REMEMBERED_ENCODINGS = 32  # prompt batches a script may encode before it samples
TOKENS_A_FRAME = 16  # of a picture, where each frame has its own (DynamiCrafter)


@dataclass(frozen=True)
class _SubClip:
    """A conditioning cut to some frames (kept, so that its id stays its own), and what it was cut from."""

    own: dict[str, Any]
    latents: Tensor
    whole: dict[str, Any]
    part: slice


class LVDM(Adapter):
    """`host` is a LatentDiffusion model, sampled by the DDIMSampler of `sampler_modules`, the first unless told.

    The sampler never sees prompts, so they are remembered as they are encoded. Undecorated, DDIMSampler.p_sample_ddim
    returns (x_prev, pred_x0) with a graph through the host's own guidance.
    """

    sampler_modules: ClassVar[tuple[str, ...]] = ("lvdm.models.samplers.ddim",)

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host)
        self._samplers = [importlib.import_module(module).DDIMSampler for module in self.sampler_modules]
        self._with_tokens: dict[str, Any] | None = None  # the conditioning of the call being made
        self._sub_clips: dict[int, _SubClip] = {}  # in a guided step, by the id of the sub-clip's conditioning
        self._encoded: deque[tuple[list[str], Tensor]] = deque(maxlen=REMEMBERED_ENCODINGS)

    @classmethod
    def host_class(cls) -> str:
        return "lvdm.models.ddpm3d.LatentDiffusion"

    # --- where and when

    def run_site(self) -> Site:
        return self._samplers[0], "sample"

    def step_site(self) -> Site:
        return self._samplers[0], "p_sample_ddim"

    def watch(self) -> dict[Site, Callable[..., Any]]:
        return {
            # the class's, so that a copy of the model holds nothing of ours
            (type(self.host), "get_learned_conditioning"): self._remember,
            **{(sampler, "sample"): self._around_run for sampler in self._samplers[1:]},
        }

    def watch_run(self) -> dict[Site, Callable[..., Any]]:
        return {(sampler, "p_sample_ddim"): self._around_step for sampler in self._samplers[1:]}

    def _remember(self, original: Callable[..., Tensor], model: Any, prompts: Sequence[str] | str) -> Tensor:
        encoding = original(model, prompts)
        if model is not self.host or self.current is not None:
            return encoding
        self._encoded.append(([prompts] if isinstance(prompts, str) else list(prompts), encoding.detach()))
        return encoding

    def prompts(self, call: dict[str, Any]) -> list[str] | None:
        if call["self"].model is not self.host:
            return None
        context = _context(call["conditioning"])
        for prompts, encoding in reversed(self._encoded):
            text = context[:, : encoding.shape[1]]
            if text.shape == encoding.shape and torch.equal(text, encoding):
                return prompts
        raise MotionPromptError(
            "the prompts of this sampling are not known; encode them with model.get_learned_conditioning(prompts) "
            "after MotionPrompt is applied"
        )

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        call = inspect.signature(self.original_step).bind(*args, **kwargs)
        sampler, latents = call.arguments["self"], call.arguments["x"]
        if sampler.model is not self.host:
            return None
        call.arguments["c"] = detached(call.arguments["c"])
        call.arguments["unconditional_conditioning"] = detached(call.arguments.get("unconditional_conditioning"))
        call.arguments["kwargs"] = detached(call.arguments.get("kwargs", {}))
        # the host's index counts down to 0, its last step
        total = sampler.ddpm_num_timesteps if call.arguments.get("use_original_steps") else len(sampler.ddim_timesteps)
        return Step(
            latents=latents,
            conditioning=_context(call.arguments["c"])[:, : self._text_length],
            index=total - 1 - call.arguments["index"],
            total=total,
            timestep=float(call.arguments["t"][0]),
            frames=latents.shape[2],
            call=call,
        )

    def step_with(self, step: Step, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._sampled(step, conditioning)

    # --- the host's own computations

    @property
    def text(self) -> TextInput:
        start, end = (int(number) for number in self._tokenize("")[:2])
        return TextInput(self.host.cond_stage_model.model.token_embedding, end=end, start=start)

    def word_ids(self, word: str) -> list[int]:
        ids = self._tokenize(word).tolist()
        return ids[1 : ids.index(self.text.end)]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return self.host.get_learned_conditioning(list(prompts))

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        return self.clean_in(step, self._sampled(step, conditioning))

    def clean_in(self, step: Step, result: tuple[Tensor, Tensor]) -> Tensor:
        return result[1]

    def _sampled(self, step: Step, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """(x_prev, pred_x0) of the host's own step, undecorated."""
        call = self._with_text(step, conditioning)
        return inspect.unwrap(type(call.arguments["self"]).p_sample_ddim)(*call.args, **call.kwargs)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        dtype = next(self.host.first_stage_model.parameters()).dtype
        return self.host.decode_core(clean[:, :, list(frames)].to(dtype))

    def modules(self) -> list[nn.Module]:
        return [self.host]

    def vae(self) -> nn.Module:
        return self.host.first_stage_model

    def sub_clip(self, step: Step, frames: range) -> Step:
        """Of what the host is given for each frame, these frames' part: latents, pictures, a picture's tokens."""
        part = slice(frames.start, frames.stop)

        def cut(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            rows = _context(value)
            text, rest = rows[:, : self._text_length], rows[:, self._text_length :]
            if rest.shape[1] == TOKENS_A_FRAME * step.frames:
                rest = rest.unflatten(1, (step.frames, TOKENS_A_FRAME))[:, part].flatten(1, 2)
            pictures = {"c_concat": [each[:, :, part] for each in value["c_concat"]]} if "c_concat" in value else {}
            own = {**value, **pictures, "c_crossattn": [torch.cat([text, rest], dim=1)]}
            self._sub_clips[id(own)] = _SubClip(own, step.latents, value, part)
            return own

        call = inspect.BoundArguments(step.call.signature, step.call.arguments.copy())
        arguments = call.arguments
        arguments["x"] = step.latents[:, :, part]
        for name in ("c", "unconditional_conditioning"):
            arguments[name] = cut(arguments[name])
        arguments["kwargs"] = {name: cut(value) for name, value in arguments["kwargs"].items()}
        return replace(step, latents=arguments["x"], frames=len(frames), call=call)

    def attention(self, hooks: Hooks) -> None:
        """The host has a forward for xformers, used when xformers was there as it was built: it serves here too."""
        module = importlib.import_module("lvdm.modules.attention")
        if module.XFORMERS_IS_AVAILBLE:
            return

        def efficient(
            original: Callable[..., Tensor], layer: nn.Module, x: Tensor, context: Any = None, mask: Any = None
        ) -> Tensor:
            if mask is not None or layer.relative_position or x.shape[1] <= layer.dim_head:  # a small matrix
                return original(layer, x, context, mask)
            with swapped(module, "xformers", xformers):
                return layer.efficient_forward(x, context)

        xformers = SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=_attend))
        hooks.wrap(module.CrossAttention, "forward", efficient)

    def during(self, step: Step, hooks: Hooks) -> None:
        """Branches without T are computed once, and the host's own checkpointing gives way to ours."""
        known: dict[int, tuple[Any, Tensor]] = {}  # by the conditioning's id, with it, so that the id stays its own
        self._sub_clips.clear()

        def once(original: Callable[..., Tensor], x: Tensor, t: Tensor, cond: Any, **kwargs: Any) -> Tensor:
            if cond is self._with_tokens or not isinstance(cond, dict):
                return original(x, t, cond, **kwargs)
            if id(cond) in self._sub_clips:
                part_of = self._sub_clips[id(cond)]
                return once(original, part_of.latents, t, part_of.whole, **kwargs)[:, :, part_of.part]
            if id(cond) not in known:
                with torch.no_grad():
                    known[id(cond)] = cond, original(x, t, cond, **kwargs)
            return known[id(cond)][1]

        def directly(
            _original: Callable[..., Any], function: Callable[..., Any], *inputs: Any, use_reentrant: bool = False
        ) -> Any:
            return function(*inputs)

        hooks.wrap(self.host, "apply_model", once)
        hooks.wrap(importlib.import_module("lvdm.common"), "ckpt", directly)

    def _with_text(self, step: Step, conditioning: Tensor) -> inspect.BoundArguments:
        """The host's call with only the text rows of its conditioning replaced, in a dict of our own."""
        call = inspect.BoundArguments(step.call.signature, step.call.arguments.copy())
        own = call.arguments["c"]
        rest = _context(own)[:, self._text_length :]  # image tokens, where the host has any
        self._with_tokens = {**own, "c_crossattn": [torch.cat([conditioning, rest], dim=1)]}
        call.arguments["c"] = self._with_tokens
        return call

    @property
    def _text_length(self) -> int:
        return self.host.cond_stage_model.max_length

    @staticmethod
    def _tokenize(text: str) -> Tensor:
        import open_clip

        return open_clip.tokenize([text])[0]


def _attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: None, op: None) -> Tensor:
    """xformers' memory_efficient_attention as the host calls it, on [b, l, d]."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]  # its lean kernels want four dimensions


def _context(conditioning: Any) -> Tensor:
    """The text (and image) rows [b, l, d] of an LVDM conditioning dict."""
    if not isinstance(conditioning, dict) or "c_crossattn" not in conditioning:
        raise MotionPromptError(
            "this sampling has no text conditioning to optimise; pass conditioning={'c_crossattn': [text], ...}"
        )
    return torch.cat(conditioning["c_crossattn"], dim=1)
