"""The adapter contract: the few questions a backbone answers. The method itself lives in `mp_hooks.guidance`."""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.backbones.checkpointing import POLICIES, checkpoint_blocks, choose, free_memory
from mp_hooks.backbones.hooks import Hooks
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import MotionPrompt, Run, Step
from mp_hooks.guidance.method import is_out_of_memory, rng_rewind
from mp_hooks.guidance.tokens import TextInput

if TYPE_CHECKING:
    from mp_hooks.backbones.resume import Samplings

Site = tuple[Any, str]  # an object or class, and the name of its function to wrap


class Adapter(ABC):
    """One host, answered for. A subclass fills in the abstract parts and overrides nothing else.

    The order of events in a sampling: the host calls the run site (`prompts` reads them, the tokens start afresh),
    then the step site once a step (`read` says what is about to happen; in a guided step `take` makes the call with
    the optimised conditioning).
    """

    name: ClassVar[str]  # in the registry, and of the manifest in patches/ if there is one
    method: MotionPrompt  # while hooked
    samplings: Samplings | None = None  # finished ones, where they are kept
    # class names of the blocks to checkpoint
    attention_blocks: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock",)
    other_blocks: ClassVar[tuple[str, ...]] = ("ResBlock", "ResnetBlock", "ResnetBlock2D", "ResnetBlock3D")

    def __init__(self, host: Any) -> None:
        self.host = host
        self.hooks = Hooks()
        self._chosen: dict[torch.Size, str] = {}  # checkpointing, by the latents' size
        self.current: Run | None = None

    # --- which hosts

    @classmethod
    @abstractmethod
    def recognises(cls, host: Any) -> bool:
        """Whether this adapter answers for `host`, told by names or structure: hosts are never imported here."""

    # --- where and when

    @abstractmethod
    def run_site(self) -> Site:
        """The function that samples a whole batch."""

    @abstractmethod
    def step_site(self) -> Site:
        """The function in which one step predicts noise under a conditioning."""

    @abstractmethod
    def prompts(self, *args: Any, **kwargs: Any) -> list[str] | None:
        """From the run site's arguments: the prompt of every sample; None leaves the call alone (another model's)."""

    @abstractmethod
    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        """From the step site's arguments: what is about to happen; None leaves the call alone."""

    @abstractmethod
    def take(self, step: Step, conditioning: Tensor) -> Any:
        """Make the host's call with its text rows replaced by `conditioning`; the host's own objects stay whole."""

    # --- the host's own computations (guidance.Host)

    @property
    @abstractmethod
    def text(self) -> TextInput:
        """Where token embeddings enter the text encoder."""

    @abstractmethod
    def word_ids(self, word: str) -> list[int]:
        """The tokenizer's ids of a word, without start and end tokens."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The host's own text encoding [b, l, d]."""

    @abstractmethod
    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        """z0_hat [b, c, t, h, w] through the host's own code: guidance scale, v-prediction, rescaling included."""

    @abstractmethod
    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """Pixels of the named frames, [b, 3, n, h, w] in [-1, 1]."""

    @abstractmethod
    def modules(self) -> list[nn.Module]:
        """Every module a gradient may pass."""

    @abstractmethod
    def vae(self) -> nn.Module:
        """The one of them that decodes."""

    # --- optional

    def noise_seed(self) -> int:
        """The seed that the host's noise comes from: torch's global one unless the host is given another."""
        return torch.initial_seed()

    def watch(self) -> dict[Site, Callable[..., Any]]:
        """Further sites and handlers, where the run site does not show everything (prompts, for one)."""
        return {}

    def excerpt(self, step: Step, frames: range) -> Step | None:
        """The same step of these frames alone, branches without T the whole clip's; None where no part can be had."""
        return None

    def predicted(self, step: Step, taken: Any) -> Tensor | None:
        """z0_hat [b, c, t, h, w] in what the step came to, where excerpts are put; None where it is not told."""
        return None

    def wide(self, step: Step) -> Step:
        """The same step for modules whose weights are float32; this one, where the host's always are."""
        return step

    def attention(self, hooks: Hooks) -> None:
        """Where the host's attention keeps its whole matrix: hook torch's scaled_dot_product_attention in its place."""
        return

    @contextmanager
    def scope(self, step: Step) -> Iterator[None]:
        """What holds during one guided step and its host call: lean attention, checkpointing, memoised branches."""
        hooks = Hooks()
        try:
            self.attention(hooks)
            self.during(step, hooks)
            blocks = self.blocks()
            for kind in POLICIES[self._checkpointing(step, blocks)]:
                checkpoint_blocks(hooks, blocks[kind])
            yield
        finally:
            hooks.remove()

    def blocks(self) -> dict[str, list[nn.Module]]:
        """The blocks to checkpoint, by kind."""
        parts = [part for module in self.modules() for part in module.modules()]
        names = {"attention": self.attention_blocks, "other": self.other_blocks}
        return {kind: [part for part in parts if type(part).__name__ in names[kind]] for kind in names}

    def _checkpointing(self, step: Step, blocks: dict[str, list[nn.Module]]) -> str:
        """The policy that is configured, or chosen once for latents of this size."""
        asked = self.method.config.checkpointing
        if asked != "auto":
            return asked
        size, run = step.latents.shape, self.current
        if run is not None and size not in self._chosen:
            weights = [weight for module in self.modules() for weight in module.parameters()]
            free = free_memory(step.latents.device)
            self._chosen[size] = choose(lambda: run.rehearse(step), blocks, weights, free)
        return self._chosen[size]

    def during(self, step: Step, hooks: Hooks) -> None:
        """Hook what else holds during a guided step: branches computed once, for one."""
        return

    # --- the machinery, the same for every host

    def apply(self, method: MotionPrompt) -> None:
        """Hook the host. Where a site is missing, nothing stays hooked and MotionPromptError tells."""
        self.method = method
        try:
            self.original_run = self.hooks.wrap(*self.run_site(), self._around_run)
            self.original_step = self.hooks.wrap(*self.step_site(), self._around_step)
            for site, handler in self.watch().items():
                self.hooks.wrap(*site, handler)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Unhook: every attribute is the very object it was."""
        self.hooks.remove()

    def _around_run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prompts = self.prompts(*args, **kwargs)
        if prompts is None:
            return original(*args, **kwargs)

        def sample() -> Any:
            run = self.current = self.method.run(self, prompts)
            try:
                return original(*args, **kwargs)
            finally:
                self.current = None
                run.close()

        return sample() if self.samplings is None else self.samplings.once(sample, self, prompts, args, kwargs)

    def _around_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self.current
        if run is not None and run.thread != threading.get_ident():
            raise MotionPromptError(
                "two threads sample one model, of which one does with MotionPrompt; give each thread a model of its own"
            )
        step = None if run is None else self.read(*args, **kwargs)
        if run is None or step is None:
            return original(*args, **kwargs)
        result = self._guided(run, step) if run.guides(step) else None
        if result is None:
            result = original(*args, **kwargs)
        run.took(step, result)
        return result

    def _guided(self, run: Run, step: Step) -> Any:
        """What the step comes to with optimised tokens; None, and all as it was, where the host shall take it alone."""
        rewind = rng_rewind(step.latents.device)
        out_of_memory = False
        try:
            with self.scope(step):
                result = self.take(step, run.guide(step))
            if run.accepts(result):
                return result
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory = True
        # here, because the exception would keep everything that is to be freed
        if out_of_memory:
            gc.collect()
            torch.cuda.empty_cache()
        run.leave_unguided(step, out_of_memory=out_of_memory)
        rewind()
        return None


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
