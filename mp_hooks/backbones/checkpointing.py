"""Which of a host's blocks are computed again in the backward pass instead of keeping what they made."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from mp_hooks.backbones.hooks import Hooks

POLICIES = {"none": (), "attention": ("attention",), "all": ("attention", "other")}  # kinds of blocks
MARGIN = 1.2  # of the free memory over what is kept: gradients and workspace come on top


def checkpoint_blocks(hooks: Hooks, blocks: Iterable[nn.Module]) -> None:
    """Hook the blocks, whatever the host's own switches say.

    The hosts' checkpointing may be re-entrant, which torch.autograd.grad refuses, or off in eval mode.
    """

    def again(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return checkpoint(original, *args, use_reentrant=False, **kwargs)

    for block in blocks:
        hooks.wrap(block, "forward", again)


def choose(forward: Callable[[], Any], blocks: dict[str, list[nn.Module]], weights: Iterable[Tensor], free: int) -> str:
    """The cheapest policy under which what the pass `forward` keeps fits into `free` bytes; "all" if none does.

    The pass is made once, and nothing of it is kept.
    """
    kept = _kept(forward, blocks, weights)
    for policy, kinds in POLICIES.items():
        again = max((size for kind in kinds for size in kept.largest[kind]), default=0)
        needed = sum(kept.inputs[kind] if kind in kinds else size for kind, size in kept.inside.items()) + again
        if MARGIN * needed <= free:
            return policy
    return "all"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


class _Kept:
    """Bytes that a forward pass keeps for its backward pass, by the kind of block in which."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.inputs: Counter[str] = Counter()
        self.largest: dict[str, list[int]] = {}


def _kept(forward: Callable[[], Any], blocks: dict[str, list[nn.Module]], weights: Iterable[Tensor]) -> _Kept:
    kept, kind, hooks = _Kept(), "outside", Hooks()
    seen = {id(weight.untyped_storage()) for weight in weights}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in seen:
            seen.add(id(storage))
            weakref.finalize(storage, seen.discard, id(storage))
            kept.inside[kind] += storage.nbytes()

    def around(kind_of_block: str) -> Callable[..., Any]:
        def inside(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal kind
            before, kind = kind, kind_of_block
            size = kept.inside[kind]
            try:
                return original(*args, **kwargs)
            finally:
                kept.largest.setdefault(kind, []).append(kept.inside[kind] - size)
                given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
                kept.inputs[kind] += sum(tensor.nbytes for tensor in given)
                kind = before

        return inside

    for name, members in blocks.items():
        kept.largest[name] = []
        for block in members:
            hooks.wrap(block, "forward", around(name))
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda _nothing: None):
            forward()
    finally:
        hooks.remove()
    return kept
