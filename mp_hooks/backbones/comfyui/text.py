"""A ComfyUI text encoder: what it makes of a prompt, and where the learnable tokens enter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.tokens import TextInput
from mp_hooks.hooks import Hooks


class Entrance(nn.Module):
    """The host's token embeddings of one section of a prompt, float32 [1, l, d] of ids [1, l].

    The learnable tokens enter here and not at the host's layer, which is called for each section of a long prompt, and
    for the empty prompt where words have weights.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.weight  # type: ignore[return-value]

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(ids, out_dtype=torch.float32)


class TextEncoder:
    """A CLIP object of ComfyUI that holds one encoder: T5, UMT5 or CLIP."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self.module: nn.Module = clip.cond_stage_model
        self.name = getattr(self.module, "clip_name", None)
        if self.name is None or not hasattr(clip.tokenizer, "clip"):
            kind = type(self.module).__name__
            raise MotionPromptError(
                f"MotionPrompt knows text encoders of one model (T5, UMT5, CLIP), and this is {kind}"
            )
        self._encoder = getattr(self.module, self.module.clip)
        self._tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
        self.input = TextInput(
            Entrance(self._encoder.transformer.get_input_embeddings()),
            end=self._tokenizer.end_token,
            start=self._tokenizer.start_token,
        )
        self.room = 0  # learnable tokens that the next encoding carries
        self.mask: Tensor | None = None  # of the last encoding, where the encoder hands it on

    def word_ids(self, word: str) -> list[int]:
        """A word's ids, without start and end."""
        ids = self._ids(self.clip.tokenize(word)[self.name][-1])
        return [token for token in ids[: ids.index(self.input.end)] if token != self.input.start]

    def encode(self, prompt: str) -> Tensor:
        """ComfyUI's own encoding [1, l, d]; the last section of the prompt goes through `input`, if there is room."""
        tokens = self.clip.tokenize(prompt)
        sections = tokens[self.name]
        with self._last_through_input(len(sections) - 1):
            encoded = self.clip.encode_from_tokens(tokens, return_dict=True)
        self.mask = encoded.get("attention_mask")
        return encoded["cond"]

    @contextmanager
    def _last_through_input(self, last: int) -> Iterator[None]:
        hooks = Hooks()

        def with_room(original: Callable[..., Any], tokens: list[list[Any]], device: torch.device) -> Any:
            rows, mask, lengths, info = original(tokens, device)
            entered = self.input.embedding(torch.tensor([self._ids(tokens[last])], device=device))
            rows = torch.cat([rows[:last], entered.to(rows), rows[last + 1 :]])
            lengths[last] = min(lengths[last] + self.room, mask.shape[1])
            mask[last, : lengths[last]] = 1
            return rows, mask, lengths, info

        try:
            if self.room:
                hooks.wrap(self._encoder, "process_tokens", with_room)
            yield
        finally:
            hooks.remove()

    def _ids(self, section: list[Any]) -> list[int]:
        """The ids of a section, with weights or without."""
        ids = [token[0] if isinstance(token, tuple) else token for token in section]
        if not all(isinstance(token, int) for token in ids):
            raise MotionPromptError("MotionPrompt does not know 'embedding:NAME' in a prompt; say it in words")
        return ids
