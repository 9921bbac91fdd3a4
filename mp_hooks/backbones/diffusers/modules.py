"""A pipeline's modules during a guided step: themselves, on the device, with an attention that has a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from mp_hooks.backbones.base import Site
from mp_hooks.compat import swapped


def call_site(module: nn.Module) -> Site:
    """Where a module is called, compiled or not."""
    return module, "_call_impl" if module._compiled_call_impl is None else "_compiled_call_impl"


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
