"""The method under bad numbers and in half precision, on a real (tiny) pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.numerics import weights_in_float32
from mp_hooks.guidance.objective import Loss
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.experiments import descent
from mp_hooks.testing.conformance import Recorder, assert_same_guidance
from mp_hooks.testing.diffusers import AnimateDiffCase

CASE = AnimateDiffCase()


def guided(pipe: Any, config: MotionPromptConfig, spoil: Any = None) -> tuple[torch.Tensor, Recorder]:
    method = Recorder(config)
    with backbones.attached(pipe, method):
        if spoil is not None:
            method.objective = spoil(method.objective)
        return CASE.sample(pipe, CASE.prompts, seed=7), method


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_whose_loss_is_not_finite_keeps_its_tokens(pipe: Any, tmp_path: Path, value: float) -> None:
    def spoil(objective: Any) -> Any:
        def spoiled(*args: Any) -> Loss:
            loss = objective(*args)
            return replace(loss, motion=loss.motion * torch.tensor([value, 1.0]))

        return spoiled

    with pytest.warns(UserWarning, match="4 token updates were not finite"):
        latents, method = guided(pipe, replace(CASE.config, trace=str(tmp_path / "trace.jsonl")), spoil)
    run = method.runs[0]
    assert latents.isfinite().all()
    assert torch.equal(run.tokens[0], run.initial)
    assert not torch.equal(run.tokens[1], run.initial)
    records = [record for record in read_trace(tmp_path / "trace.jsonl") if record["event"] == "iteration"]
    assert [record["updated"] for record in records] == [[False, True]] * 4


def test_text_that_is_not_finite_never_reaches_the_host(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken encoding of sample 0 leaves that sample to its own prompt."""
    adapter = type(backbones.adapter_for(pipe))
    encode = adapter.encode

    def broken(self: Any, prompts: list[str]) -> torch.Tensor:
        return encode(self, prompts) * torch.tensor([float("nan"), 1.0]).view(2, 1, 1)

    vanilla = CASE.sample(pipe, CASE.prompts, seed=7)
    monkeypatch.setattr(adapter, "encode", broken)
    with pytest.warns(UserWarning, match="not finite"):
        latents, _ = guided(pipe, CASE.config)
    assert latents.isfinite().all()
    torch.testing.assert_close(latents[0], vanilla[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(latents[1], vanilla[1], rtol=1e-3, atol=1e-3)


@pytest.fixture
def half(pipe: Any) -> Iterator[Any]:
    yield pipe.to(torch.float16)
    pipe.to(torch.float32)


def test_a_module_in_float32_has_its_very_weights_back() -> None:
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 2).half(), torch.nn.BatchNorm1d(2).bfloat16(), torch.nn.Linear(2, 2)
    )
    places = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in module.state_dict().items()}
    with pytest.raises(ZeroDivisionError), weights_in_float32(module):
        assert all(
            tensor.dtype == torch.float32 for tensor in module.state_dict().values() if tensor.is_floating_point()
        )
        raise ZeroDivisionError
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in module.state_dict().items()} == places


def test_updates_are_computed_without_tensorfloat32_and_the_users_choice_comes_back(pipe: Any) -> None:
    """Convolutions take it by default on CUDA; the flags are there on a CPU too."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    places = [(cuda, "fp32_precision"), (cudnn.conv, "fp32_precision")] if hasattr(cudnn, "conv") else []
    places, fast = (places, "tf32") if places else ([(cuda, "allow_tf32"), (cudnn, "allow_tf32")], True)
    before, seen = [getattr(*place) for place in places], []
    method = Recorder(CASE.config)
    method.observers.append(lambda _run, _update: seen.append([getattr(*place) for place in places]))
    try:
        for place in places:
            setattr(*place, fast)
        with backbones.attached(pipe, method):
            CASE.sample(pipe, CASE.prompts, seed=7)
        assert seen and not any(fast in flags for flags in seen)
        assert [getattr(*place) for place in places] == [fast, fast]
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(*place, value)


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_a_loss_scale_that_overflows_comes_down_and_stays_down(half: Any) -> None:
    method = Recorder(replace(CASE.config, loss_scale=2.0**24))
    with backbones.attached(half, method):
        for _ in range(2):
            assert CASE.sample(half, CASE.prompts, seed=7).isfinite().all()
    assert method.loss_scale.value < 2.0**24
    assert method.runs[0].outcome.skipped > method.runs[1].outcome.skipped


def test_every_sampling_starts_from_the_initial_tokens(pipe: Any) -> None:
    with backbones.motionprompt(pipe, CASE.config):
        first, second = (CASE.sample(pipe, CASE.prompts, seed=7) for _ in range(2))
    assert_same_guidance(first, second)


def test_a_word_that_is_none_is_one_sentence(pipe: Any) -> None:
    with pytest.raises(MotionPromptError, match="init_word"):
        guided(pipe, replace(CASE.config, init_word=" "))


def test_several_tokens_at_the_front(pipe: Any) -> None:
    latents, method = guided(pipe, replace(CASE.config, tokens=3, placement="front"))
    run = method.runs[0]
    assert run.tokens.shape == (2, 3, 32)
    assert latents.isfinite().all()
    assert ((run.tokens - run.initial).norm(dim=-1) > 0).all()


def test_more_pairs_and_other_optimisers_run(pipe: Any) -> None:
    for optimizer in ("adamw", "sgd"):
        latents, method = guided(pipe, replace(CASE.config, optimizer=optimizer, pairs=2))
        assert latents.isfinite().all()
        assert not torch.equal(method.runs[0].tokens[0], method.runs[0].initial)


@pytest.fixture
def embedding(pipe: Any) -> Iterator[torch.Tensor]:
    weight = pipe.text_encoder.get_input_embeddings().weight
    kept = weight.detach().clone()
    yield weight.data
    weight.data.copy_(kept)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_the_rate_is_in_units_of_the_embedding(pipe: Any, embedding: torch.Tensor, size: float) -> None:
    """Adam's first update moves every coordinate by the rate, whatever the embedding's numbers are."""
    embedding.mul_(size)
    config = replace(CASE.config, optimizer="adam", learning_rate=None, relative_rate=0.25, iterations=1)
    _, method = guided(pipe, config)
    update = method.updates[0]
    unit = method.runs[0].initial.square().mean().sqrt()
    torch.testing.assert_close(
        (update.after - update.before).abs().median() / unit, torch.tensor(0.25), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_the_distance_is_in_units_of_the_embedding(pipe: Any, embedding: torch.Tensor, size: float) -> None:
    """A quarter of T0 away costs lambda_reg / 16, whatever the embedding's numbers are."""
    embedding.mul_(size)
    config = replace(CASE.config, optimizer="adam", learning_rate=None, relative_rate=0.25, lambda_reg=3.0)
    _, method = guided(pipe, config)
    update, initial = method.updates[1], method.runs[0].initial
    assert update.iteration == 1
    away = (update.before - initial).square().sum((1, 2)) / initial.square().sum()
    torch.testing.assert_close(away, torch.full((2,), 0.25**2), rtol=0.05, atol=0)
    torch.testing.assert_close(update.loss.pull, 3.0 * away)


def test_rate_and_weight_of_an_older_file_mean_what_they_did(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("version: 1\nlearning_rate: 0.01\nlambda_reg: 0.5\n")
    old = load_config(tmp_path / "old.yaml")
    config = replace(CASE.config, optimizer="adam", learning_rate=old.learning_rate, lambda_reg=old.lambda_reg)
    _, method = guided(pipe, config)
    first, second = method.updates[:2]
    torch.testing.assert_close((first.after - first.before).abs().median(), torch.tensor(0.01), rtol=0.02, atol=0)
    distance = (second.before - method.runs[0].initial).square().sum((1, 2))
    torch.testing.assert_close(second.loss.pull, 0.5 * distance)


def test_default_steps_descend_where_embeddings_are_large(tmp_path: Path) -> None:
    """T5's are a hundred times CLIP's. Fails where rate or distance have another unit, or text does nothing."""
    found = descent.measure("diffusers-latte", MotionPromptConfig(start=0.25, stop=1.0), tmp_path)
    assert found.steps >= 12
    assert found.fell >= 0.8 * found.steps


def test_descent_is_measured_on_the_same_pairs_and_changes_nothing(pipe: Any, tmp_path: Path) -> None:
    quiet, _ = guided(pipe, CASE.config)
    # an update that goes nowhere leaves the loss as it was, to the bit: the pairs before and after are the same
    still = replace(CASE.config, descent=True, learning_rate=0.0, trace=str(tmp_path / "still.jsonl"))
    with pytest.warns(UserWarning, match="fell in 0 of 4 guided steps only"):
        guided(pipe, still)
    records = [record for record in read_trace(tmp_path / "still.jsonl") if record["event"] == "descent"]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["before"] == record["after"] and len(record["before"]) == 2 for record in records)
    measured = replace(CASE.config, descent=True, trace=str(tmp_path / "trace.jsonl"))
    latents, method = guided(pipe, measured)
    assert_same_guidance(latents, quiet)
    records = [record for record in read_trace(tmp_path / "trace.jsonl") if record["event"] == "descent"]
    fell = sum(
        after < before for record in records for before, after in zip(record["before"], record["after"], strict=True)
    )
    assert (method.runs[0].outcome.compared, method.runs[0].outcome.fell) == (4, fell)


def test_the_same_seed_gives_the_same_video_and_trace(pipe: Any, tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        latents, _ = guided(pipe, replace(CASE.config, trace=str(path), seed=3))
        fields = ("pairs", "loss", "phi", "cosine", "gradient")
        results.append((latents, [[record.get(field) for field in fields] for record in read_trace(path)]))
    assert_same_guidance(results[0][0], results[1][0])
    assert results[0][1][0] == results[1][1][0]
    for ours, theirs in zip(results[0][1][1:-1], results[1][1][1:-1], strict=True):
        assert ours[0] == theirs[0], "the pairs drawn"
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert one == pytest.approx(other, rel=1e-2, abs=1e-4)
    other, _ = guided(pipe, replace(CASE.config, seed=4))
    assert not torch.equal(other, results[0][0]), "another seed draws other frame pairs"
