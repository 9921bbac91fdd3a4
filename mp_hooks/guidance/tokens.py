"""Learnable tokens: rows of a prompt whose embeddings are written in while the host encodes it.

Neither tokenizer nor embedding matrix is touched. The host tokenizes the plain prompt P; a pre-hook on its
embedding layer makes room for S in the ids, a forward hook writes T into those rows, and everything after the
embedding layer (positions, transformer, final norm) is the host's own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError


@dataclass(frozen=True)
class TextInput:
    """What a host's text encoder says about its input.

    embedding: the token-embedding layer that is really called, ids [b, l] -> [b, l, d].
    end: id of the end-of-text token; its first occurrence ends the prompt.
    start: id of the start-of-text token, None where the encoder has none (T5).
    """

    embedding: nn.Module
    end: int
    start: int | None = None


def initial_tokens(text: TextInput, word_ids: Sequence[int], count: int) -> Tensor:
    """T0: float32 [count, d], each the embedding of the initial word (the mean over its pieces, if several)."""
    # By the layer, not from its weight: offloaded weights are there only while the layer runs.
    device = text.embedding.weight.device
    ids = torch.as_tensor(list(word_ids), device="cpu" if device.type == "meta" else device)
    with torch.no_grad():
        return text.embedding(ids).float().mean(0, keepdim=True).repeat(count, 1)


def insert_slots(ids: Tensor, text: TextInput, count: int, placement: str) -> tuple[Tensor, Tensor, int]:
    """Make room for `count` tokens in each row of `ids`.

    Args:
        ids: int64 [b, l], as the host tokenized them: [start] prompt end padding.
        placement: "end", right before end-of-text, or "front", right after start-of-text.

    Returns:
        the new ids [b, l] (slots hold the end id until T overwrites their embedding), the slots as bool [b, l],
        and how many tokens the fullest prompt lost because the context had no room left.

    Raises MotionPromptError when the context has no room for the tokens themselves.
    """
    rows, slots, lost = [], torch.zeros_like(ids, dtype=torch.bool), 0
    length = ids.shape[1]
    head = 0 if text.start is None else 1
    if count > length - head - 1:
        raise MotionPromptError(f"{count} learnable tokens do not fit the host's text context of {length}; use fewer")
    for number, row in enumerate(ids):
        ends = (row == text.end).nonzero()
        end = int(ends[0]) if len(ends) else length
        room = length - head - count - 1
        prompt = row[head : min(end, head + room)]
        lost = max(lost, end - head - room)
        slot = row.new_full((count,), text.end)
        place = head if placement == "front" else head + len(prompt)
        middle = [slot, prompt] if placement == "front" else [prompt, slot]
        filled = torch.cat([row[:head], *middle, row.new_full((1,), text.end)])
        rows.append(torch.cat([filled, row[end + 1 : end + 1 + length - len(filled)]]))
        slots[number, place : place + count] = True
    return torch.stack(rows), slots, max(lost, 0)


@contextmanager
def injected(text: TextInput, tokens: Tensor, placement: str) -> Iterator[dict[str, int]]:
    """While open, every call of the embedding layer carries `tokens` [b, n, d] in the rows of S.

    Yields a dict whose "lost" says how many prompt tokens had to make room. The hooks are removed on the way
    out, whatever happened.
    """
    report = {"lost": 0}
    slots: list[Tensor] = []

    def make_room(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids, where, report["lost"] = insert_slots(args[0], text, tokens.shape[1], placement)
        slots.append(where)
        return (ids, *args[1:])

    def write(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_scatter(slots.pop().unsqueeze(-1), tokens.to(output))

    handles = [text.embedding.register_forward_pre_hook(make_room), text.embedding.register_forward_hook(write)]
    try:
        yield report
    finally:
        for handle in handles:
            handle.remove()


def same_rows(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two encodings [b, l, d] are of one text, but for rounding in batches of other sizes."""
    if ours.shape != theirs.shape:
        return False
    tolerance = max(8 * torch.finfo(theirs.dtype).eps, 1e-4)
    ours, theirs = ours.float(), theirs.to(ours.device).float()
    apart, size = (value.flatten(1).norm(dim=1) for value in (ours - theirs, theirs))
    return not bool((apart > tolerance * size).any())  # a sample that is not finite is dealt with elsewhere
