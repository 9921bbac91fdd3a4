"""VideoCrafter2: what its users can do wrong, on the host's real code and tiny random weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mp_hooks import backbones, patching
from mp_hooks.guidance import MotionPrompt
from mp_hooks.testing import Command, tiny
from mp_hooks.testing.case import importable
from mp_hooks.testing.conformance import patched
from mp_hooks.testing.doctor import copy_of, environment

pytestmark = pytest.mark.upstream("videocrafter2")
HOST = patching.load("videocrafter2")
CASE = tiny("videocrafter2")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patched copy."""
    root = copy_of(HOST, CASE.checkout, tmp_path_factory.mktemp("host") / "VideoCrafter")
    patching.apply(HOST, root)
    return root


@pytest.fixture(scope="module")
def command(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The host's script with a tiny checkpoint."""
    return tiny("videocrafter2", checkout).command(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def entry(checkout: Path) -> Iterator[ModuleType]:
    """The patched entry as a module, so that many wrong command lines cost one import of the host."""
    path = checkout / "scripts/evaluation/inference.py"
    with importable(checkout), importable(path.parent):
        specification = importlib.util.spec_from_file_location("inference", path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--mp-discriminator", "nowhere"], "no discriminator in nowhere"),
        (["--mp-flow", "raft_small", "--mp-flow-weights", "nowhere.pth"], "nowhere.pth"),
        (["--mp-flow", "psychic"], "pyramid, raft_large, raft_small"),
        (["--mp-placement", "middle"], "end"),
        (["--mp-iterations", "0"], "at least 1"),
        (["--mp-config", "nowhere.yaml"], "nowhere.yaml"),
        (["--mp-resume", "README.md/kept"], "give --mp-resume another folder"),
    ],
)
def test_bad_input_is_one_sentence(
    entry: ModuleType,
    checkout: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(checkout)
    fixed = [*command.options, "--mp-device", "cpu", "--motionprompt"]
    with pytest.raises(SystemExit) as stopped:
        args = entry.get_parser().parse_args([*fixed, *arguments])
        entry.run_inference(args, 1, 0)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_resuming_without_motionprompt_is_one_sentence(
    entry: ModuleType, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        entry.run_inference(
            entry.get_parser().parse_args([*command.options, "--mp-resume", str(tmp_path / "kept")]), 1, 0
        )
    assert stopped.value.code == 2
    assert "add --motionprompt" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "kept").exists()


def test_bad_input_from_the_shell(command: Command) -> None:
    script = [
        *command.script,
        *command.options,
        "--mp-device",
        "cpu",
        "--motionprompt",
        "--mp-discriminator",
        "nowhere",
    ]
    result = subprocess.run(script, cwd=command.folder, env=environment(), capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "no discriminator in nowhere" in result.stderr.splitlines()[-1]


def test_half_patched_is_one_sentence(entry: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = checkout / "scripts/run_text2video.sh"
    script.write_bytes(script.read_bytes().replace(b' "$@"', b""))
    with pytest.raises(SystemExit) as stopped:
        entry.run_inference(entry.get_parser().parse_args(["--motionprompt", "--mp-device", "cpu"]), 1, 0)
    patching.apply(HOST, checkout)
    assert stopped.value.code == 2
    assert "half patched; run: mp-patch videocrafter2" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def host() -> Iterator[Any]:
    with CASE.open() as model:
        yield model


def test_a_prompt_of_a_hundred_words_is_warned_of_and_runs(host: Any) -> None:
    method = MotionPrompt(CASE.config)
    with patched(host, method), pytest.warns(UserWarning, match="last 1 tokens make room"):
        guided = CASE.sample(host, ["word " * 100], seed=7)
    assert guided.isfinite().all()


def test_unguided_memory_is_what_it_was(host: Any) -> None:
    def peak() -> int:
        """Bytes by which one unguided sampling raises the resident size."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = memory("VmRSS")
        CASE.sample(host, CASE.prompts, seed=7)
        return memory("VmHWM") - before

    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux's resettable peak of the resident size")
    CASE.sample(host, CASE.prompts, seed=7)
    before = peak()
    with backbones.motionprompt(host, CASE.config):
        CASE.sample(host, CASE.prompts, seed=7)
    assert peak() < 1.1 * before + 2**24


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
