"""What guidance asks of the model that samples: one contract, which every adapter inherits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.guidance.tokens import TextInput


@dataclass(frozen=True)
class Step:
    """One call of the host's sampler step, as the host is about to make it.

    latents: z_t [b, c, t, h, w]. conditioning: the host's own text rows [b, l, d]. index counts up from 0, the step
    from pure noise, to total - 1. timestep is the model's. frames: t, of the clip as it will be decoded. call: whatever
    the adapter needs to make the call again. anchor: a sub-clip's.
    """

    latents: Tensor
    conditioning: Tensor
    index: int
    total: int
    timestep: float
    frames: int
    call: Any = None
    anchor: Anchor | None = None


class Anchor:
    """Where a sub-clip's z0_hat is put: at what the step before predicted for its frames within the whole clip.

    A part alone is predicted otherwise than within its clip; of it only what T changes is taken.
    """

    def __init__(self, before: Tensor) -> None:
        self._before = before
        self._alone: Tensor | None = None

    def __call__(self, alone: Tensor) -> Tensor:
        """z0_hat [b, c, t, h, w] of the part alone, put there; the first is that of the step's first tokens."""
        if self._alone is None:
            self._alone = alone.detach()
        return self._before + (alone - self._alone)


class Host(ABC):
    """The model that samples, as guidance sees it. Each answer comes from the host's own code.

    view: side of the square of z0_hat, in latents, that each pair is decoded in, where whole frames would need too much
    memory; None where they do not.
    """

    view: ClassVar[int | None] = None

    # --- text

    @property
    @abstractmethod
    def text(self) -> TextInput:
        """Where token embeddings enter the text encoder."""

    @abstractmethod
    def word_ids(self, word: str) -> list[int]:
        """The tokenizer's ids of a word, without start and end tokens."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The host's own text encoding [b, l, d], through the layer that `text` names, as this sampling's call asks."""

    def room_for(self, tokens: int) -> AbstractContextManager[None]:
        """Inside, `encode` counts that many tokens more as text, where its masks come from a tokenizer."""
        return nullcontext()

    # --- a step

    @abstractmethod
    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        """z0_hat [b, c, t, h, w], differentiable: the host's guidance scale, v-prediction, rescaling included."""

    @abstractmethod
    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        """The host's call with its text rows replaced by `conditioning`; the host's own objects stay whole."""

    def clean_in(self, step: Step, result: Any) -> Tensor | None:
        """z0_hat [b, c, t, h, w] of the whole clip, in what the host's step returned; None where it is not told."""
        return None

    def latent_frames(self, frames: int) -> int:
        """Latent frames that the first `frames` of a clip lie in."""
        return frames

    def sub_clip(self, step: Step, frames: range) -> Step | None:
        """The same step of these latent frames alone, as a clip; None where no part can be had.

        Branches without T are the whole clip's.
        """
        return None

    def in_float32(self, step: Step) -> Step:
        """The same step for modules whose weights are float32; this one, where the host's always are."""
        return step

    @abstractmethod
    def guided_step(self, step: Step) -> AbstractContextManager[None]:
        """What holds during a guided step: lean attention, branches without T computed once, no offloading."""

    # --- pixels and weights

    @abstractmethod
    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """The named frames of z0_hat as pixels [b, 3, n, h, w] in [-1, 1], differentiable."""

    @abstractmethod
    def modules(self) -> list[nn.Module]:
        """Every module a gradient may pass; their weights are frozen while guidance runs."""

    @abstractmethod
    def vae(self) -> nn.Module:
        """The one of them that decodes; it does so in float32, because float16 pixels hide small motion."""

    @abstractmethod
    def blocks(self) -> dict[str, list[nn.Module]]:
        """Blocks that may be computed again in the backward pass: {"attention": [...], "other": [...]}."""

    def noise_seed(self) -> int:
        """The seed that the host's noise comes from: torch's global one unless the host is given another."""
        return torch.initial_seed()
