"""A small CLIP tokenizer for tiny hosts, because no hub is needed to test."""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def build_tokenizer(words: Sequence[str], length: int) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer for contexts of `length`, with merges learned from `words` (the captions').

    Every one of them is one token; any other word falls apart into letters.
    """
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), words, length)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def write_tokenizer(folder: Path, words: Sequence[str], length: int) -> None:
    """The files of `build_tokenizer`'s tokenizer, which old and new transformers read."""
    from tokenizers import Tokenizer, models, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    for word in words:  # without pre-tokenizer each line is one word
        if not set(word) <= set(string.ascii_lowercase):
            raise ValueError(f"a word holds other characters than a to z: {word!r}")
    learner.train_from_iterator(words, trainer)
    learner.model.save(str(folder))  # its merges are right; its vocabulary has no letters but those of `words`
    merges = [line.split() for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "bos_token": "<|startoftext|>"}
    settings.update(dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
