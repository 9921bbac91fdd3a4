"""Weights that are quantised or offloaded: guided with the gradient of their values, or told. -s prints each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_hooks.backbones import attached
from mp_hooks.guidance.memory import checkpointed
from mp_hooks.guidance.numerics import weights_in_float32
from mp_hooks.hooks import Hooks
from mp_hooks.testing import tiny
from mp_hooks.testing.conformance import Recorder
from mp_hooks.testing.diffusers import DiffusersCase

pytest.importorskip("diffusers")
accelerate = pytest.importorskip("accelerate")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class SetUp:
    """prepare(pipe) makes it, plain(pipe) the same values as plain weights; the cosine of their gradients is at least.

    in_bfloat16: what a host in bfloat16 tells, None where its updates are in float32 as ever. needs: a package.
    """

    prepare: Callable[[Any], Any]
    plain: Callable[[Any], Any] = lambda _pipe: None
    least: float = 0.999
    in_bfloat16: str | None = "updates were computed in half precision"
    needs: str = "accelerate"


def parts(pipe: Any) -> list[nn.Module]:
    return [network(pipe), pipe.vae, pipe.text_encoder]


def network(pipe: Any) -> nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


# --- offloaded: both places are the CPU


def model_offload(pipe: Any) -> None:
    last = None
    for part in (pipe.text_encoder, network(pipe), pipe.vae):
        _, last = accelerate.cpu_offload_with_hook(part, CPU, last)


def sequential_offload(pipe: Any) -> None:
    for part in parts(pipe):
        accelerate.cpu_offload(part, CPU)


def group_offload(pipe: Any, kind: str, **options: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    for part in parts(pipe):
        apply_group_offloading(part, onload_device=CPU, offload_device=CPU, offload_type=kind, **options)


@contextmanager
def groups_that_come_and_go() -> Iterator[None]:
    """As with an accelerator: a group's weights are copies while it is there, and useless while it is not.

    But for embeddings', whose rows the first tokens are read from wherever they are.
    """
    grouping = pytest.importorskip("diffusers.hooks.group_offloading").ModuleGroup
    hooks, kept = Hooks(), {}

    def weights(group: Any) -> list[Tensor]:
        parts = [part for module in group.modules for part in module.modules()]
        tables = {id(part.weight) for part in parts if isinstance(part, nn.Embedding)}
        own = [*group.parameters, *group.buffers, *(one for part in parts for one in part.parameters(recurse=False))]
        return [one for one in own if id(one) not in tables]

    def onload(original: Callable[..., Any], group: Any, *args: Any) -> Any:
        result = original(group, *args)
        for weight in weights(group):
            if id(weight) in kept:
                weight.data = kept[id(weight)].clone()
        return result

    def offload(original: Callable[..., Any], group: Any, *args: Any) -> Any:
        result = original(group, *args)
        for weight in weights(group):
            if weight.is_floating_point():
                kept.setdefault(id(weight), weight.data)
                weight.data = torch.full_like(weight, torch.nan)
        return result

    hooks.wrap(grouping, "onload_", onload)
    hooks.wrap(grouping, "offload_", offload)
    try:
        yield
    finally:
        hooks.remove()


# --- quantised


def layers(pipe: Any) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers of the denoiser's attention and feed-forward blocks, which quantisers take, by owner and name."""
    found = []
    for owner in network(pipe).modules():
        for name, layer in owner.named_children():
            if type(layer) is nn.Linear and layer.in_features % 32 == 0 and name not in ("proj_in", "proj_out"):
                found.append((owner, name, layer))
    return [one for one in found if "Embed" not in type(one[0]).__name__]


def torchao(pipe: Any, config: str) -> None:
    from torchao import quantization

    quantization.quantize_(network(pipe), getattr(quantization, config)())


def torchao_plain(pipe: Any, config: str) -> None:
    torchao(pipe, config)
    for layer in network(pipe).modules():
        if isinstance(layer, nn.Linear) and hasattr(layer.weight, "dequantize"):
            layer.weight = nn.Parameter(layer.weight.dequantize(), requires_grad=False)


def gguf(pipe: Any, plain: bool = False) -> None:
    from diffusers.quantizers.gguf import utils
    from gguf import GGMLQuantizationType, quants

    for owner, name, layer in layers(pipe):
        packed = torch.from_numpy(quants.quantize(layer.weight.float().numpy(force=True), GGMLQuantizationType.Q8_0))
        weight = utils.GGUFParameter(packed, quant_type=GGMLQuantizationType.Q8_0)
        if plain:
            layer.weight.data = utils.dequantize_gguf_tensor(weight).to(layer.weight.dtype)
            continue
        new = utils.GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=pipe.dtype)
        new.weight, new.bias = weight, layer.bias
        setattr(owner, name, new)


def bitsandbytes(pipe: Any, bits: int, plain: bool = False) -> None:
    import bitsandbytes as bnb

    for owner, name, layer in layers(pipe):
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        if bits == 8:
            new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(*sizes, compute_dtype=pipe.dtype, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        new = new.to(CPU)
        if plain and bits == 4:
            layer.weight.data = bnb.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)
        elif plain:
            layer.weight.data = new.weight.data.float() * new.weight.SCB[:, None] / 127
        else:
            setattr(owner, name, new)


def as_plain(prepare: Callable[..., Any], *args: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return lambda pipe: prepare(pipe, *args), lambda pipe: prepare(pipe, *args, plain=True)


SETUPS = {
    "model offload": SetUp(model_offload, in_bfloat16=None),
    "sequential offload": SetUp(sequential_offload),
    "group offload, leaves": SetUp(partial(group_offload, kind="leaf_level")),
    "group offload, blocks": SetUp(partial(group_offload, kind="block_level", num_blocks_per_group=1)),
    **{
        f"torchao {config}": SetUp(
            partial(torchao, config=config), partial(torchao_plain, config=config), needs="torchao"
        )
        for config in ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig")
    },
    "GGUF": SetUp(*as_plain(gguf), needs="gguf"),
    "bitsandbytes nf4": SetUp(*as_plain(bitsandbytes, 4), needs="bitsandbytes"),
    "bitsandbytes int8": SetUp(*as_plain(bitsandbytes, 8), least=0.99, needs="bitsandbytes"),  # activations too
}


def gradient(
    name: str, prepare: Callable[[Any], Any], dtype: torch.dtype = torch.float32, checkpointing: str = "none"
) -> Tensor:
    """Of the first guided step's two updates, [2 b, n d]."""
    case = tiny(name)
    assert isinstance(case, DiffusersCase)
    method = Recorder(replace(case.config, stop=0.5, checkpointing=checkpointing))
    with case.open() as pipe:
        for part in parts(pipe):
            part.to(dtype)
        prepare(pipe)
        with attached(pipe, method):
            case.sample(pipe, case.prompts, seed=7)
    return torch.cat([update.gradient.flatten(1) for update in method.updates])


@pytest.mark.parametrize("name", ["diffusers-wan", "diffusers-animatediff"])
@pytest.mark.parametrize("setup", SETUPS)
def test_gradients_are_those_of_the_same_values_in_plain_weights(setup: str, name: str) -> None:
    chosen = SETUPS[setup]
    pytest.importorskip(chosen.needs)
    with ExitStack() as stack:
        expected = gradient(name, chosen.plain)
        if setup.startswith("group"):
            stack.enter_context(groups_that_come_and_go())
        cosine = torch.cosine_similarity(gradient(name, chosen.prepare), expected)
        print(f"\n{name}, {setup}: {cosine.min():.4f}", end="")
        assert cosine.min() > chosen.least


@pytest.mark.parametrize("setup", SETUPS)
def test_a_host_in_bfloat16_is_guided_in_float32_or_says_that_it_is_not(
    setup: str, recwarn: pytest.WarningsRecorder
) -> None:
    chosen = SETUPS[setup]
    pytest.importorskip(chosen.needs)
    with ExitStack() as stack:
        if setup.startswith("group"):
            stack.enter_context(groups_that_come_and_go())
        found = gradient("diffusers-wan", chosen.prepare, torch.bfloat16)
    assert found.isfinite().all() and (found != 0).flatten(1).any(1).all()
    told = any(SetUp.in_bfloat16 in str(one.message) for one in recwarn)
    assert told == (chosen.in_bfloat16 is not None)


@pytest.mark.parametrize("name", ["diffusers-wan", "diffusers-animatediff"])
def test_blocks_computed_again_have_the_float32_weights_they_had(name: str) -> None:
    """Of a bfloat16 host, whose blocks' weights are float32 one block at a time."""
    once, again = (gradient(name, lambda _pipe: None, torch.bfloat16, policy) for policy in ("none", "all"))
    torch.testing.assert_close(again, once, rtol=1e-3, atol=1e-4 * float(once.abs().max()))


def test_quantised_activations_have_no_gradient_and_that_is_told() -> None:
    pytest.importorskip("torchao")
    with pytest.warns(UserWarning, match="gradient of the motion terms was exactly zero"):
        gradient("diffusers-wan", partial(torchao, config="Int8DynamicActivationInt8WeightConfig"))


def test_an_attention_backend_without_a_backward_pass_is_not_taken_in_guided_steps() -> None:
    """As SageAttention and FlashAttention 3 are set by `set_attention_backend` or for all by a context."""
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
    expected = gradient("diffusers-wan", lambda pipe: None)
    registry, backend = dispatch._AttentionBackendRegistry, dispatch.AttentionBackendName.SAGE
    calls: list[int] = []

    @torch.no_grad()
    def without_backward(query: Tensor, key: Tensor, value: Tensor, **_options: Any) -> Tensor:
        calls.append(1)
        return nn.functional.scaled_dot_product_attention(
            *(each.transpose(1, 2) for each in (query, key, value))
        ).transpose(1, 2)

    def prepare(pipe: Any) -> None:
        for part in pipe.transformer.modules():
            if hasattr(part, "processor"):
                part.processor._attention_backend = backend

    own = registry._backends.get(backend), registry._supported_arg_names.get(backend)
    registry._backends[backend] = without_backward
    registry._supported_arg_names[backend] = {"query", "key", "value"}
    try:
        found = gradient("diffusers-wan", prepare)
    finally:
        registry._backends[backend], registry._supported_arg_names[backend] = own
    assert calls, "plain steps take it"
    torch.testing.assert_close(found, expected)


def test_weights_of_a_block_that_is_computed_again_are_there_for_its_backward_pass() -> None:
    """Checkpointing keeps frozen ones as they are, which a norm's backward pass reads after the block's call."""
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)).bfloat16().requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    with checkpointed({"attention": [block]}, "attention"), weights_in_float32(block, blocks=[block]):
        (found,) = torch.autograd.grad(block(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(block.float()(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, expected)
