"""VideoCrafter2: what its users can do wrong, on the host's real code and tiny random weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mp_hooks import backbones, patching
from mp_hooks.cli.main import main
from mp_hooks.guidance import MotionPrompt
from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing import Command, tiny
from mp_hooks.testing.case import importable
from mp_hooks.testing.doctor import GUIDANCE, copy_of, environment

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


def test_each_process_keeps_its_samplings_in_a_folder_of_its_own(
    entry: ModuleType, checkout: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = [*command.options, "--mp-device", "cpu", "--motionprompt", "--mp-discriminator", "nowhere"]
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        args = entry.get_parser().parse_args([*arguments, "--mp-resume", str(tmp_path / "kept")])
        with pytest.raises(SystemExit):
            entry.run_inference(args, 2, rank)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["rank-0", "rank-1"]


def test_a_misspelt_option_is_told_where_the_host_lets_it_pass(
    entry: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ddp_wrapper.py does, whose own arguments the parser does not know."""
    _, others = entry.get_parser().parse_known_args(["--module", "inference", "--motionprompt"])
    assert others == ["--module", "inference"]
    with pytest.raises(SystemExit) as stopped:
        entry.get_parser().parse_known_args(["--module", "inference", "--motionprompt", "--mp-iteratons", "5"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --mp-iteratons" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_of_the_hosts_wrapper(checkout: Path, tmp_path: Path) -> None:
    """Each prompt's run is in the trace, in order of rank, with the same pairs; the report reads it."""
    (tmp_path / "tiny").mkdir()
    command = tiny("videocrafter2", checkout).command(tmp_path / "tiny")
    wrapper = checkout / "scripts/evaluation/ddp_wrapper.py"
    text = wrapper.read_text()
    without_gpu = text.replace("'nccl'", "'gloo'").replace("torch.cuda.set_device(local_rank)", "pass")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(wrapper)]
    guided = ["--module", "inference", *command.options, "--seed", "123", *GUIDANCE, "--mp-device", "cpu"]
    try:
        wrapper.write_text(without_gpu)
        subprocess.run(
            [*words, *guided, "--mp-resume", str(tmp_path / "kept")],
            cwd=checkout,
            env=environment(),
            check=True,
            capture_output=True,
        )
    finally:
        wrapper.write_text(text)
    records = read_trace(command.results / "motionprompt" / "trace.jsonl")
    runs = [record for record in records if record["event"] == "run"]
    assert [record["prompts"] for record in runs] == [[prompt] for prompt in CASE.prompts]
    assert {record["seed"] for record in runs} == {123}
    pairs = [[r["pairs"] for r in records if r["event"] == "iteration" and r["run"] == run["run"]] for run in runs]
    assert pairs[0] == pairs[1] != []
    assert not (tmp_path / "kept").exists()
    assert main(["report", str(command.results), "--shown", "0"]) == 0


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
    with backbones.attached(host, method), pytest.warns(UserWarning, match="last 1 tokens make room"):
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
