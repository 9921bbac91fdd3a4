"""What a shim is, where shims are registered, and how one swaps an attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

_ABSENT = object()


@dataclass(frozen=True)
class Shim:
    """What broke, how to tell, and a context in which it works.

    broke: one line, with the version. needed(device): whether this machine needs it, asked before `applied` is entered.
    """

    name: str
    broke: str
    needed: Callable[[str | None], bool]
    applied: Callable[[], AbstractContextManager[None]]


SHIMS: dict[str, Shim] = {}


def shim(name: str, broke: str, needed: Callable[[str | None], bool]) -> Callable[..., Any]:
    """Register the context manager below this decorator under `name`."""

    def register(applied: Callable[[], AbstractContextManager[None]]) -> Callable[[], AbstractContextManager[None]]:
        if name in SHIMS:
            raise ValueError(f"shim {name} is registered twice")
        SHIMS[name] = Shim(name, broke, needed, applied)
        return applied

    return register


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside; afterwards what was stored is back, or nothing where nothing was."""
    stored = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if stored is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, stored)
