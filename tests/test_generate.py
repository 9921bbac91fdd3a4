"""`motionprompt generate` on saved pipelines: any family, any number of processes, killed and started again."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from mp_hooks.cli.main import main
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.generation import Clip, Generation, Prompt, Sampler, clips_of, load_pipeline, read_prompts
from mp_hooks.testing import CASES, tiny
from mp_hooks.video import read_frames, write_video

pytest.importorskip("diffusers")

FAMILIES = [name for name in CASES if name.startswith("diffusers-")]
PLAIN = {"num_inference_steps": 2}
PROMPTS = ("a tiger walks in the forest", "a boat on the sea")


def guidance(name: str) -> MotionPromptConfig:
    """One update in the first of two steps."""
    return replace(tiny(name).config, iterations=1, start=0.0, stop=0.5)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that saves the tiny pipeline of a family; returns its folder."""
    folder = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        if not (folder / name).is_dir():
            with tiny(name).open() as pipe:
                pipe.save_pretrained(folder / name)
        return folder / name

    return save


def command(name: str, model: Path, out: Path, *further: str) -> list[str]:
    """The words of `generate`; `further` come last."""
    settings = {**PLAIN, **tiny(name).settings}
    flags = [word for key, value in settings.items() for word in ("--argument", f"{key}={value}")]
    return ["generate", "--model", str(model), *flags, "--out", str(out), *further]


def guided(name: str, folder: Path) -> list[str]:
    guidance(name).save(folder / "guidance.yaml")
    return ["--motionprompt", "--mp-config", str(folder / "guidance.yaml")]


def decoded(path: Path) -> np.ndarray:
    """Frames [t, h, w, 3]; decord cannot read any as small as these."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves, by name; traces, which tell seconds, by name alone."""
    return {
        str(path.relative_to(folder)): b"" if path.suffix == ".jsonl" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(words: Sequence[str], **environment: str) -> BaseProcess:
    """The command in a process of its own, which shares nothing but the imports."""

    def run() -> None:
        os.environ.update(environment)
        raise SystemExit(main(words))

    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and one killed with it in hand keeps it
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_with_and_without_guidance(name: str, saved: Any, tmp_path: Path) -> None:
    """Off, a clip is what the pipeline itself gives for its seed; on, another of the same kind."""
    model, settings = saved(name), {**PLAIN, **tiny(name).settings}
    for out, further in (("plain", []), ("guided", guided(name, tmp_path))):
        assert main(command(name, model, tmp_path / out, "--prompt", PROMPTS[0], "--seed", "5", *further)) == 0
    clip = f"{PROMPTS[0]}-0.mp4"
    plain, other = decoded(tmp_path / "plain" / clip), decoded(tmp_path / "guided" / clip)
    assert plain.shape == other.shape
    assert len(plain) == settings["num_frames"]
    assert not np.array_equal(plain, other)
    assert (tmp_path / "guided/traces" / clip).with_suffix(".jsonl").is_file()
    pipe = load_pipeline(Generation(str(model)))
    own = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(5), output_type="pt", **settings).frames[0]
    write_video(tmp_path / "own.mp4", own.mul(255).round().byte(), 8)
    assert (tmp_path / "own.mp4").read_bytes() == (tmp_path / "plain" / clip).read_bytes()


@pytest.fixture
def many(saved: Any, tmp_path: Path) -> tuple[list[str], dict[str, bytes]]:
    """Words of a guided run of eight clips in batches of two, but for the folder, and what it leaves unbroken."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    name = "diffusers-animatediff"
    words = command(name, saved(name), Path("OUT"), "--prompts", str(tmp_path / "prompts.txt"))
    words += ["--seeds", "4", "--batch-size", "2", *guided(name, tmp_path)]
    words = [word for word in words if word not in ("--out", "OUT")]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    return words, contents(tmp_path / "one")


def test_two_ranks_make_the_clips_of_one(many: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    words, whole = many
    assert sorted(name for name in whole if name.endswith(".mp4")) == [
        f"{prompt}-{sample}.mp4" for prompt in sorted(PROMPTS) for sample in range(4)
    ]
    ranks = [start([*words, "--out", str(tmp_path / "two")], RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "two") == whole
    traces = [path.read_text().splitlines()[0] for path in (tmp_path / "two/traces").iterdir()]
    assert {json.loads(line)["rank"] for line in traces} == {0, 1}, "both had a share"


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_run_again_is_as_unbroken(
    kills: int, many: tuple[list[str], dict[str, bytes]], tmp_path: Path
) -> None:
    """One of two ranks is killed at a random moment; the other, or the next run, takes up its share."""
    words, whole = many
    words = [*words, "--out", str(tmp_path / "killed")]
    began = time.monotonic()
    assert main([*words[:-1], str(tmp_path / "timed")]) == 0
    moments, length = random.Random(0), time.monotonic() - began
    for number in range(kills):
        process = start(words, RANK=str(number % 2), WORLD_SIZE="2")
        time.sleep(moments.uniform(0, 1.5 * length / kills))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        for name, content in contents(tmp_path / "killed").items() if (tmp_path / "killed").is_dir() else ():
            assert name[0] == "." or Path(name).name[0] == "." or content == whole[name], f"{name} is not whole"
    assert main(words) == 0
    assert contents(tmp_path / "killed") == whole
