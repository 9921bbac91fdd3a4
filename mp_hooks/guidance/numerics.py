"""What keeps a guided step exact and leaves no trace: frozen weights, float32 islands, random states, finiteness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.hooks import Hooks

PLAIN = (nn.Parameter, Tensor)
HALF = (torch.float16, torch.bfloat16)
SCALE_BACKOFF = 2.0**-4  # after a float16 gradient that was not finite; few updates, so few steps down


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No parameter of `modules` requires a gradient inside; each flag is put back afterwards.

    Without this a backward pass would keep the activations for, and compute, gradients that nobody wants.
    """
    thawed = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@contextmanager
def weights_in_float32(*modules: nn.Module, blocks: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Weights of `modules` in half precision are float32 inside; the very ones are back afterwards.

    Those in `blocks` only while a block is called, so that where blocks are computed again one's are at a time.
    Embeddings' never are: their rows are made float32 as they are looked up. Between calls such weights are NaN of no
    size, so that none is misread. Not for modules that are `fixed`.
    """
    own = {id(weight): (weight, weight.data) for weight in _weights(*modules) if weight.dtype in HALF}
    tables = [part for module in modules for part in module.modules() if isinstance(part, nn.Embedding)]
    hooks = Hooks()
    apart: set[int] = set()  # weights that are there only during calls

    def around(owner: nn.Module, kind: torch.dtype | None) -> None:
        """Let its weights be there, in this type or their own, while it is called."""
        inside = [own[id(weight)] for weight in _weights(owner) if id(weight) in own]

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            between = [(weight, weight.data) for weight, _ in inside]
            for weight, values in inside:
                weight.data = values.to(weight.device, kind)
            try:
                return original(*args, **kwargs)
            finally:
                for weight, nothing in between:
                    weight.data = nothing

        apart.update(id(weight) for weight, _ in inside)
        hooks.wrap(owner, "forward", call, inside=True)  # of checkpointing, so that it holds when computed again

    try:
        for table in tables:
            around(table, None)
            hooks.wrap(table, "forward", lambda original, *args, **kwargs: original(*args, **kwargs).float())
        for block in blocks:
            around(block, torch.float32)
        for key, (weight, values) in own.items():
            nothing = values.new_full((), torch.nan, dtype=torch.float32).expand_as(values)
            weight.data = nothing if key in apart else values.float()
        yield
    finally:
        hooks.remove()
        for weight, values in own.values():
            weight.data = values


def fixed(module: nn.Module) -> bool:
    """Whether its weights' type is not ours to change: they come in as a layer is called, or are quantised.

    Accelerate's sequential offloading leaves them on "meta", diffusers' by groups hooks; quantised ones have a type of
    their own (torchao's, GGUF's, bitsandbytes').
    """
    registries = (vars(part).get("_diffusers_hook") for part in module.modules())
    grouped = any(registry is not None and registry.get_hook("group_offloading") for registry in registries)
    return grouped or any(weight.is_meta or type(weight) not in PLAIN for weight in _weights(module))


def _weights(*modules: nn.Module) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


@contextmanager
def eager(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Compiled modules (`module.compile()`) are called uncompiled inside: hooks act, and gradients are exact."""
    compiled = [
        (part, part._compiled_call_impl)
        for module in modules
        for part in module.modules()
        if part._compiled_call_impl is not None
    ]
    for part, _ in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled:
            part._compiled_call_impl = call


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 products are float32 inside, not TensorFloat-32, which is the default of cuDNN's convolutions."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    exact: str | bool
    if hasattr(cudnn, "conv"):  # since torch 2.9, where the older switches are not to be mixed in
        owners, name, exact = [cuda, cudnn.conv, cudnn.rnn], "fp32_precision", "ieee"
    else:
        owners, name, exact = [cuda, cudnn], "allow_tf32", False
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, exact)
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)


def saved_as_they_are() -> Any:
    """Context whose backward pass sees weights as the forward pass did, whatever is put into their `.data` meanwhile.

    Layer-wise casting and group offloading swap it after each layer's call.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, torch takes its deterministic algorithms and warns where it has none; flags are put back."""
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
        torch.backends.cudnn.benchmark = benchmark


def random_state_kept(device: torch.device) -> Any:
    """Context in which the global generators may be drawn from and afterwards stand where they stood.

    Some hosts' steps draw noise even when they do not use it.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def random_state_restorer(device: torch.device) -> Callable[[], None]:
    """A function that puts the global generators back to where they stand now."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return restore


class LossScale:
    """What a float16 host's loss is multiplied by, so that small gradients do not vanish on their way back."""

    def __init__(self, value: float) -> None:
        self.value = value

    def back_off(self) -> None:
        """After a gradient that was not finite."""
        self.value = max(self.value * SCALE_BACKOFF, 1.0)


def all_finite(values: Any) -> bool:
    """Whether every number in tensors, also inside tuples, lists and dicts, is finite."""
    if isinstance(values, Tensor):
        return bool(values.isfinite().all())
    if isinstance(values, dict):
        return all_finite(list(values.values()))
    return all(map(all_finite, values)) if isinstance(values, (list, tuple)) else True


def full_precision(values: Tensor) -> Tensor:
    """At least float32: 1/sqrt(abar) is about 131 at the first steps, and flow wants the digits."""
    return values.float() if values.dtype in HALF else values


def runs_in_float16(latents: Tensor) -> bool:
    """Whether the host computes these latents in float16, by their type or under autocast."""
    kind = latents.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or latents.dtype == torch.float16
