"""Small, named, reversible shims that let old hosts run on today's libraries, and on a machine without CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from mp_hooks.errors import unknown_name

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


def needed(names: Sequence[str], device: str | None = None) -> list[str]:
    """Those of `names` that this machine needs.

    `device` is what the user asked the host to run on: "cpu", "cuda", or None for the host's own choice. An unknown
    name is a MotionPromptError.
    """
    import mp_hooks.compat.catalogue  # noqa: F401  (registers them)

    for name in names:
        if name not in SHIMS:
            raise unknown_name("shim", name, list(SHIMS))
    return [name for name in names if SHIMS[name].needed(device)]


@contextmanager
def shims(names: Sequence[str], device: str | None = None) -> Iterator[list[str]]:
    """Put in place those of `names` that are `needed`, and yield them; all are removed on the way out."""
    with ExitStack() as stack:
        used = needed(names, device)
        for name in used:
            stack.enter_context(SHIMS[name].applied())
        yield used


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
