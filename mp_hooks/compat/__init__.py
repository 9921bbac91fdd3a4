"""Small, named, reversible shims that let old hosts run on today's libraries, and on a machine without CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from mp_hooks.compat.registry import SHIMS, swapped
from mp_hooks.errors import unknown_name

__all__ = ["SHIMS", "needed", "shims", "swapped"]


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
