"""Operations and bytes of networks that are never computed: fake tensors have shapes and types, and no data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from mp_hooks.hooks import Hooks

SMALL = 2**14  # elements of a tensor that may stay real: ids, frame pairs, schedules

aten = torch.ops.aten
FLOPS = {  # torch counts attention's kernels on CUDA alone
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


class FakeWeights(FakeTensorMode):
    """Fake tensors for networks; small ones that meet no fake one keep their data, so that code may look at it."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        if any(isinstance(tensor, FakeTensor) or tensor.numel() > SMALL for tensor in given):
            return super().__torch_dispatch__(function, types, args, kwargs)
        if not given:  # a new tensor, whose size the fake one tells
            made = super().__torch_dispatch__(function, types, args, kwargs)
            if any(tensor.numel() > SMALL for tensor in _tensors(made)):
                return made
        return function(*args, **(kwargs or {}))


@contextmanager
def fake_weights() -> Iterator[FakeWeights]:
    """Modules built inside have fake parameters on the CPU and real buffers; yields the mode to compute in."""
    mode = FakeWeights()

    def register(original: Callable[..., None], module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not isinstance(parameter, FakeTensor):  # a shared one is one
            parameter = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=False)
        original(module, name, parameter)

    hooks = Hooks()
    hooks.wrap(nn.Module, "register_parameter", register)
    hooks.wrap(nn.Module, "_apply", lambda _original, module, *_args, **_kwargs: module)  # nothing to move or convert
    try:
        yield mode
    finally:
        hooks.remove()


class Meter(TorchDispatchMode):
    """What is computed while it is on, by part of the computation.

    flops: floating-point operations of matrix products, convolutions and attention. alive: bytes of the tensors made
    since and not freed yet, at `peak` most. A part's backward pass counts as its own.
    """

    def __init__(self, part: str = "denoiser") -> None:
        super().__init__()
        self.part = self._outside = part
        self.flops: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        self.peak = 0
        self.at_peak: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = FLOPS.get(function._overloadpacket)
        if formula is not None:
            self.flops[self.part] += formula(*args, **(kwargs or {}), out_val=result)
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        made = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in _tensors(result))}
        for storage in (storage for key, storage in made.items() if key not in given):
            self.alive[self.part] += storage.nbytes()
            weakref.finalize(storage, self._freed, self.part, storage.nbytes())
        if self.alive.total() > self.peak:
            self.peak, self.at_peak = self.alive.total(), Counter(self.alive)
        return result

    def _freed(self, part: str, size: int) -> None:
        self.alive[part] -= size

    def within(self, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function`, whose forward and backward computations are of this part."""
        before, self.part = self.part, part
        try:
            result = function(*args, **kwargs)
        finally:
            self.part = before
        for tensor in _tensors(result):
            if tensor.requires_grad:  # its gradient comes when the backward pass enters this part
                tensor.register_hook(lambda _gradient: setattr(self, "part", part))
        return result

    def backward_done(self) -> None:
        """Computations are again of the part the meter began with."""
        self.part = self._outside


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
