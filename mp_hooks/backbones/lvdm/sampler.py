"""What lvdm hosts share: their DDIM samplers. Facts about their code carry the commit in patches/."""

from __future__ import annotations

import importlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.backbones.base import Adapter, Site, detached
from mp_hooks.backbones.hooks import Hooks
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Step
from mp_hooks.guidance.tokens import TextInput

REMEMBERED_ENCODINGS = 32  # prompt batches a script may encode before it samples


class LVDM(Adapter):
    """`host` is a LatentDiffusion model, sampled by the DDIMSampler of `sampler_modules`, the first unless told.

    The sampler never sees prompts, so they are remembered as they are encoded. Undecorated, DDIMSampler.p_sample_ddim
    returns (x_prev, pred_x0) with a graph through the host's own guidance.
    """

    sampler_modules: ClassVar[tuple[str, ...]] = ("lvdm.models.samplers.ddim",)

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host)
        self._samplers = [importlib.import_module(module).DDIMSampler for module in self.sampler_modules]
        self._encoded: deque[tuple[list[str], Tensor]] = deque(maxlen=REMEMBERED_ENCODINGS)

    # --- where and when

    def run_site(self) -> Site:
        return self._samplers[0], "sample"

    def step_site(self) -> Site:
        return self._samplers[0], "p_sample_ddim"

    def watch(self) -> dict[Site, Callable[..., Any]]:
        further = self._samplers[1:]
        return {
            (self.host, "get_learned_conditioning"): self._remember,
            **{(sampler, "sample"): self._around_run for sampler in further},
            **{(sampler, "p_sample_ddim"): self._around_step for sampler in further},
        }

    def _remember(self, original: Callable[..., Tensor], prompts: Sequence[str] | str) -> Tensor:
        encoding = original(prompts)
        self._encoded.append(([prompts] if isinstance(prompts, str) else list(prompts), encoding.detach()))
        return encoding

    def prompts(self, *args: Any, **kwargs: Any) -> list[str] | None:
        call = inspect.signature(self.original_run).bind(*args, **kwargs).arguments
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

    def take(self, step: Step, conditioning: Tensor) -> tuple[Tensor, Tensor]:
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
        # the class's function: the instance's one is watched
        return type(self.host).get_learned_conditioning(self.host, list(prompts))

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        return self._sampled(step, conditioning)[1]

    def _sampled(self, step: Step, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """(x_prev, pred_x0) of the host's own step, undecorated."""
        call = self._with_text(step, conditioning)
        return inspect.unwrap(type(call.arguments["self"]).p_sample_ddim)(*call.args, **call.kwargs)

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        dtype = next(self.host.first_stage_model.parameters()).dtype
        return self.host.decode_core(clean[:, :, list(frames)].to(dtype))

    def modules(self) -> list[nn.Module]:
        return [self.host]

    @contextmanager
    def scope(self, step: Step) -> Iterator[None]:
        """Branches without T are computed once, and the host's checkpointing is one that autograd.grad takes."""
        arguments = step.call.arguments
        without_text = [arguments["unconditional_conditioning"], *arguments["kwargs"].values()]
        constant = {id(value) for value in without_text if isinstance(value, dict)}
        known: dict[int, Tensor] = {}

        def once(original: Callable[..., Tensor], x: Tensor, t: Tensor, cond: Any, **kwargs: Any) -> Tensor:
            if id(cond) not in constant:
                return original(x, t, cond, **kwargs)
            if id(cond) not in known:
                with torch.no_grad():
                    known[id(cond)] = original(x, t, cond, **kwargs)
            return known[id(cond)]

        def without_reentry(
            original: Callable[..., Any], function: Callable[..., Any], *inputs: Any, use_reentrant: bool = False
        ) -> Any:
            return original(function, *inputs, use_reentrant=False)

        hooks = Hooks()
        try:
            hooks.wrap(self.host, "apply_model", once)
            hooks.wrap(importlib.import_module("lvdm.common"), "ckpt", without_reentry)
            yield
        finally:
            hooks.remove()

    def _with_text(self, step: Step, conditioning: Tensor) -> inspect.BoundArguments:
        """The host's call with only the text rows of its conditioning replaced, in a dict of our own."""
        call = inspect.BoundArguments(step.call.signature, step.call.arguments.copy())
        own = call.arguments["c"]
        rest = _context(own)[:, self._text_length :]  # image tokens, where the host has any
        call.arguments["c"] = {**own, "c_crossattn": [torch.cat([conditioning, rest], dim=1)]}
        return call

    @property
    def _text_length(self) -> int:
        return self.host.cond_stage_model.max_length

    @staticmethod
    def _tokenize(text: str) -> Tensor:
        import open_clip

        return open_clip.tokenize([text])[0]


def _context(conditioning: Any) -> Tensor:
    """The text (and image) rows [b, l, d] of an LVDM conditioning dict."""
    if not isinstance(conditioning, dict) or "c_crossattn" not in conditioning:
        raise MotionPromptError(
            "this sampling has no text conditioning to optimise; pass conditioning={'c_crossattn': [text], ...}"
        )
    return torch.cat(conditioning["c_crossattn"], dim=1)
