"""Wrapping attributes of somebody else's objects, and putting the very originals back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mp_hooks.errors import MotionPromptError

# around(original, *args, **kwargs): `original` is the next handler, or the host's own function
Around = Callable[..., Any]

_ABSENT = object()  # the attribute came from the class: removal deletes ours instead of storing a copy
_sites: dict[tuple[int, str], _Site] = {}
_lock = threading.Lock()  # of _sites and of the handlers in them


class _Site:
    """One wrapped attribute. Several owners of hooks may share it and leave in any order."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.stored = vars(owner).get(name, _ABSENT)
        self.original = getattr(owner, name)
        self.handlers: tuple[Around, ...] = ()  # replaced, never changed: a call under way keeps its own

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            call = self.original
            for handler in self.handlers:
                call = _bind(handler, call)
            return call(*args, **kwargs)

        vars(dispatch)["__wrapped__"] = self.original  # signature and names stay the host's
        self.dispatch = dispatch
        setattr(owner, name, dispatch)

    def restore(self) -> None:
        if vars(self.owner).get(self.name) is not self.dispatch:
            return  # somebody has put another function in its place meanwhile, which stays
        if self.stored is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.stored)


def _bind(handler: Around, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: handler(call, *args, **kwargs)


def site_name(owner: Any, name: str) -> str:
    """An attribute to wrap as "Class.attribute"."""
    return f"{owner.__name__ if isinstance(owner, type) else type(owner).__name__}.{name}"


class Hooks:
    """The hooks of one patch. `remove` leaves every object as it was before `wrap`, by identity."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[_Site, Around]] = []

    def wrap(self, owner: Any, name: str, around: Around, inside: bool = False) -> Callable[..., Any]:
        """Run `around(original, ...)` in place of `owner.name(...)`; returns the host's own function.

        `owner` is a module or object (its own attribute shadows the class's) or a class (the handler gets `self`
        among its arguments). A later handler is called around the earlier ones, or `inside` them. Raises
        MotionPromptError where there is nothing to wrap, so that no hook is ever silently missing.
        """
        if not callable(getattr(owner, name, None)):
            raise MotionPromptError(
                f"nothing to hook: there is no {site_name(owner, name)}; this version of the host is not supported, "
                "see mp-patch --list for the commit that is"
            )
        key = (id(owner), name)
        with _lock:
            site = _sites.get(key)
            if site is None:
                site = _sites[key] = _Site(owner, name)
            site.handlers = (around, *site.handlers) if inside else (*site.handlers, around)
        self._wrapped.append((site, around))
        return site.original

    def __repr__(self) -> str:
        return f"<Hooks on {', '.join(site_name(site.owner, site.name) for site, _ in self._wrapped) or 'nothing'}>"

    def remove(self) -> None:
        """Take these hooks away; other patches of the same sites stay."""
        while self._wrapped:
            site, around = self._wrapped.pop()
            with _lock:
                handlers = list(site.handlers)
                handlers.remove(around)
                site.handlers = tuple(handlers)
                if not handlers:
                    site.restore()
                    del _sites[id(site.owner), site.name]
