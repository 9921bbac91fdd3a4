"""Whatever is asked for, within what a host allows: configurations, prompts, frames, steps, scales, batches."""

from __future__ import annotations

import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.tokens import TextInput, insert_slots
from mp_hooks.testing.diffusers import AnimateDiffCase

CASE = AnimateDiffCase()
START, END = 98, 99


def values(option: Any) -> st.SearchStrategy[Any]:
    """Valid values of one option."""
    limits, kind = option.metadata, option.type.split(" | ")[0]
    if "choices" in limits:
        return st.sampled_from(list(limits["choices"]))
    low = limits.get("at_least", -(2**31))
    plain = {
        "int": st.integers(low, 2**31),
        "float": st.floats(low, limits.get("at_most", 1e9), allow_nan=False),
        "bool": st.booleans(),
        # what OmegaConf reads as an interpolation is none, and YAML has no control characters
        "str": st.text(st.characters(exclude_categories=["C"], exclude_characters="$\\"), min_size=1),
    }[kind]
    return st.none() | plain if "None" in option.type else plain


CONFIGURATIONS = st.fixed_dictionaries(
    {}, optional={option.name: values(option) for option in fields(MotionPromptConfig)}
)


@given(CONFIGURATIONS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_configuration_is_refused_or_comes_back_from_its_file(tmp_path: Path, given_: dict[str, Any]) -> None:
    try:
        config = MotionPromptConfig(**given_)
    except MotionPromptError as error:
        assert "\n" not in str(error)
        return
    config.save(tmp_path / "config.yaml")
    assert asdict(load_config(tmp_path / "config.yaml")) == asdict(config)


@given(
    st.lists(st.lists(st.integers(0, 90), max_size=40), min_size=1, max_size=3),
    st.integers(2, 20),
    st.integers(1, 8),
    st.sampled_from(["end", "front"]),
    st.booleans(),
)
def test_the_tokens_stand_in_every_prompt_and_nothing_else_moves(
    prompts: list[list[int]], length: int, count: int, placement: str, starts: bool
) -> None:
    head = [START] if starts else []
    rows = [([*head, *prompt][: length - 1] + [END] * length)[:length] for prompt in prompts]
    text = TextInput(nn.Embedding(100, 4), end=END, start=START if starts else None)
    room = length - len(head) - 1
    if count > room:
        with pytest.raises(MotionPromptError, match="do not fit"):
            insert_slots(torch.tensor(rows), text, count, placement)
        return
    ids, slots, lost = insert_slots(torch.tensor(rows), text, count, placement)
    for before, after, where in zip(rows, ids.tolist(), slots.tolist(), strict=True):
        assert len(after) == length
        assert sum(where) == count
        prompt = [number for number in before[len(head) :] if number != END]
        kept = [number for number, slot in zip(after, where, strict=True) if not slot][len(head) :]
        assert kept[: kept.index(END)] == prompt[: room - count]
        assert len(prompt) - len(prompt[: room - count]) <= lost
        assert after[: len(head)] == head


PROMPTS = [
    "a boat on the sea",
    "",
    " ",
    "😀 Ночь 夜 ~!",
    "word " * 1000,
    "<|endoftext|> a <|startoftext|>",
    "../../x\t\n",
]


@given(
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3),
    frames=st.sampled_from([1, 2, 3, 5]),
    steps=st.sampled_from([1, 2, 3, 7]),
    scale=st.sampled_from([0.0, 1.0, 7.5, 50.0]),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sampled_is_finite_or_refused(
    pipe: Any, prompts: list[str], frames: int, steps: int, scale: float
) -> None:
    asked = {"num_frames": frames, "num_inference_steps": steps, "guidance_scale": scale}
    with warnings.catch_warnings(), backbones.motionprompt(pipe, replace(CASE.config, iterations=1)):
        warnings.simplefilter("ignore")  # of prompts that fill the context
        if frames == 1:
            with pytest.raises(MotionPromptError, match="ask the host for more frames"):
                CASE.sample(pipe, prompts, seed=7, **asked)
            return
        latents = CASE.sample(pipe, prompts, seed=7, **asked)
    assert latents.shape[0] == len(prompts)
    assert latents.shape[2] == frames
    assert latents.isfinite().all()
