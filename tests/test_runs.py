"""A run's folder is its own, and what its results depend on stands in it; processes know their number."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from resumption import held

from mp_hooks import __version__
from mp_hooks.errors import MotionPromptError
from mp_hooks.processes import Processes, processes, shared
from mp_hooks.runs import claim

SETTINGS = {"seed": 1, "training": {"epochs": 2, "rate": 0.5}, "flow": None, "steps": (1, 2)}


def test_a_folder_is_of_one_run_until_its_settings_change(tmp_path: Path) -> None:
    record = tmp_path / "run" / "run.json"
    claim(record, SETTINGS)
    written = json.loads(record.read_text())
    assert written["training"] == SETTINGS["training"]
    assert written["versions"]["mp_hooks"] == __version__
    assert written["versions"]["torch"] == torch.__version__
    claim(record, SETTINGS)
    claim(record, {name: SETTINGS[name] for name in ("seed", "steps")})
    assert json.loads(record.read_text()) == written
    longer = {**SETTINGS, "training": {"epochs": 9, "rate": 0.5}}
    for changed, named in (
        (longer, "training.epochs"),
        ({**SETTINGS, "flow": {"name": "raft"}}, "flow"),
        ({**SETTINGS, "training": None}, "training"),
    ):
        with pytest.raises(MotionPromptError, match=rf"\({named}\); repeat those"):
            claim(record, changed)
    claim(record, longer, may_change=["training.epochs"])
    assert json.loads(record.read_text())["training"]["epochs"] == 9


def test_a_run_that_must_be_begun_or_new_is(tmp_path: Path) -> None:
    record = tmp_path / "run" / "run.json"
    with pytest.raises(MotionPromptError, match="nothing to resume"):
        claim(record, SETTINGS, begun=True)
    assert not record.parent.exists()
    claim(record, SETTINGS, begun=False)
    with pytest.raises(MotionPromptError, match="add --resume"):
        claim(record, SETTINGS, begun=False)
    claim(record, SETTINGS, begun=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(MotionPromptError, match="other files"):
        claim(tmp_path / "other" / "run.json", SETTINGS, begun=False)


@pytest.mark.parametrize("content", ["{", "[]", "7"])
def test_a_record_that_is_none_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(MotionPromptError, match="cannot be read; give another folder"):
        claim(tmp_path / "run.json", SETTINGS)


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "6", "SLURM_JOB_NUM_NODES": "2"}
SRUN = {**BATCH_SCRIPT, "SLURM_PROCID": "4", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, Processes(0, 1, 0, 1)),
        (TORCHRUN, Processes(5, 8, 1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Processes(1, 2, 0, 1)),
        (SRUN, Processes(4, 6, 1, 3)),
        ({**SRUN, **TORCHRUN}, Processes(5, 8, 1, 4)),
        (BATCH_SCRIPT, Processes(0, 1, 0, 1)),
    ],
    ids=["alone", "torchrun", "two", "srun", "torchrun under srun", "a batch script without srun"],
)
def test_processes_know_their_number(
    environment: dict[str, str], told: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {*TORCHRUN, *SRUN}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes() == told


def doing(
    parts: int, done: set[int], folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int, world: int
) -> list[int]:
    """The parts that fall to this rank where only it is at work, in order."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    did = []
    for part in shared(range(parts), done.__contains__, folder):
        did.append(part)
        done.add(part)
    return did


def test_a_process_does_its_share_and_what_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doing(8, {2}, tmp_path, monkeypatch, 1, 3) == [1, 4, 7, 6, 5, 3, 0]
    with held(tmp_path / ".lock", 4), held(tmp_path / ".lock", 6):
        assert doing(8, {2}, tmp_path, monkeypatch, 1, 3) == [1, 7, 5, 3, 0]
    assert doing(8, {2}, tmp_path, monkeypatch, 0, 1) == [0, 1, 3, 4, 5, 6, 7]


def test_a_part_that_was_done_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    """Another process did it between the look and the lock."""
    asked: list[int] = []

    def done(part: int) -> bool:
        asked.append(part)
        return asked.count(part) > 1

    assert list(shared(range(3), done, tmp_path)) == []


def test_without_locks_each_keeps_to_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    assert doing(8, {2}, tmp_path, monkeypatch, 2, 3) == [5]
    assert doing(8, {2}, tmp_path, monkeypatch, 1, 3) == [1, 4, 7]
