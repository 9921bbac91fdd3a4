"""The check on a GPU, as far as a CPU can show it: the same lines on tiny hosts, and what runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.io
from torch import nn

from mp_hooks import backbones
from mp_hooks.compat import needed
from mp_hooks.config import MotionPromptConfig
from mp_hooks.lab.cost.hosts import Weights, full_size
from mp_hooks.lab.cost.timing import Price, Subject, Timed, timed, windowed
from mp_hooks.lab.gpu import __main__ as gpu
from mp_hooks.lab.gpu.check import Check
from mp_hooks.testing import tiny
from mp_hooks.testing.case import MissingPackage

REPOSITORY = Path(__file__).parents[1]
ABSENT = ("av", "decord", "imageio_ffmpeg")  # what the machine of docs/gpu.md has not


def wheel(folder: Path) -> None:
    """A wheel that says it is open_clip_torch 9.9, and holds nothing."""
    info = "open_clip_torch-9.9.dist-info"
    with zipfile.ZipFile(folder / "open_clip_torch-9.9-py3-none-any.whl", "w") as archive:
        archive.writestr("mp_gpu_probe.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: open_clip_torch\nVersion: 9.9\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def script(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """scripts/gpu.sh --cpu on wheels, without a network and without what can decode or write videos."""
    wheels, absent = tmp_path / "wheels", tmp_path / "absent"
    wheels.mkdir()
    absent.mkdir()
    wheel(wheels)
    for name in ABSENT:
        (absent / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('no {name} here', name='{name}')", encoding="utf-8"
        )
    out = ["--cpu", "--wheels", str(wheels), "--out", str(tmp_path / "out")]
    return subprocess.run(
        ["bash", "scripts/gpu.sh", *out, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "MP_PYTHON": sys.executable, "PYTHONPATH": str(absent)},
        capture_output=True,
        text=True,
    )


def test_one_command_leaves_figures_and_a_table(tmp_path: Path) -> None:
    done = script(tmp_path, "attention")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "attention.json").read_text(encoding="utf-8"))
    assert found["status"] == "passed"
    assert found["machine"]["open_clip_torch"] == "9.9"  # the wheel's
    assert len(found["rows"]) == 11
    assert "| Wan 480x832, 81 frames | torch |" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_line_passes_at_tiny_size(tmp_path: Path) -> None:
    done = script(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_line_that_takes_too_long_is_ended_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.LINES, "attention", replace(gpu.LINES["attention"], limit=0))
    assert gpu.main(["--cpu", "--out", str(tmp_path), "attention"]) == 1
    assert "it took more than 0 s" in capsys.readouterr().out
    assert "- failures: it took more than 0 s" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_what_is_known_of_this_machine_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"what": "", "status": "passed", "seconds": 1, "machine": gpu.about_machine(cpu=True)}
    known |= {"rows": [{"figure": 1}], "failures": [], "skipped": []}
    for name in gpu.LINES:
        (tmp_path / f"{name}.json").write_text(json.dumps({"line": name, **known}), encoding="utf-8")
    assert gpu.main(["--cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("kept from") == len(gpu.LINES)


def test_an_unknown_line_and_no_gpu_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["vidiocrafter2", "--cpu"]) == 2
    assert "videocrafter2" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert gpu.main([]) == 2
        assert "--cpu" in capsys.readouterr().err


def test_what_fails_and_what_is_missing_is_noted_and_the_line_goes_on(tmp_path: Path) -> None:
    check = Check(tmp_path / "line.json", "cpu")
    with check.part("first"):
        raise MissingPackage("nowhere")
    with check.part("second"):
        raise ZeroDivisionError("of something")
    check.expect(True, "never told")
    check.row(figure=1)
    assert json.loads((tmp_path / "line.json").read_text(encoding="utf-8")) == {
        "rows": [{"figure": 1}],
        "failures": ["second: ZeroDivisionError: of something"],
        "skipped": ["first: nowhere"],
    }


def test_a_runs_seconds_are_put_together_from_its_steps() -> None:
    price = Price(Timed(10.0, 0, 10, True), Timed(14.0, 0, 10, True, guided=2))
    assert price.guided_step == pytest.approx(3.0)  # 1 s of a plain one, and 2 s more
    assert price.run(50, 11) == pytest.approx(50 + 11 * 2)
    assert price.run(50, 0) == 50


@pytest.mark.parametrize("weights", [Weights(), Weights(False, "cpu", torch.bfloat16)])
def test_a_weight_that_two_layers_share_is_one(weights: Weights) -> None:
    with weights.mode(), weights.placed():
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
    assert second.weight is first.weight


def test_the_mini_model_at_its_real_size_is_guided_where_its_random_weights_are() -> None:
    with full_size("mini", weights=Weights(False, "cpu", torch.bfloat16)) as full:
        parameters = [p for module in backbones.adapter_for(full.host).modules() for p in module.parameters()]
        assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
        assert all(parameter.any() for parameter in parameters)  # none is dead
        config = windowed(MotionPromptConfig(iterations=1, checkpointing="none", seed=0), 4, 1)
        found = timed(Subject(full.host, full.sample), 4, "cpu", config)
    assert (found.guided, found.unguided, found.updates, found.finite) == (1, 0, 1, True)
    assert found.gradient[0] > 0


def test_torchvisions_own_writer_stays_where_there_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.io, "write_video", print, raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    assert needed(["write_video"]) == []


@pytest.mark.upstream("videocrafter2")
def test_a_host_needs_no_reader_or_writer_of_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ABSENT:
        monkeypatch.setitem(sys.modules, name, None)
    with tiny("videocrafter2").open() as model:
        assert isinstance(model, nn.Module)
