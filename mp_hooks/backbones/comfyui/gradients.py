"""What keeps gradients from ComfyUI: inference mode, layers that write in place, kernels without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mp_hooks.hooks import Hooks

OUT_OF_PLACE: dict[Any, Callable[..., Tensor]] = {  # `x += y` calls the first of these, as x.add_(y) does
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.div,
}


class OutOfPlace(TorchFunctionMode):
    """Inside, `x += y` makes a new x where gradients are on, as the backward pass may want the old one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in OUT_OF_PLACE and torch.is_grad_enabled():
            return OUT_OF_PLACE[function](*args, **kwargs).to(args[0].dtype)
        return function(*args, **kwargs)


def usable(tensor: Tensor) -> Tensor:
    """The tensor, or where inference mode has made it, a plain one on the same memory: a backward pass may keep it."""
    if not tensor.is_inference() or type(tensor) not in (Tensor, nn.Parameter):
        return tensor
    storage = tensor.untyped_storage()
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def tensors_usable(modules: Iterable[nn.Module], others: Iterable[Any] = ()) -> Iterator[None]:
    """Inside, weights and other tensors of the modules, and what `others` have, are usable; the very ones come back."""
    places = [place for module in modules for part in module.modules() for place in _tensors(part)]
    places += [vars(other) for other in others]
    own = [
        (place, name, value)
        for place in places
        for name, value in place.items()
        if isinstance(value, Tensor) and value.is_inference()
    ]
    for place, name, value in own:
        plain = usable(value)
        place[name] = nn.Parameter(plain, requires_grad=False) if isinstance(value, nn.Parameter) else plain
    try:
        yield
    finally:
        for place, name, value in own:
            place[name] = value


def _tensors(part: nn.Module) -> tuple[dict[str, Any], ...]:
    return part._parameters, part._buffers, vars(part)


def native_attention(hooks: Hooks) -> Callable[..., Tensor]:
    """An override for the denoiser's attention: torch's own, which has a backward pass and keeps no matrix.

    Text encoders, which take no override, are hooked.
    """
    from comfy.ldm.modules import attention

    def native(_original: Any, *args: Any, **kwargs: Any) -> Tensor:
        return attention.attention_pytorch(*args, **kwargs)

    for name in ("attention_basic", "attention_sub_quad", "attention_split"):
        hooks.wrap(attention, name, native)
    return native
