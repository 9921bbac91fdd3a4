"""An adapter: which host it is for, where that is hooked, and what its calls mean. The method is in `guidance`."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from mp_hooks.backbones.resume import Samplings, fingerprint
from mp_hooks.guidance import Host, MotionPrompt, Run, Step
from mp_hooks.hooks import Hooks, site_name

Site = tuple[Any, str]  # an object or class, and the name of its function to wrap


class Adapter(Host):
    """One host, answered for. A subclass fills in the abstract parts, here and in `Host`, and overrides nothing else.

    The order of events in a sampling: the host calls the run site (`prompts` reads them, the tokens start afresh),
    then the step site once a step (`read` says what is about to happen, and the run leads the step).
    """

    name: ClassVar[str]  # in the registry, and of the manifest in patches/ if there is one
    method: MotionPrompt  # while hooked
    samplings: Samplings | None = None  # finished ones, where they are kept
    arguments: dict[str, Any]  # of the run site's call, while it samples
    # class names of the blocks to checkpoint
    attention_blocks: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock",)
    other_blocks: ClassVar[tuple[str, ...]] = ("ResBlock", "ResnetBlock", "ResnetBlock2D", "ResnetBlock3D")

    def __init__(self, host: Any) -> None:
        self.host = host
        self.hooks = Hooks()
        self.current: Run | None = None

    def __repr__(self) -> str:
        while_patched = ", ".join(site_name(*site) for site in (self.run_site(), *self.watch()))
        while_sampling = ", ".join(site_name(*site) for site in (self.step_site(), *self.watch_run()))
        return f"<MotionPrompt ({self.name}) on {while_patched}; while it samples on {while_sampling}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a patched host is a plain one: to copy and pickle, the adapter it keeps is None."""
        return type(None), ()

    # --- which hosts

    @classmethod
    @abstractmethod
    def recognises(cls, host: Any) -> bool:
        """Whether this adapter answers for `host`, told by names or structure: hosts are never imported here."""

    @classmethod
    @abstractmethod
    def host_class(cls) -> str:
        """Full name of the class of those hosts."""

    # --- where and when

    @abstractmethod
    def run_site(self) -> Site:
        """The function that samples a whole batch; hooked while the host is patched."""

    @abstractmethod
    def step_site(self) -> Site:
        """The function in which one step predicts noise under a conditioning; hooked while the host samples."""

    @abstractmethod
    def prompts(self, call: dict[str, Any]) -> list[str] | None:
        """From the run site's arguments by name: the prompt of every sample; None leaves the call alone (not ours)."""

    @abstractmethod
    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        """From the step site's arguments: what is about to happen; None leaves the call alone."""

    # --- optional

    def watch(self) -> dict[Site, Callable[..., Any]]:
        """Further sites and their handlers while the host is patched, where the run site does not show the prompts."""
        return {}

    def watch_run(self) -> dict[Site, Callable[..., Any]]:
        """Further sites and their handlers while the host samples."""
        return {}

    def begin(self) -> None:
        """Forget the last sampling: one begins, whose call's arguments are in `arguments`."""
        return

    def refuse(self) -> None:
        """Raise MotionPromptError for a setting of the host under which guidance would be wrong."""
        return

    def attention(self, hooks: Hooks) -> None:
        """Where the host's attention keeps its whole matrix: hook torch's scaled_dot_product_attention in its place."""
        return

    def during(self, step: Step, hooks: Hooks) -> None:
        """Hook what else holds during a guided step: branches computed once, for one."""
        return

    @contextmanager
    def guided_step(self, step: Step) -> Iterator[None]:
        hooks = Hooks()
        try:
            self.attention(hooks)
            self.during(step, hooks)
            yield
        finally:
            hooks.remove()

    def blocks(self) -> dict[str, list[nn.Module]]:
        parts = [part for module in self.modules() for part in module.modules()]
        names = {"attention": self.attention_blocks, "other": self.other_blocks}
        return {kind: [part for part in parts if type(part).__name__ in names[kind]] for kind in names}

    # --- the machinery, the same for every host

    def apply(self, method: MotionPrompt) -> None:
        """Hook the host. Where a site is missing, nothing stays hooked and MotionPromptError tells."""
        self.method = method
        try:
            self.original_run = self.hooks.wrap(*self.run_site(), self._around_run)
            for site, handler in self.watch().items():
                self.hooks.wrap(*site, handler)
            with self.hooked_steps():
                pass  # all sites are there
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Unhook: every attribute is the very object it was."""
        self.hooks.remove()

    @contextmanager
    def hooked_steps(self) -> Iterator[None]:
        """Inside, the host's steps go through MotionPrompt. The sites are found anew: parts may have been replaced."""
        hooks = Hooks()
        try:
            self.original_step = hooks.wrap(*self.step_site(), self._around_step)
            for site, handler in self.watch_run().items():
                hooks.wrap(*site, handler)
            yield
        finally:
            hooks.remove()

    def _around_run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(self.original_run).bind(*args, **kwargs)
        call.apply_defaults()
        prompts = self.prompts(call.arguments)
        if prompts is None:
            return original(*args, **kwargs)
        self.arguments = call.arguments
        self.begin()
        self.refuse()

        def sample() -> Any:
            finished = False
            with self.hooked_steps():
                run = self.current = self.method.run(self, prompts)
                try:
                    result = original(*args, **kwargs)
                    finished = True
                finally:
                    self.current = None
                    run.close(finished)
            return result

        if self.samplings is None:
            return sample()
        seed = self.noise_seed() if self.method.config.seed is None else self.method.config.seed
        asked = fingerprint(self.host, self.method, prompts, seed, (args, kwargs))
        return self.samplings.once(sample, self.method, asked, (args, kwargs))

    def _around_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self.current
        step = None if run is None else self.read(*args, **kwargs)
        if run is None or step is None:
            return original(*args, **kwargs)
        return run.step(step, partial(original, *args, **kwargs))


def detached(value: Any) -> Any:
    """Tensors inside dicts, lists and tuples without their graph; containers are new, other values the same.

    Hosts build conditionings with gradients enabled (VideoCrafter does), which freezing afterwards does not undo.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(detached(item) for item in value)
    return value
