"""Counting on fake tensors is counting what really runs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mp_hooks import backbones
from mp_hooks.cli.main import main
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.decoder import CHANNELS
from mp_hooks.lab import mini
from mp_hooks.lab.cost import cost, hosts
from mp_hooks.lab.cost.counting import FLOPS, Meter, fake_weights
from mp_hooks.lab.experiments.tradeoff import GAINS, Point, draw, points
from mp_hooks.lab.metrics import GainShare, compare, gain_share
from mp_hooks.lab.mini import model
from mp_hooks.lab.mini.model import build_pipeline


def test_a_product_of_large_matrices() -> None:
    with fake_weights() as mode:
        layer = nn.Linear(2**14, 2**14, bias=False)
        with mode, Meter() as meter:
            x = torch.empty(3, 2**14).requires_grad_()
            torch.autograd.grad(layer(x).sum(), x)
    assert meter.flops["denoiser"] == 2 * 2 * 3 * 2**28  # forward, and backward to the input alone


def test_attention_is_counted_with_its_recomputation() -> None:
    with fake_weights() as mode, mode, Meter() as meter:
        q = torch.empty(2, 3, 500, 16).requires_grad_()
        torch.autograd.grad(nn.functional.scaled_dot_product_attention(q, q, q).sum(), q)
    assert meter.flops["denoiser"] == (2 + 5) * 2 * (2 * 3 * 500 * 500 * 16)


def test_bytes_live_until_their_last_reference() -> None:
    size = 4 * 2**20
    with fake_weights() as mode, mode, Meter() as meter:
        first = torch.empty(2**20)
        kept = first + 1
        assert meter.alive.total() == 2 * size
        view = first[1:]
        assert meter.alive.total() == 2 * size
        del first
        assert meter.alive.total() == 2 * size
        del view
        assert meter.alive.total() == size
        kept.add_(1)
    assert meter.peak == 2 * size


def test_parts_have_their_own_backward() -> None:
    with fake_weights() as mode:
        first, second = nn.Linear(500, 600, bias=False), nn.Linear(600, 700, bias=False)
        with mode, Meter() as meter:
            x = torch.empty(64, 500).requires_grad_()
            y = meter.within("decode", second, meter.within("text", first, x))
            torch.autograd.grad(y.sum(), x)
    assert meter.flops == {"text": 2 * 2 * 64 * 500 * 600, "decode": 2 * 2 * 64 * 600 * 700}


def test_small_tensors_keep_their_data_and_weights_have_none() -> None:
    with fake_weights() as mode:
        layer = nn.Linear(4, 4)
        with mode:
            assert torch.tensor([3, 1]).argmax() == 0
            assert torch.arange(5).tolist() == [0, 1, 2, 3, 4]
            with pytest.raises(Exception, match="local_scalar_dense"):
                float(layer.weight.sum())


STEPS = 5
GUIDANCE = replace(mini.guidance(), pairs=1, start=0.5, stop=0.9, iterations=2, progress=False, checkpointing="none")


@pytest.mark.usefixtures("small_packaged")
@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_the_mini_model_computes_what_is_counted(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run on real tensors, every operation counted, against the count on fake ones."""
    for operation, formula in FLOPS.items():
        monkeypatch.setitem(flop_registry, operation, formula)  # torch's counter knows no attention on the CPU
    config = replace(GUIDANCE, checkpointing=checkpointing)
    with hosts.mini(STEPS) as full:
        counted = cost(full, config)
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.eval()

    def really() -> int:
        with FlopCounterMode(display=False) as flops:
            mini.sample(["a red circle moving left"], [0], steps=STEPS, pipe=pipe)
        return flops.get_total_flops()

    plain = really()
    with backbones.motionprompt(pipe, config):
        guided = really()
    assert counted.run_flops(False) == plain
    assert counted.run_flops(True) == guided


def test_a_guided_step_is_the_exact_algorithm_and_nothing_more() -> None:
    """One unconditional forward, K times forward and backward, the step: 2 + 2 K forwards to the two of a plain step.

    A backward to the text alone costs no more than a forward but for attention, whose matrix is computed twice.
    """
    with hosts.mini() as full:
        counted = cost(full, GUIDANCE)
    forward = counted.plain.flops["denoiser"] / 2
    assert 2 + 2 * 2 - 0.5 < counted.guided.flops["denoiser"] / forward < 2 + 2 * 2 + 0.1


def test_a_subclip_costs_its_part_of_the_clip_and_no_unconditional_branch_of_its_own() -> None:
    """K = 4 on half of the clip: 4 halves forward and backward, and the step, to the two forwards of a plain step."""
    with hosts.mini() as full:
        counted = cost(full, replace(GUIDANCE, subclip=model.FORM.frames // 2, iterations=4))
    forward = counted.plain.flops["denoiser"] / 2
    assert 2 + 4 - 0.5 < counted.guided.flops["denoiser"] / forward < 2 + 4 + 0.1


def test_a_decoder_is_counted_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    form = replace(model.FORM, latent_channels=CHANNELS)
    monkeypatch.setattr(model, "FORM", form)
    with hosts.mini(STEPS) as full:
        counted = cost(full, replace(GUIDANCE, iterations=1, decoder="nowhere.safetensors"))
    assert counted.guided.flops["decode"] > 0


def test_the_tradeoff_draws_every_method(tmp_path: Path) -> None:
    better = [1.0 + n % 3 for n in range(8)]
    exact = {name: compare([0.0] * 8, [sign * value for value in better]) for name, sign in GAINS.items()}
    half = {name: compare([0.0] * 8, [sign * value / 2 for value in better]) for name, sign in GAINS.items()}
    kept = {name: gain_share([0.0] * 8, better, [value / 2 for value in better]) for name in GAINS}
    assert kept["warping"] == GainShare(0.5, 0.5, 0.5)
    found = [Point("motionprompt", 2.0, 1.5, exact, kept), Point("fast", 1.2, 1.1, half, kept)]
    picture = draw(found, tmp_path).read_text(encoding="utf-8")
    assert picture.count("<!-- fast -->") == len(GAINS)


@pytest.mark.usefixtures("small_packaged")
def test_seconds_and_memory_are_measured_by_turns(capsys: pytest.CaptureFixture) -> None:
    command = ["cost", "mini", "--measure", "1", "--clips", "2"]
    assert (
        main([*command, "--mp-iterations", "1", "--mp-checkpointing", "none", "--mp-start", "0.75", "--mp-stop", "0.8"])
        == 0
    )
    counted, measured = capsys.readouterr().out.split("clips sampled 2 at once")
    assert re.search(r"guided, checkpointing none .* \(1\.\d\dx\)", counted.split("left out below")[0])
    parts = [float(number) for number in re.findall(r": +([\d.]+) TFLOP", counted)]
    assert len(parts) == 3
    assert parts == sorted(parts, reverse=True)  # the dearest first
    table = measured.splitlines()
    rows = {line.split()[0]: [float(cell) for cell in re.findall(r"([\d.]+) \(", line)] for line in table[2:5]}
    assert rows.keys() == {"plain", "off", "guided"}
    assert rows["guided"][0] > rows["plain"][0] > 0
    seconds, flops = re.findall(r"([\d.]+) (?:\(|in FLOPs)", table[5])
    assert float(seconds) == pytest.approx(rows["guided"][0] / rows["plain"][0], abs=0.2)
    assert 1 < float(flops) < 2  # two guided steps of 25, one update each


def test_a_folder_without_an_experiment_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MotionPromptError, match="motionprompt compare --out"):
        points(tmp_path)


@pytest.mark.usefixtures("small_packaged")
def test_an_experiment_whose_discriminator_has_moved_since_is_still_read(tmp_path: Path) -> None:
    guidance = asdict(replace(mini.guidance(), start=0.9, stop=1.0, iterations=1)) | {
        "discriminator": "/gone/discriminator"
    }
    (tmp_path / "experiment.json").write_text(json.dumps({"experiment": {"guidance": guidance}, "versions": {}}))
    measures = {name: [0.0, 1.0, 2.0] for name in GAINS}
    better = {name: [value + 1 for value in values] for name, values in measures.items()}
    (tmp_path / "measures.json").write_text(json.dumps({"baseline": measures, "motionprompt": better}))
    (point,) = points(tmp_path)
    assert point.method == "motionprompt"
    assert point.gains["warping"].mean == 1
    assert point.flops > 1
