"""Wrapping attributes of somebody else's objects, and putting the very originals back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mp_hooks.errors import MotionPromptError

# around(original, *args, **kwargs): `original` is the next handler, or the host's own function
Around = Callable[..., Any]

_ABSENT = object()  # the attribute came from the class: removal deletes ours instead of storing a copy
_sites: dict[tuple[int, str], _Site] = {}


class _Site:
    """One wrapped attribute. Several owners of hooks may share it and leave in any order."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.stored = vars(owner).get(name, _ABSENT)
        self.original = getattr(owner, name)
        self.handlers: list[Around] = []

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            call = self.original
            for handler in self.handlers:
                call = _bind(handler, call)
            return call(*args, **kwargs)

        dispatch.__wrapped__ = self.original  # signature and names stay the host's
        setattr(owner, name, dispatch)

    def restore(self) -> None:
        if self.stored is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.stored)


def _bind(handler: Around, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: handler(call, *args, **kwargs)


class Hooks:
    """The hooks of one patch. `remove` leaves every object as it was before `wrap`, by identity."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[_Site, Around]] = []

    def wrap(self, owner: Any, name: str, around: Around) -> Callable[..., Any]:
        """Run `around(original, ...)` in place of `owner.name(...)`; returns the host's own function.

        `owner` is a module or object (its own attribute shadows the class's) or a class (the handler gets `self`
        among its arguments). Raises MotionPromptError where there is nothing to wrap, so that no hook is ever
        silently missing.
        """
        if not callable(getattr(owner, name, None)):
            where = owner.__name__ if isinstance(owner, type) else type(owner).__name__
            raise MotionPromptError(
                f"nothing to hook: {where} has no '{name}'; this version of the host is not supported, see "
                "mp-patch --list for the commit that is"
            )
        key = (id(owner), name)
        site = _sites.get(key)
        if site is None:
            site = _sites[key] = _Site(owner, name)
        site.handlers.append(around)
        self._wrapped.append((site, around))
        return site.original

    def remove(self) -> None:
        """Take these hooks away; other patches of the same sites stay."""
        while self._wrapped:
            site, around = self._wrapped.pop()
            site.handlers.remove(around)
            if not site.handlers:
                site.restore()
                del _sites[id(site.owner), site.name]
