"""The diffusers adapter beyond the kit: FreeNoise, gradients, refusals."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch

from mp_hooks import backbones
from mp_hooks.errors import MotionPromptError
from mp_hooks.testing.diffusers import WORDS, AnimateDiffCase, LTXCase, WanCase

diffusers = pytest.importorskip("diffusers")
CASE = AnimateDiffCase()


@pytest.fixture(autouse=True)
def _unpatched_afterwards(pipe: Any) -> Iterator[None]:
    yield
    backbones.remove_patch(pipe)


def test_free_noise_is_guided(pipe: Any) -> None:
    pipe.enable_free_noise(context_length=4, context_stride=2)
    try:
        vanilla = CASE.sample(pipe, CASE.prompts[0], seed=7, num_frames=8)
        with backbones.motionprompt(pipe, CASE.config):
            guided = CASE.sample(pipe, CASE.prompts[0], seed=7, num_frames=8)
        assert guided.isfinite().all()
        assert not torch.equal(guided, vanilla)
        assert torch.equal(CASE.sample(pipe, CASE.prompts[0], seed=7, num_frames=8), vanilla)
    finally:
        pipe.disable_free_noise()


def test_another_pipeline_of_the_class_is_left_alone(pipe: Any) -> None:
    with CASE.open() as other:
        vanilla = CASE.sample(other, CASE.prompts, seed=7)
        with backbones.motionprompt(pipe, CASE.config):
            assert torch.equal(CASE.sample(other, CASE.prompts, seed=7), vanilla)


def test_a_pipelines_own_generator_gives_the_same_noise(pipe: Any) -> None:
    """Outside the window nothing changes, so before it both runs are the same; the generators end alike."""
    ends = []
    for guided in (False, True):
        generator = torch.Generator().manual_seed(3)
        if guided:
            backbones.apply_patch(pipe, CASE.config)
        CASE.sample(pipe, CASE.prompts, seed=7, generator=generator, eta=1.0)
        ends.append(generator.get_state())
    assert torch.equal(*ends)


def test_embeddings_in_place_of_a_prompt_are_refused_in_a_sentence(pipe: Any) -> None:
    embeds = torch.zeros(1, 16, 32)
    with backbones.motionprompt(pipe, CASE.config), pytest.raises(MotionPromptError, match="prompt as text"):
        CASE.sample(pipe, None, seed=7, prompt_embeds=embeds, negative_prompt_embeds=embeds)


def test_tiny_tokenizer_knows_its_words(pipe: Any) -> None:
    for word in WORDS:
        assert len(pipe.tokenizer(word, add_special_tokens=False).input_ids) == 1


@pytest.mark.skipif(not hasattr(diffusers, "LTXPipeline"), reason="LTXPipeline came with diffusers 0.32")
@pytest.mark.parametrize("tokens", [1, 3])
def test_ltx_attends_to_the_tokens(tokens: int) -> None:
    """The mask counts them where the tokens stand, and only there: end-of-text keeps its place behind them."""
    case, seen = LTXCase(), []
    with case.open() as pipe:
        forward = pipe.transformer.forward

        @wraps(forward)
        def noted(*args: Any, **kwargs: Any) -> Any:
            mask = inspect.signature(forward).bind(*args, **kwargs).arguments["encoder_attention_mask"]
            seen.append(mask.sum(1).int().tolist())
            return forward(*args, **kwargs)

        pipe.transformer.forward = noted
        with backbones.motionprompt(pipe, replace(case.config, tokens=tokens, checkpointing="none")):
            case.sample(pipe, ["a boat on the sea"], seed=7)
    # "" and five words, each with end-of-text: both at once in the two plain steps, apart in the two guided ones
    assert [seen.count(mask) for mask in ([1, 6], [1], [6 + tokens])] == [2, 2, 2 * (case.config.iterations + 1)]


@pytest.mark.skipif(not hasattr(diffusers, "WanPipeline"), reason="WanPipeline came with diffusers 0.33")
def test_wan_computes_the_unconditional_branch_once() -> None:
    """Per guided step: unconditional, two updates, the step itself; the host's second call costs nothing."""
    case, passes = WanCase(), []
    with case.open() as pipe:
        handle = pipe.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
        with backbones.motionprompt(pipe, replace(case.config, checkpointing="none")):
            case.sample(pipe, case.prompts, seed=7)
        handle.remove()
    guided, plain = 2, 2
    assert len(passes) == guided * (1 + case.config.iterations + 1) + plain * 2
