"""What users reported of these hosts and of similar tools: guided, or told; never quietly something else."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_hooks import backbones, motionprompt
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import MotionPrompt
from mp_hooks.testing import tiny
from mp_hooks.testing.conformance import Recorder, assert_same_guidance
from mp_hooks.testing.diffusers import DiffusersCase

diffusers = pytest.importorskip("diffusers")

PIPELINES = ["diffusers-animatediff", "diffusers-wan", "diffusers-ltx"]
UNGUIDED = "this sampling was not guided"


@contextmanager
def opened(name: str) -> Iterator[tuple[DiffusersCase, Any]]:
    """A tiny pipeline of which one step is guided, once."""
    case = tiny(name)
    assert isinstance(case, DiffusersCase)
    case.config = replace(case.config, stop=0.5, iterations=1, checkpointing="none")
    with case.open() as pipe:
        yield case, pipe


@pytest.fixture(params=PIPELINES)
def host(request: pytest.FixtureRequest) -> Iterator[tuple[DiffusersCase, Any]]:
    with opened(request.param) as host:
        yield host


def sampled(
    case: DiffusersCase, pipe: Any, config: MotionPromptConfig | None = None, prompts: Any = None, **options: Any
) -> tuple[Tensor, Recorder]:
    """A guided sampling, and its method with every update."""
    method = Recorder(config or case.config)
    with backbones.attached(pipe, method):
        return case.sample(pipe, prompts or case.prompts, seed=7, **options), method


def network(pipe: Any) -> nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def replace_network(pipe: Any, module: nn.Module) -> None:
    setattr(pipe, "unet" if hasattr(pipe, "unet") else "transformer", module)


# --- silence


class WithoutBackward:
    """An attention processor made for inference."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.own(attn, hidden_states, *args, **kwargs)


def test_a_gradient_that_is_exactly_zero_is_told_and_moves_nothing(host: Any) -> None:
    case, pipe = host
    module = network(pipe)
    module.set_attn_processor({name: WithoutBackward(own) for name, own in module.attn_processors.items()})
    with pytest.warns(UserWarning, match="gradient of the motion terms was exactly zero") as told:
        # with a regulariser that would move tokens by itself, and weight decay too
        _, method = sampled(case, pipe, replace(case.config, optimizer="adamw", lambda_reg=1.0))
    assert len([one for one in told if UNGUIDED in str(one.message)]) == 1
    assert method.updates and not any(update.moved.any() for update in method.updates)
    assert torch.equal(method.runs[0].tokens, method.runs[0].initial.expand_as(method.runs[0].tokens))
    with (
        pytest.raises(MotionPromptError, match="exactly zero"),
        motionprompt(pipe, replace(case.config, strict=True)),
    ):
        case.sample(pipe, case.prompts, seed=7)


def test_a_denoiser_that_is_never_called_through_guidance_is_told(host: Any, tmp_path: Any) -> None:
    """Whatever the way: here the pipeline's loop is given another module after it has begun."""
    case, pipe = host
    own, called = network(pipe), []

    class Other(nn.Module):
        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name) if name == "own" else getattr(own, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            called.append(1)
            return own.forward(*args, **kwargs)

    other = Other()
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: (replace_network(pipe, other), encode(*args, **kwargs))[1]
    with pytest.warns(UserWarning, match="never called through MotionPrompt"):
        sampled(case, pipe)
    assert called


COMPILED: dict[str, Callable[[Any], Any]] = {
    "module.compile()": lambda pipe: network(pipe).compile(backend="eager"),
    "torch.compile(module)": lambda pipe: replace_network(pipe, torch.compile(network(pipe), backend="eager")),
    "repeated blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
    "text encoder": lambda pipe: setattr(pipe, "text_encoder", torch.compile(pipe.text_encoder, backend="eager")),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("diffusers-animatediff", "module.compile()"),
        ("diffusers-ltx", "module.compile()"),
        ("diffusers-wan", "torch.compile(module)"),
        ("diffusers-ltx", "repeated blocks"),
        ("diffusers-ltx", "text encoder"),
    ],
)
def test_compiled_parts_are_guided_as_uncompiled_ones(name: str, how: str) -> None:
    with opened(name) as (case, pipe):
        expected, method = sampled(case, pipe)
        COMPILED[how](pipe)
        latents, compiled = sampled(case, pipe)
        assert_same_guidance(latents, expected)
        assert len(compiled.updates) == len(method.updates)


# --- the user's text


def switch_text(number: int) -> dict[str, Any]:
    """Options of a pipeline's call whose callback gives the denoiser another text after step `number`."""

    def switched(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": tensors["prompt_embeds"].flip(0)} if step == number else {}

    return {"callback_on_step_end": switched, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


@pytest.mark.parametrize("name", [*PIPELINES, "diffusers-cogvideox"])
def test_text_that_a_callback_switches_stays_switched(name: str) -> None:
    """Guided steps after it would encode the prompt of before: they are the host's own, and that is told."""
    with opened(name) as (case, pipe):
        plain = case.sample(pipe, case.prompts, seed=7, **switch_text(0))
        with pytest.warns(UserWarning, match="not those of the prompt"):
            latents, method = sampled(case, pipe, **switch_text(0))
        assert not method.updates  # steps 1 and 2 are in the window
        assert torch.equal(latents, plain)


@pytest.mark.parametrize("name", ["diffusers-animatediff", "diffusers-text-to-video-sd"])
def test_a_lora_on_the_text_encoder_keeps_its_scale(name: str) -> None:
    peft = pytest.importorskip("peft")
    with opened(name) as (case, pipe):
        torch.manual_seed(3)
        lora = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(lora, pipe.text_encoder)
        options = {"cross_attention_kwargs": {"scale": 0.25}}
        rows = []
        handle = network(pipe).register_forward_pre_hook(
            lambda _module, _args, given: rows.append(given["encoder_hidden_states"]), with_kwargs=True
        )
        case.sample(pipe, case.prompts, seed=7, **options)
        host_rows = rows[0].chunk(2)[1]
        case.sample(pipe, case.prompts, seed=7)
        assert not torch.allclose(host_rows, rows[-1].chunk(2)[1], atol=1e-3), "the scale must matter here"
        handle.remove()
        method = MotionPrompt(case.config)
        with backbones.attached(pipe, method), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # which tells where another text is passed
            adapter = backbones.patched_adapter(pipe)
            case.sample(pipe, case.prompts, seed=7, **options)
            ours = adapter.text_arguments(adapter.encode(case.prompts), 4)["encoder_hidden_states"]
        torch.testing.assert_close(ours, host_rows, rtol=1e-4, atol=1e-5)


# --- copies and replaced parts


def test_copies_of_a_patched_hosts_parts_are_plain_and_their_own(host: Any) -> None:
    case, pipe = host
    module = network(pipe)
    with motionprompt(pipe, case.config):
        case.sample(pipe, case.prompts, seed=7)
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies = [copy.deepcopy(module), torch.load(buffer, weights_only=False)]
    given: list[Any] = []
    handle = module.register_forward_pre_hook(
        lambda _module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    case.sample(pipe, case.prompts, seed=7)
    handle.remove()
    args, kwargs = given[0]
    with torch.no_grad():
        expected = module(*args, **kwargs)[0]
        for copied in copies:
            torch.testing.assert_close(copied(*args, **kwargs)[0], expected)
            for weight in copied.parameters():
                weight.mul_(1.5)
            assert not torch.allclose(copied(*args, **kwargs)[0], expected)
        torch.testing.assert_close(module(*args, **kwargs)[0], expected)


def test_a_deep_copy_of_a_patched_pipeline_is_not_patched(host: Any) -> None:
    case, pipe = host
    plain = case.sample(pipe, case.prompts, seed=7)
    with motionprompt(pipe, case.config):
        copied = copy.deepcopy(pipe)
        assert backbones.is_patched(pipe) and not backbones.is_patched(copied)
        assert torch.equal(case.sample(copied, case.prompts, seed=7), plain)
        assert not torch.equal(case.sample(pipe, case.prompts, seed=7), plain)


def test_a_part_replaced_while_patched_is_guided(host: Any) -> None:
    case, pipe = host
    expected, method = sampled(case, pipe)
    recorder = Recorder(case.config)
    with backbones.attached(pipe, recorder):
        replace_network(pipe, copy.deepcopy(network(pipe)))
        pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
        assert_same_guidance(case.sample(pipe, case.prompts, seed=7), expected)
    assert len(recorder.updates) == len(method.updates) > 0


# --- batches, caches, fp8


@pytest.mark.parametrize("name", ["diffusers-wan", "diffusers-ltx"])
def test_several_videos_of_a_prompt_have_their_own_tokens(name: str) -> None:
    with opened(name) as (case, pipe):
        method = Recorder(case.config)
        with backbones.attached(pipe, method):
            latents = case.sample(pipe, case.prompts[:1], seed=7, num_videos_per_prompt=2)
        tokens = method.runs[0].tokens
        assert len(latents) == len(tokens) == 2
        assert all(update.moved.all() for update in method.updates)
        assert not torch.allclose(tokens[0], tokens[1])


@pytest.mark.parametrize("name", ["diffusers-cogvideox", "diffusers-wan", "diffusers-ltx"])
def test_a_step_cache_is_refused_in_a_sentence(name: str) -> None:
    with opened(name) as (case, pipe):
        config = diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe._current_timestep
        )
        pipe.transformer.enable_cache(config)
        with pytest.raises(MotionPromptError, match=r"disable_cache\(\)"):
            sampled(case, pipe)
        pipe.transformer.disable_cache()
        assert sampled(case, pipe)[1].updates


@pytest.mark.parametrize("name", [*PIPELINES, "diffusers-cogvideox"])
def test_weights_stored_in_fp8_are_guided_as_their_values(name: str) -> None:
    """diffusers' layer-wise casting swaps `weight.data` around each layer's call."""
    with opened(name) as (case, pipe):
        module = network(pipe)
        for weight in module.parameters():
            weight.data = weight.data.to(torch.float8_e4m3fn).float()
        expected = sampled(case, pipe)[1].updates[0].gradient
        module.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32, skip_modules_pattern=()
        )
        gradient = sampled(case, pipe)[1].updates[0].gradient
        assert torch.cosine_similarity(gradient.flatten(1), expected.flatten(1)).min() > 0.99


# --- optional features under every preset

Feature = tuple[str, Callable[[Any], Any], dict[str, Any]]  # host, what is enabled on it, options of its call
FEATURES: dict[str, Feature] = {
    "FreeNoise": (
        "diffusers-animatediff",
        lambda pipe: pipe.enable_free_noise(context_length=4, context_stride=2),
        {"num_frames": 8, "prompts": "a tiger walks"},
    ),
    "FreeInit": ("diffusers-animatediff", lambda pipe: pipe.enable_free_init(num_iters=2), {}),
    "no guidance scale": ("diffusers-animatediff", lambda pipe: None, {"guidance_scale": 1.0}),
    "negative prompts": ("diffusers-animatediff", lambda pipe: None, {"negative_prompt": ["a boat", "the sea"]}),
    "sliced decoding": ("diffusers-animatediff", lambda pipe: pipe.vae.enable_slicing(), {}),
    "chunked feed-forward": ("diffusers-animatediff", lambda pipe: pipe.unet.enable_forward_chunking(1, 1), {}),
    "dynamic guidance scale": ("diffusers-cogvideox", lambda pipe: None, {"use_dynamic_cfg": True}),
    "tiled decoding": ("diffusers-wan", lambda pipe: pipe.vae.enable_tiling(), {}),
    "rescaled guidance": ("diffusers-ltx", lambda pipe: None, {"guidance_rescale": 0.7}),
}


@pytest.mark.parametrize("preset", [{}, {"subclip": 4, "iterations": 1}], ids=["exact", "balanced"])
@pytest.mark.parametrize("feature", FEATURES)
def test_optional_features_are_guided_under_every_preset(feature: str, preset: dict[str, Any]) -> None:
    name, enable, options = FEATURES[feature]
    with opened(name) as (case, pipe):
        options = {"num_frames": 6, **options} if preset and name in PIPELINES[:1] else options
        enable(pipe)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*subclip has no effect")
            warnings.filterwarnings("error", category=UserWarning, message=".*guid")
            latents, method = sampled(case, pipe, replace(case.config, **preset), **options)
        assert latents.isfinite().all()
        assert method.updates and all(update.moved.all() for update in method.updates)
