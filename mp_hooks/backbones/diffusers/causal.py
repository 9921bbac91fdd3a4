"""VAEs that decode a clip piece by piece, each piece knowing the ones before by a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import nn

from mp_hooks.hooks import Hooks


@contextmanager
def warmed(decoder: nn.Module, pieces: int, first: int) -> Iterator[None]:
    """Inside, the first `first` of the `pieces` calls in which a clip is decoded fill the cache and keep no graph.

    Values stay; the gradient lacks what reaches earlier pieces through the cache. Clips, and tiles of them, come one
    after the other where the VAE slices or tiles.
    """
    number = count()

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if next(number) % pieces >= first:
            return original(*args, **kwargs)
        with torch.no_grad():
            return original(*args, **kwargs)

    hooks = Hooks()
    hooks.wrap(decoder, "forward", forward)
    try:
        yield
    finally:
        hooks.remove()
