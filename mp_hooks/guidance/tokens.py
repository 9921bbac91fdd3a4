"""Learnable tokens: rows of a prompt whose embeddings are written in while the host encodes it.

Neither tokenizer nor embedding matrix is touched. The host tokenizes the plain prompt P; a pre-hook on its
embedding layer makes room for S in the ids, a forward hook writes T into those rows, and everything after the
embedding layer (positions, transformer, final norm) is the host's own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError


@dataclass(frozen=True)
class TextInput:
    """What a host's text encoder says about its input.

    embedding: the token-embedding layer that is really called, ids [b, l] -> [b, l, d].
    end: id of the token that ends the prompt, at its first occurrence; -1 where nothing but padding follows it.
    start: id of the start-of-text token, None where the encoder has none (T5).
    tokenizer: the object and its attribute that is the tokenizer, where the host reads ids or masks itself: room is
    made in what the tokenizer gives it. None makes room at the embedding layer.
    skip: tokens of a template in front of the prompt.
    """

    embedding: nn.Module
    end: int
    start: int | None = None
    tokenizer: tuple[Any, str] | None = None
    skip: int = 0


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
    count = tokens.shape[1]

    def make_room(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if text.tokenizer is None:
            ids, where, report["lost"] = insert_slots(args[0], text, count, placement)
        else:
            where = args[0] == SLOT
            ids = args[0].masked_fill(where, 0)
        slots.append(where)
        return (ids, *args[1:])

    def write(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_scatter(slots.pop().unsqueeze(-1), tokens.to(output))

    handles = [text.embedding.register_forward_pre_hook(make_room), text.embedding.register_forward_hook(write)]
    owner, name = text.tokenizer or (None, "")
    tokenizer = None if owner is None else vars(owner)[name]  # not by setattr, which diffusers takes for a change
    try:
        if owner is not None:
            vars(owner)[name] = RoomyTokenizer(tokenizer, text, count, placement, report)
        yield report
    finally:
        if owner is not None:
            vars(owner)[name] = tokenizer
        for handle in handles:
            handle.remove()


SLOT, PAD = -1, -2  # ids that no tokenizer has


class RoomyTokenizer:
    """A tokenizer that makes room for S in its ids, as SLOT, and in all that goes with them: masks count S as text."""

    def __init__(self, tokenizer: Any, text: TextInput, count: int, placement: str, report: dict[str, int]) -> None:
        self._tokenizer, self._text, self._count, self._placement = tokenizer, text, count, placement
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._widened(self._tokenizer(*args, **kwargs), kwargs.get("padding") == "max_length")

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        result = self._tokenizer.apply_chat_template(*args, **kwargs)
        return self._widened(result, kwargs.get("padding") == "max_length") if kwargs.get("tokenize", True) else result

    def _widened(self, result: Any, fixed: bool) -> Any:
        """The tokenizer's result with room; `fixed`: in the same length."""
        ids = torch.as_tensor(result["input_ids"])
        rows = ids.view(-1, ids.shape[-1])
        mask = torch.as_tensor(result.get("attention_mask", torch.ones_like(ids))).view_as(rows)
        order = torch.stack([self._order(*row, fixed) for row in zip(rows, mask, strict=True)])
        for name, value in result.items():
            given = torch.as_tensor(value)
            if given.shape != ids.shape:
                continue
            slot, pad = {"input_ids": (SLOT, self._padding()), "attention_mask": (1, 0)}.get(name, (0, 0))
            new = given.view_as(rows).gather(1, order.clamp(min=0))
            new = new.masked_fill(order == SLOT, slot).masked_fill(order == PAD, pad).view(*ids.shape[:-1], -1)
            result[name] = new if isinstance(value, Tensor) else new.tolist()
        return result

    def _order(self, row: Tensor, mask: Tensor, fixed: bool) -> Tensor:
        """Where each place of the new row comes from: a place of the old one, SLOT or PAD."""
        text, count = self._text, self._count
        places = mask.nonzero().flatten().tolist()
        first, last = (places[0], places[-1] + 1) if places else (0, 0)
        head = min(first + text.skip + (text.start is not None), last)
        ends = (row[head:last] == text.end).nonzero().flatten().tolist()
        end = head + ends[-1] if ends else last  # in a template, those before are of other messages
        length = len(row) + (0 if fixed else count)
        lost = max(last - first + count - length, 0)
        if lost > end - head:
            raise MotionPromptError(
                f"{count} learnable tokens do not fit the host's text context of {length}; use fewer"
            )
        self._report["lost"] = max(self._report["lost"], lost)
        prompt = list(range(head, end - lost))
        slots = [SLOT] * count
        middle = slots + prompt if self._placement == "front" else prompt + slots
        filled = [*range(first, head), *middle, *range(end, last)]
        padding = [PAD] * (length - len(filled))
        return torch.tensor(padding + filled if first else filled + padding)

    def _padding(self) -> int:
        tokenizer = getattr(self._tokenizer, "tokenizer", self._tokenizer)  # of a processor
        return tokenizer.pad_token_id or 0


def same_rows(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two encodings [b, l, d] are of one text, but for rounding in batches of other sizes."""
    if ours.shape != theirs.shape:
        return False
    tolerance = max(8 * torch.finfo(theirs.dtype).eps, 1e-4)
    ours, theirs = ours.float(), theirs.to(ours.device).float()
    apart, size = (value.flatten(1).norm(dim=1) for value in (ours - theirs, theirs))
    return not bool((apart > tolerance * size).any())  # a sample that is not finite is dealt with elsewhere
