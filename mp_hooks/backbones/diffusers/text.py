"""Where token embeddings enter the text encoders that pipelines share: the table is in docs/hosts.md."""

from __future__ import annotations

from typing import Any

from mp_hooks.backbones.diffusers.modules import uncompiled
from mp_hooks.guidance.tokens import TextInput

T5 = ("T5EncoderModel", "UMT5EncoderModel")


def text_input(pipe: Any, end: str | None = None, skip: int = 0) -> TextInput:
    """Of the pipeline's `text_encoder`, told by its class.

    end: the token that ends a prompt within a template. skip: tokens of the template in front of it.
    """
    encoder = uncompiled(pipe.text_encoder)
    if type(encoder).__name__ in T5:
        return t5_text(pipe)
    if type(encoder).__name__.startswith("CLIPText"):
        return clip_text(pipe)
    return chat_text(pipe, end, skip)


def clip_text(pipe: Any) -> TextInput:
    """CLIP, whose padding is its end-of-text token (Stable Diffusion's) or id 0; nobody asks for its mask."""
    tokenizer = pipe.tokenizer
    embedding = pipe.text_encoder.get_input_embeddings()
    return TextInput(embedding, end=tokenizer.eos_token_id, start=tokenizer.bos_token_id)


def t5_text(pipe: Any) -> TextInput:
    """T5 and UMT5: get_input_embeddings() is T5's shared table, a module that is never called."""
    embedding = pipe.text_encoder.encoder.embed_tokens
    return TextInput(embedding, end=pipe.tokenizer.eos_token_id, tokenizer=(pipe, "tokenizer"))


def chat_text(pipe: Any, end: str | None, skip: int) -> TextInput:
    """A language model (Llama, Qwen, Gemma), whose prompt a template may surround."""
    tokenizer = word_tokenizer(pipe)
    number = -1 if end is None else tokenizer.convert_tokens_to_ids(end)
    number = -1 if number in (None, tokenizer.unk_token_id) else number
    embedding = pipe.text_encoder.get_input_embeddings()
    return TextInput(embedding, end=number, tokenizer=(pipe, "tokenizer"), skip=skip)


def word_tokenizer(pipe: Any) -> Any:
    """The tokenizer itself, also where the pipeline has it inside a processor of text and images."""
    return getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)
