"""What a guided step may keep in memory: which blocks are computed again, and what follows an out-of-memory."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from mp_hooks.guidance.contract import Host, Step
from mp_hooks.hooks import Hooks

POLICIES = {"none": (), "attention": ("attention",), "all": ("attention", "other")}  # kinds of blocks
MARGIN = 1.2  # of the free memory over what is kept: gradients and workspace come on top
SUB_CLIP = "sub-clip"  # what remains to try when all blocks are computed again: updates look at a part of the clip
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "status_alloc_failed")  # the last is cuDNN's and cuBLAS's


class Economy:
    """Which policy of `POLICIES` guided steps keep to: the configured one, or the cheapest that fits, chosen once.

    Where none fits, and after an out-of-memory under the strictest, updates look at a part of the clip.
    """

    def __init__(self, checkpointing: str) -> None:
        self._asked = checkpointing
        self._levels: weakref.WeakKeyDictionary[Host, dict[torch.Size, str]] = weakref.WeakKeyDictionary()

    def policy(self, host: Host, step: Step, rehearse: Callable[[], Any]) -> str:
        """For steps of this size; `rehearse` makes an update's forward pass, to see what it keeps."""
        levels, size = self._levels.setdefault(host, {}), step.latents.shape
        if size not in levels and self._asked == "auto":
            weights = [weight for module in host.modules() for weight in module.parameters()]
            levels[size] = choose(rehearse, host.blocks(), weights, lambda: free_memory(step.latents.device))
        level = levels.setdefault(size, self._asked)
        return "all" if level == SUB_CLIP else level

    def asks_sub_clip(self, host: Host, step: Step) -> bool:
        """Whether updates of this size fit only where they look at a part of the clip."""
        return self._levels.get(host, {}).get(step.latents.shape) == SUB_CLIP

    def tighten(self, host: Host, step: Step) -> str | None:
        """After an out-of-memory: what is kept to from now on, in words; None where nothing stricter is left."""
        levels, size = self._levels.setdefault(host, {}), step.latents.shape
        ladder = [*POLICIES, SUB_CLIP]
        stricter = ladder[ladder.index(levels.get(size, "none")) + 1 :]
        if not stricter:
            return None
        levels[size] = stricter[0]
        return "updates look at a sub-clip" if stricter[0] == SUB_CLIP else f"checkpointing {stricter[0]}"


@contextmanager
def checkpointed(blocks: dict[str, list[nn.Module]], policy: str) -> Iterator[None]:
    """Inside, the policy's blocks are computed again in the backward pass, whatever the host's own switches say.

    The hosts' checkpointing may be re-entrant, which torch.autograd.grad refuses, or off in eval mode.
    """

    def again(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return checkpoint(original, *args, use_reentrant=False, **kwargs)

    hooks = Hooks()
    try:
        for kind in POLICIES[policy]:
            for block in blocks[kind]:
                hooks.wrap(block, "forward", again)
        yield
    finally:
        hooks.remove()


def choose(
    forward: Callable[[], Any], blocks: dict[str, list[nn.Module]], weights: Iterable[Tensor], free: Callable[[], int]
) -> str:
    """The cheapest policy under which what the pass `forward` keeps fits into the `free` bytes; else a sub-clip.

    The pass is made once, and nothing of it is kept. What is free is asked then: offloaded weights have come by now.
    """
    kept = _kept(forward, blocks, weights)
    room = free()
    for policy, kinds in POLICIES.items():
        again = max((size for kind in kinds for size in kept.largest[kind]), default=0)
        needed = sum(kept.inputs[kind] if kind in kinds else size for kind, size in kept.inside.items()) + again
        if MARGIN * needed <= room:
            return policy
    return SUB_CLIP


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, the device's or the computer's, did not suffice; only CUDA's has an exception of its own."""
    told = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in told for words in OUT_OF_MEMORY)
    )


def release(vae: nn.Module) -> None:
    """Let go of what a decode cut short has left: Wan's VAE keeps its cache, and with it the decode's graph."""
    if callable(clear := getattr(vae, "clear_cache", None)):
        clear()
    gc.collect()
    torch.cuda.empty_cache()


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
