"""A ComfyUI model whose samplings are guided, whatever sampler and scheduler make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.backbones.comfyui.gradients import OutOfPlace, native_attention, tensors_usable, usable
from mp_hooks.backbones.comfyui.text import TextEncoder
from mp_hooks.compat import swapped
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Host, MotionPrompt, Run, Step, full_precision
from mp_hooks.guidance.tokens import TextInput, same_rows
from mp_hooks.hooks import Hooks

KEY = "motionprompt"  # of what a model carries for us
MODELS = ("WAN21", "LTXV")  # base classes in comfy.model_base of the models that are known
BLOCKS = ("WanAttentionBlock", "BasicTransformerBlock", "T5Block", "CLIPLayer")
CAUSAL = ("WanVAE",)  # VAEs of which a prefix of the latents is decoded as within the whole
PARTIAL = ("area", "mask", "start_percent", "end_percent", "control", "gligen", "hooks")  # that a conditioning may have


@dataclass(frozen=True)
class Call:
    """One call of ComfyUI's denoiser, on all branches. memo: x0 of the branches without T, by their place."""

    denoise: Callable[..., Tensor]
    latents: Tensor
    sigma: Tensor
    options: dict[str, Any]
    seed: int | None
    memo: dict[int, Tensor] = field(default_factory=dict)


class ComfyUI(Host):
    """A model with its text encoder and VAE: the objects that ComfyUI's nodes hand on as MODEL, CLIP and VAE.

    ComfyUI wraps its own functions where a model asks for it, so nothing of it is replaced: a whole sampling
    (OUTER_SAMPLE), what the sampler takes for z0_hat (PREDICT_NOISE), and in guided steps the branches of classifier-
    free guidance (CALC_COND_BATCH), of which those without T are computed once. prompt: the text of the positive
    conditioning.
    """

    def __init__(self, clip: Any, vae: Any, prompt: str, config: MotionPromptConfig) -> None:
        """Raises MotionPromptError for a text encoder or a VAE that is not known, and as `MotionPrompt` does."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        self.encoder = TextEncoder(clip)
        self.image_decoder, self.prompt = vae, prompt
        if not isinstance(vae.upscale_ratio, tuple):
            raise MotionPromptError("MotionPrompt needs the VAE of a video model, and this one is for images")
        with torch.inference_mode(False):
            self.method = MotionPrompt(config)
        self.method.observers.append(lambda _run, _update: throw_exception_if_processing_interrupted())
        self.current: Run | None = None
        self.records: list[dict[str, Any]] = []  # of the last sampling, as a trace has them

    def guide(self, model: Any) -> Any:
        """A clone of `model`, a ModelPatcher, whose samplings are guided; MotionPromptError where it is not known."""
        from comfy.patcher_extension import WrappersMP

        kind = type(model.model)
        if not _is_one_of(kind, MODELS):
            raise MotionPromptError(
                f"in ComfyUI MotionPrompt knows Wan and LTX-Video, and this model is {kind.__name__}"
            )
        model = model.clone()
        for site, wrapper in ((WrappersMP.OUTER_SAMPLE, self._sample), (WrappersMP.PREDICT_NOISE, self._predict)):
            model.remove_wrappers_with_key(site, KEY)  # of an earlier node
            model.add_wrapper_with_key(site, KEY, wrapper)
        model.set_attachments(KEY, self)
        # ComfyUI then makes room for all three together
        model.set_additional_models(KEY, [self.encoder.clip.patcher, self.image_decoder.patcher])
        return model

    # --- a sampling

    def _sample(self, executor: Any, noise: Tensor, latents: Any, sampler: Any, sigmas: Tensor, *rest: Any) -> Tensor:
        self.guider, self.sigmas, self.seed = executor.class_obj, sigmas, rest[-1]
        self.model: nn.Module = self.guider.model_patcher.model
        self._refuse(noise)
        finished = False
        with self.method.trace.copied() as self.records:
            with torch.inference_mode(False):
                run = self.current = self.method.run(self, [self.prompt])
            try:
                result = executor(noise, latents, sampler, sigmas, *rest)
                finished = True
            finally:
                self.current = None
                run.close(finished)
        return result

    def _refuse(self, noise: Tensor) -> None:
        """MotionPromptError for a sampling that cannot be guided, before it begins."""
        if len(noise) != 1:
            raise MotionPromptError(f"MotionPrompt guides one clip at a time, and this batch has {len(noise)}")
        positive = self.guider.conds.get("positive") or []
        if len(positive) != 1 or any(positive[0].get(name) is not None for name in PARTIAL):
            raise MotionPromptError(
                "MotionPrompt needs one positive prompt for the whole clip: no areas, masks, combined or scheduled "
                "conditionings, no ControlNet"
            )
        options = self.guider.model_options
        inside = options["transformer_options"]
        compiled = "torch.compile" in inside.get("wrappers", {}).get("apply_model", {})
        if "easycache" in inside or compiled or options.get("context_handler"):
            raise MotionPromptError(
                "MotionPrompt cannot guide with a step cache (EasyCache, LazyCache), TorchCompileModel or context "
                "windows; take that node out"
            )
        rows = positive[0].get("cross_attn")
        if rows is None or not same_rows(self.encode([self.prompt]), rows):
            raise MotionPromptError(
                "the text given to MotionPrompt is not the positive prompt; connect one text, and one CLIP, to both"
            )

    def _predict(
        self, executor: Any, latents: Tensor, sigma: Tensor, options: dict[str, Any], seed: int | None
    ) -> Tensor:
        run, as_found = self.current, torch.is_inference_mode_enabled()
        if run is None:
            return executor(latents, sigma, options, seed)

        def original() -> Tensor:
            with torch.inference_mode(as_found), torch.no_grad():
                return executor(latents, sigma, options, seed)

        with torch.inference_mode(False), torch.no_grad():
            return run.step(self._read(Call(executor, usable(latents), usable(sigma), options, seed)), original)

    def _read(self, call: Call) -> Step:
        sigma, total = float(call.sigma.max()), len(self.sigmas) - 1
        index = int((self.sigmas[:-1] >= sigma * (1 - 1e-5)).sum()) - 1  # between two steps it is the first's
        dtype = self.model.manual_cast_dtype or self.model.get_dtype()
        return Step(
            latents=call.latents.to(dtype),
            conditioning=usable(self._positive()["model_conds"]["c_crossattn"].cond),
            index=min(max(index, 0), total - 1),
            total=total,
            timestep=float(self.model.model_sampling.timestep(call.sigma).max()),
            frames=self.image_decoder.upscale_ratio[0](call.latents.shape[2]),
            call=call,
        )

    def _positive(self) -> dict[str, Any]:
        return self.guider.conds["positive"][0]

    # --- text

    @property
    def text(self) -> TextInput:
        return self.encoder.input

    def word_ids(self, word: str) -> list[int]:
        return self.encoder.word_ids(word)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return self.encoder.encode(prompts[0])

    def room_for(self, tokens: int) -> AbstractContextManager[None]:
        return swapped(self.encoder, "room", tokens)

    # --- a step

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        call: Call = step.call
        found = self._positive()
        tensors = {name: usable(cond.cond) for name, cond in found["model_conds"].items() if _is_tensor(cond)}
        tensors["c_crossattn"] = conditioning
        if "attention_mask" in tensors:
            tensors["attention_mask"] = self.encoder.mask
        conds = {name: cond._copy_with(tensors.get(name, cond.cond)) for name, cond in found["model_conds"].items()}
        changed = {**self.guider.conds, "positive": [{**found, "model_conds": conds}]}
        # what it casts to, also where the weights are float32 meanwhile
        cast = swapped(self.model, "manual_cast_dtype", step.latents.dtype)
        with swapped(self.guider, "conds", changed), cast:
            return call.denoise(call.latents, call.sigma, self._options(call), call.seed)

    def step_with(self, step: Step, conditioning: Tensor) -> Tensor:
        return self.predict_clean(step, conditioning)

    def in_float32(self, step: Step) -> Step:
        return replace(step, latents=full_precision(step.latents), call=replace(step.call, memo={}))

    def _options(self, call: Call) -> dict[str, Any]:
        """The call's model options, with attention that has a backward pass, and branches apart."""
        from comfy.model_patcher import create_model_options_clone
        from comfy.patcher_extension import WrappersMP, add_wrapper

        options = create_model_options_clone(call.options)
        options["transformer_options"]["optimized_attention_override"] = self._attention
        add_wrapper(WrappersMP.CALC_COND_BATCH, partial(self._branches, call), options, is_model_options=True)
        return options

    def _branches(
        self, call: Call, executor: Any, model: Any, conds: list, latents: Tensor, *rest: Any
    ) -> list[Tensor]:
        """Each branch alone, at its place among the others; one without T once a step, and without a graph."""

        def alone(place: int) -> Tensor:
            only = [cond if number == place else None for number, cond in enumerate(conds)]
            return executor(model, only, latents, *rest)[place]

        results = []
        for place, cond in enumerate(conds):
            if cond is self.guider.conds["positive"] or latents is not call.latents:
                results.append(alone(place))
                continue
            if place not in call.memo:
                with torch.no_grad():
                    call.memo[place] = alone(place)
            results.append(call.memo[place])
        return results

    @contextmanager
    def guided_step(self, step: Step) -> Iterator[None]:
        clip, hooks = self.encoder.clip, Hooks()
        try:
            self._attention = native_attention(hooks)
            hooks.wrap(clip, "load_model", lambda _original: clip.patcher)  # it is there, see `guide`
            with tensors_usable([*self.modules(), self.encoder.module], [self.model.latent_format]), OutOfPlace():
                yield
        finally:
            hooks.remove()

    # --- pixels and weights

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        ratio, vae = self.image_decoder.upscale_ratio[0], self.vae()
        latents = self.model.process_latent_out(clean)
        if type(vae).__name__ in CAUSAL:
            latents = latents[:, :, : next(n for n in range(1, latents.shape[2] + 1) if ratio(n) > max(frames))]
        latents = latents.to(self.image_decoder.device, next(vae.parameters()).dtype)
        return vae.decode(latents)[:, :, list(frames)]

    def modules(self) -> list[nn.Module]:
        # not the text encoder: ComfyUI has frozen it and computes it in float32, whatever its weights are
        return [self.model, self.vae()]

    def vae(self) -> nn.Module:
        return self.image_decoder.first_stage_model

    def blocks(self) -> dict[str, list[nn.Module]]:
        parts = [part for module in (self.model, self.encoder.module) for part in module.modules()]
        return {"attention": [part for part in parts if _is_one_of(type(part), BLOCKS)], "other": []}

    def noise_seed(self) -> int:
        return super().noise_seed() if self.seed is None else self.seed


def _is_tensor(cond: Any) -> bool:
    return isinstance(cond.cond, Tensor)


def _is_one_of(kind: type, names: Sequence[str]) -> bool:
    return any(base.__name__ in names for base in kind.__mro__)
