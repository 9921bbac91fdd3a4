"""The doctor: what it finds where a host runs, and what it says where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mp_hooks.cli.main import main
from mp_hooks.errors import MotionPromptError
from mp_hooks.testing import Command
from mp_hooks.testing.doctor import check_up, run


def test_a_pipeline_runs_here(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    found = check_up("diffusers-text-to-video-sd", tmp_path, device="cpu")
    assert found.plain.videos == found.guided.videos == 2  # the same names, written anew
    assert found.updates == 2 * 2 * 3  # prompts, guided steps of four, K
    assert found.skipped == 0
    assert found.guided.memory > 2**26


@pytest.mark.gpu
def test_a_pipeline_runs_on_a_gpu(tmp_path: Path) -> None:
    found = check_up("diffusers-text-to-video-sd", tmp_path, device="cuda")
    assert found.plain.videos == found.guided.videos == 2
    assert found.updates == 2 * 2 * 3
    assert found.cuda_memory > 2**20


def test_the_last_words_of_a_failure_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failing = Command(["bash", "-c", "echo first; echo no such weights >&2; exit 3"], [], tmp_path, tmp_path)
    with pytest.raises(MotionPromptError, match=r"exit code 3\): no such weights"):
        run(failing, [])
    assert "first" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["psychic"], "diffusers-wan"),
        (["lavie", "--repo", "nowhere"], "mp-patch lavie"),
        (["diffusers-wan", "--repo", "nowhere"], "leave --repo out"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
