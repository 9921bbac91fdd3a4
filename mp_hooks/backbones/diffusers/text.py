"""Where token embeddings enter the text encoders that pipelines share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mp_hooks.guidance.tokens import TextInput


def clip_text(pipe: Any) -> TextInput:
    """CLIP, whose padding is its end-of-text token (Stable Diffusion's) or id 0."""
    tokenizer = pipe.tokenizer
    embedding = pipe.text_encoder.get_input_embeddings()
    return TextInput(embedding, end=tokenizer.eos_token_id, start=tokenizer.bos_token_id)


def t5_text(pipe: Any) -> TextInput:
    """T5 and UMT5: get_input_embeddings() is T5's shared table, a module that is never called."""
    return TextInput(pipe.text_encoder.encoder.embed_tokens, end=pipe.tokenizer.eos_token_id)


class WideningTokenizer:
    """A tokenizer whose attention masks count some tokens more, the learnable ones."""

    def __init__(self, tokenizer: Any, count: int) -> None:
        self._tokenizer, self._count = tokenizer, count

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._tokenizer(*args, **kwargs)
        mask = result["attention_mask"].clone()
        for row in mask:  # padding is on the right
            row[: int(row.sum()) + self._count] = 1
        result["attention_mask"] = mask
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextmanager
def mask_counts(pipe: Any, count: int) -> Iterator[None]:
    """While open, the pipeline's own encoding counts `count` more tokens as text.

    The pipelines take their masks from the tokenizer, which never sees the learnable tokens.
    """
    tokenizer = vars(pipe)["tokenizer"]  # not by setattr, which diffusers takes for a change of configuration
    vars(pipe)["tokenizer"] = WideningTokenizer(tokenizer, count)
    try:
        yield
    finally:
        vars(pipe)["tokenizer"] = tokenizer
