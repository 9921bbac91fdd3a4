"""The method without a host: schedule, tokens, loss, configuration, trace."""

from __future__ import annotations

import argparse
import errno
import json
import math
import multiprocessing
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mp_hooks import config as configuration
from mp_hooks.config import MotionPromptConfig, add_config_flags, config_from_flags, load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow.warping import warp
from mp_hooks.guidance.objective import (
    TYPICAL_LENGTH,
    VARIATIONS,
    discriminator_loss,
    photometric_error,
    relative_variation,
    square,
    token_distance,
    total_variation,
)
from mp_hooks.guidance.schedule import draw_pairs, draw_place, guided_window
from mp_hooks.guidance.tokens import TextInput, initial_tokens, injected, insert_slots
from mp_hooks.guidance.trace import Trace, read_trace

START, END = 98, 99


def test_window_of_fifty_steps_is_the_papers() -> None:
    assert list(guided_window(50, 0.08, 0.30)) == list(range(4, 15))


@given(st.integers(1, 1000), st.floats(0, 0.99), st.floats(0.001, 1))
def test_window_lies_in_the_schedule_and_is_never_empty(total: int, start: float, length: float) -> None:
    window = guided_window(total, start, min(start + length, 1.0))
    assert len(window) >= 1
    assert window[0] >= 0
    assert window[-1] < total


@given(st.integers(2, 64), st.integers(1, 9), st.integers(0, 30), st.integers(0, 99))
@settings(max_examples=50)
def test_pairs_fit_the_clip(frames: int, shortest: int, extra: int, seed: int) -> None:
    pairs = draw_pairs(frames, 20, shortest, shortest + extra, torch.Generator().manual_seed(seed)).frames
    interval = pairs[:, 1] - pairs[:, 0]
    assert pairs.min() >= 0
    assert pairs.max() < frames
    assert interval.min() >= min(shortest, frames - 1)
    assert interval.max() <= shortest + extra


def test_a_part_is_as_likely_to_hold_the_first_frames_as_any() -> None:
    """Within a factor of two over the pairs of neighbours, in 8 frames and in 16; a uniform place has three."""
    generator = torch.Generator().manual_seed(0)
    for frames in (8, 16):
        places = [draw_place(frames, 4, generator) for _ in range(4000)]
        assert min(places) == 0 and max(places) == frames - 4
        held = [sum(place <= first < place + 3 for place in places) for first in range(frames - 1)]
        assert max(held) < 2 * min(held)
    assert {draw_place(3, 2, generator) for _ in range(50)} == {0, 1}


def test_pairs_reach_every_place_and_interval() -> None:
    pairs = draw_pairs(6, 2000, 1, 3, torch.Generator().manual_seed(0)).frames
    assert {tuple(pair) for pair in pairs.tolist()} == {(i, i + k) for k in (1, 2, 3) for i in range(6 - k)}


def test_one_frame_has_no_pair() -> None:
    with pytest.raises(MotionPromptError, match="two frames"):
        draw_pairs(1, 1, 1, 4, torch.Generator())


def text_input() -> TextInput:
    torch.manual_seed(0)
    return TextInput(nn.Embedding(100, 8), end=END, start=START)


def ids(*prompts: list[int], length: int = 8, padding: int = 0) -> torch.Tensor:
    rows = [[START, *prompt, END] for prompt in prompts]
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


@pytest.mark.parametrize("padding", [0, END])
@pytest.mark.parametrize(
    ("placement", "expected"), [("end", [START, 1, 2, END, END]), ("front", [START, END, 1, 2, END])]
)
def test_slot_goes_before_the_end_or_after_the_start(placement: str, expected: list[int], padding: int) -> None:
    new, slots, lost = insert_slots(ids([1, 2], padding=padding), text_input(), 1, placement)
    assert new.tolist() == [expected + [padding] * 3]
    assert slots.nonzero().tolist() == [[0, 3 if placement == "end" else 1]]
    assert lost == 0


def test_prompts_of_different_lengths_have_their_own_slots() -> None:
    new, slots, _ = insert_slots(ids([1], [1, 2, 3]), text_input(), 2, "end")
    assert slots.nonzero().tolist() == [[0, 2], [0, 3], [1, 4], [1, 5]]
    assert new.tolist() == [[START, 1, END, END, END, 0, 0, 0], [START, 1, 2, 3, END, END, END, 0]]


def test_a_full_context_loses_its_last_words() -> None:
    new, slots, lost = insert_slots(ids([1, 2, 3, 4, 5, 6]), text_input(), 2, "end")
    assert new.tolist() == [[START, 1, 2, 3, 4, END, END, END]]
    assert slots.nonzero().tolist() == [[0, 5], [0, 6]]
    assert lost == 2


@given(st.lists(st.integers(0, 97), max_size=6), st.integers(1, 3), st.sampled_from(["end", "front"]))
def test_insertion_keeps_length_and_ends_every_prompt(prompt: list[int], count: int, placement: str) -> None:
    new, slots, lost = insert_slots(ids(prompt), text_input(), count, placement)
    row, here = new[0], slots[0]
    assert len(row) == 8
    assert here.sum() == count
    assert lost == max(0, len(prompt) + count - 6)
    kept = [token for token, is_slot in zip(row.tolist(), here.tolist(), strict=True) if not is_slot]
    assert kept[: len(prompt) - lost + 2] == [START, *prompt[: len(prompt) - lost], END]


def test_more_tokens_than_the_context_holds_are_one_sentence() -> None:
    with pytest.raises(MotionPromptError, match="context of 8"):
        insert_slots(ids([1]), text_input(), 7, "end")
    insert_slots(ids([1]), text_input(), 6, "end")


def test_an_encoder_without_start_token() -> None:
    text = TextInput(nn.Embedding(100, 8), end=END)
    new, slots, _ = insert_slots(torch.tensor([[5, 6, END, 0, 0]]), text, 1, "front")
    assert new.tolist() == [[END, 5, 6, END, 0]]
    assert slots.nonzero().tolist() == [[0, 0]]


def test_injection_writes_the_tokens_and_goes_away() -> None:
    text = text_input()
    prompt = ids([1, 2], [3])
    plain = text.embedding(prompt)
    tokens = torch.randn(2, 1, 8, requires_grad=True)
    with injected(text, tokens, "end") as report:
        filled = text.embedding(prompt)
    assert torch.equal(filled[0, 3], tokens[0, 0])
    assert torch.equal(filled[1, 2], tokens[1, 0])
    assert torch.equal(filled[0, :3], plain[0, :3])
    assert torch.equal(filled[0, 4], text.embedding.weight[END])
    (gradient,) = torch.autograd.grad(filled.square().sum(), tokens)
    torch.testing.assert_close(gradient, 2 * tokens)
    assert report["lost"] == 0
    assert torch.equal(text.embedding(prompt), plain)


def test_injection_goes_away_after_an_error() -> None:
    text = text_input()
    with pytest.raises(ZeroDivisionError), injected(text, torch.zeros(1, 1, 8), "end"):
        raise ZeroDivisionError
    assert not text.embedding._forward_hooks
    assert not text.embedding._forward_pre_hooks


def test_initial_tokens_are_the_words_embedding() -> None:
    text = text_input()
    assert torch.equal(initial_tokens(text, [5], 2), text.embedding.weight[[5, 5]].detach())
    torch.testing.assert_close(initial_tokens(text, [5, 7], 1)[0], text.embedding.weight[[5, 7]].mean(0).detach())


def test_discriminator_loss_is_log_one_minus_phi_and_stays_finite() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(discriminator_loss(logits), torch.log(1 - torch.sigmoid(logits)))
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    discriminator_loss(extreme).sum().backward()
    assert extreme.grad.isfinite().all()


def test_relative_variation_does_not_change_with_the_speed() -> None:
    flow = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    flow *= TYPICAL_LENGTH * 32 / flow.norm(dim=1).mean()
    torch.testing.assert_close(relative_variation(flow), total_variation(flow), rtol=0.1, atol=0)
    torch.testing.assert_close(relative_variation(3 * flow), relative_variation(flow))
    assert (relative_variation(flow / 1000) < relative_variation(flow) / 50).all()  # a still field is not blown up
    assert set(VARIATIONS) == set(configuration.VARIATIONS)


def test_total_variation_of_a_ramp_is_its_slope_at_any_size() -> None:
    for size in (16, 64):
        x = torch.arange(size, dtype=torch.float64)
        ramp = torch.stack([0.25 * x.expand(size, size), torch.zeros(size, size)]).unsqueeze(0)
        torch.testing.assert_close(total_variation(ramp), torch.tensor([0.25], dtype=torch.float64))


def test_photometric_error_is_what_no_motion_explains() -> None:
    ramp = torch.linspace(-0.5, 0.5, 16).expand(1, 3, 16, 16)
    moved = warp(ramp, torch.tensor([-2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16))  # the ramp, 2 px to the right
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    inside = (..., slice(3, -3))
    explained = photometric_error(ramp[inside], moved[inside], 0 * flow[inside])
    assert photometric_error(ramp, moved, flow) < explained / 5
    # brightness that changes is explained by no motion, in proportion
    flicker = [float(photometric_error(ramp, ramp + step, 0 * flow)) for step in (0.1, 0.2)]
    assert flicker == pytest.approx([0.1, 0.2], rel=1e-3)


def test_token_distance_is_per_sample() -> None:
    initial = torch.zeros(2, 3)
    tokens = torch.stack([torch.ones(2, 3), 2 * torch.ones(2, 3)])
    assert token_distance(tokens, initial).tolist() == [6.0, 24.0]


def test_square_follows_the_corner_and_keeps_aspect() -> None:
    frames = torch.arange(8.0).expand(1, 3, 4, 8)  # wider than high
    assert square(frames, 4, 0.0)[0, 0, 0].tolist() == [0, 1, 2, 3]
    assert square(frames, 4, 1.0)[0, 0, 0].tolist() == [4, 5, 6, 7]
    assert square(frames, 2, 0.5).shape == (1, 3, 2, 2)


def test_configuration_round_trip(tmp_path: Path) -> None:
    config = MotionPromptConfig(tokens=3, seed=5, trace="t.jsonl", progress=False)
    config.save(tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert (tmp_path / "c.yaml").read_text().startswith("version: 1\n")


@pytest.mark.parametrize("version", ["2", "0", "new", "null"])
def test_a_configuration_of_another_version_is_refused(tmp_path: Path, version: str) -> None:
    (tmp_path / "c.yaml").write_text(f"version: {version}\ntokens: 2\n")
    with pytest.raises(MotionPromptError, match="install a newer one"):
        load_config(tmp_path / "c.yaml")


def test_a_preset_gives_way_to_file_and_flags(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("subclip: 6\n", encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    flags = ["--mp-preset", "fast", "--mp-config", str(tmp_path / "c.yaml")]
    config = config_from_flags(parser.parse_args(flags))
    assert config == load_config(**{**configuration.PRESETS["fast"], "subclip": 6})
    assert config_from_flags(parser.parse_args([*flags, "--mp-iterations", "5"])).iterations == 5
    assert load_config(preset="exact") == MotionPromptConfig()
    with pytest.raises(MotionPromptError, match="balanced, exact, fast, paper"):
        load_config(preset="quick")


def test_the_paper_is_one_word() -> None:
    """Its loss, window, tokens and updates, exactly computed, whatever the defaults become."""
    config = load_config(preset="paper")
    assert (config.lambda_photo, config.tokens, config.init_word, config.placement) == (0, 1, "authentic", "end")
    assert config.iterations == 3
    assert list(guided_window(50, config.start, config.stop)) == list(range(4, 15))
    assert (config.subclip, config.decoder, config.flow) == (None, None, None)
    assert configuration.PRESETS["paper"].keys() > {"tokens", "iterations", "start", "stop", "lambda_photo"}


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("tokens: 2\niterations: 5\n")
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    given_ = ["--mp-config", str(tmp_path / "c.yaml"), "--mp-iterations", "4", "--no-mp-progress"]
    config = config_from_flags(parser.parse_args(given_))
    assert (config.tokens, config.iterations, config.progress) == (2, 4, False)
    assert config.learning_rate == MotionPromptConfig().learning_rate


def test_every_option_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    text = parser.format_help()
    assert all("--mp-" + option.name.replace("_", "-") in text for option in fields(MotionPromptConfig))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "tokens"),
        ({"placement": "middle"}, "end, front"),
        ({"optimizer": "lion"}, "adam"),
        ({"start": 0.5, "stop": 0.4}, "before stop"),
        ({"min_interval": 5, "max_interval": 2}, "max_interval"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"lambda_tv": math.inf}, "lambda_tv is inf"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"tokens": "many"}, "tokens"),
    ],
)
def test_bad_values_are_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(MotionPromptError, match=message) as caught:
        load_config(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["tokens: [", "- a\n- b\n", "tokens: {a: 1}\n"])
def test_bad_files_are_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(MotionPromptError) as caught:
        load_config(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MotionPromptError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_trace_survives_being_cut_off(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "runs" / "trace.jsonl")
    trace.write("run", run=0)
    trace.write("iteration", step=4, loss=[0.5])
    trace.close()
    path = tmp_path / "runs" / "trace.jsonl"
    whole = read_trace(path)
    assert [record["event"] for record in whole] == ["run", "iteration"]
    path.write_text(path.read_text()[:-5])
    assert read_trace(path) == whole[:1]
    path.write_text("nonsense\n" + json.dumps({"event": "run"}) + "\n")
    with pytest.raises(MotionPromptError, match="line 1"):
        read_trace(path)


def write_two_runs(path: Path, rank: int, together: multiprocessing.synchronize.Barrier) -> None:
    os.environ["RANK"] = str(rank)
    together.wait()
    trace = Trace(path)
    together.wait()
    for run in range(2):
        trace.write("run", run=run, prompts=[f"{rank} {run}"])
        for iteration in range(100):
            trace.write("iteration", run=run, iteration=iteration, loss=[0.5] * (iteration % 7))
    trace.close()


def test_processes_of_one_time_share_a_trace(tmp_path: Path) -> None:
    """No line is lost or broken, what an earlier run left is gone, and runs are numbered through in order of rank."""
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({"event": "run", "run": 0, "prompts": ["of an earlier run"]}) + "\n")
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    writers = [context.Process(target=write_two_runs, args=(path, rank, together)) for rank in (2, 0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    records = read_trace(path)
    begun = [(record["run"], *record["prompts"]) for record in records if record["event"] == "run"]
    assert begun == [(0, "0 0"), (1, "0 1"), (2, "1 0"), (3, "1 1"), (4, "2 0"), (5, "2 1")]
    iterations = [(record["run"], record["iteration"]) for record in records if record["event"] == "iteration"]
    assert iterations == [(run, iteration) for run in range(6) for iteration in range(100)]
    Trace(path).close()
    assert read_trace(path) == []


@pytest.mark.parametrize(("rank", "left"), [("0", 0), ("1", 1)])
def test_without_locks_the_first_rank_begins_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, left: int
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({"event": "run", "run": 0}) + "\n")
    monkeypatch.setattr("fcntl.lockf", no_locks)
    monkeypatch.setenv("RANK", rank)
    Trace(path).close()
    assert len(read_trace(path)) == left
