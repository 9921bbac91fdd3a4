"""Sweeps: cells from a specification, shared among processes, killed and resumed, for a command and the mini model."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from resumption import held
from tqdm import tqdm

from mp_hooks.cli.main import main
from mp_hooks.errors import MotionPromptError
from mp_hooks.lab.experiments.sweep import Spec, read_spec, run

for library in ("scipy", "jinja2"):
    pytest.importorskip(library)

# a host that takes what hosts take: clips get steadier with more iterations; it logs that it ran
HOST = """
import argparse, sys, time
from pathlib import Path
import numpy as np, yaml
from PIL import Image
parser = argparse.ArgumentParser()
for name in ("--out", "--seed", "--prompts", "--mp-config", "--log"):
    parser.add_argument(name)
parser.add_argument("--motionprompt", action="store_true")
args = parser.parse_args()
steady = yaml.safe_load(Path(args.mp_config).read_text())["iterations"] if args.motionprompt else 0
generator = np.random.default_rng(int(args.seed))
for number, prompt in enumerate(Path(args.prompts).read_text().splitlines()):
    frames = 128 + generator.normal(0, 40 / (1 + steady), (4, 16, 16, 3)).clip(-128, 127)
    first, *rest = [Image.fromarray(frame.astype("uint8")) for frame in frames]
    first.save(Path(args.out) / f"{prompt}.gif", save_all=True, append_images=rest, duration=125)
    time.sleep(0.1)
with open(args.log, "a") as log:
    log.write(f"{args.out}\\n")
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "host.py").write_text(HOST)
    (tmp_path / "prompts.txt").write_text("cat\ndog\n")
    command = [sys.executable, str(tmp_path / "host.py"), "{motionprompt}", "--out", "{out}", "--seed", "{seed}"]
    command += ["--prompts", "{prompts}", "--log", str(tmp_path / "log")]
    (tmp_path / "spec.yaml").write_text(
        f"prompts: {tmp_path / 'prompts.txt'}\nseeds: [1, 2]\ncommand: {command}\n"
        "cells:\n  without: plain\ngrid:\n  iterations: [1, 3]\n  placement: [end]\n"
    )
    return tmp_path / "spec.yaml"


def test_cells_are_the_named_ones_and_every_combination(tmp_path: Path) -> None:
    grid = {"iterations": [1, 3], "placement": ["end", "front"]}
    cells = {"without": "plain", "the": {"init_word": "the"}}
    spec = Spec(prompts=1, guidance={"learning_rate": 0.5}, cells=cells, grid=grid)
    found = spec.configurations
    assert list(found) == [
        "without",
        "the",
        *(f"iterations {i}, placement {p}" for i in (1, 3) for p in ("end", "front")),
    ]
    assert found["without"] is None
    assert found["the"].init_word == "the"
    assert all(config.learning_rate == 0.5 for config in found.values() if config)
    assert found["iterations 3, placement front"].placement == "front"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: 1\ncels: {a: plain}", "names are prompts"),
        ("prompts: 1", "needs cells"),
        ("prompts: 1\ngrid: {iteration: [1]}", "names are tokens"),
        ("prompts: 0\ncells: {a: plain}", "1 or more"),
        ("prompts: x\ncells: {a: plain}\ncommand: [echo]", "must hold {out}"),
        ("prompts: 1\ncells: {a b: plain, a-b: plain}", "punctuation"),
        ("prompts: 1\ncells: {a: plian}", "not 'plian'"),
        ("prompts: 1\ncells: [plain]", "a name and options a cell"),
        ("prompts: 1\ncells: {a: plain}\nmeasure: {raft: x}", "names are flow"),
        ("prompts: [", "is no sweep"),
    ],
)
def test_a_bad_specification_is_one_sentence(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "spec.yaml").write_text(text)
    assert main(["sweep", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_killed_at_random_and_resumed_gives_the_same_table(spec: Path, tmp_path: Path) -> None:
    assert main(["sweep", str(spec), "--out", str(tmp_path / "whole")]) == 0
    whole = (tmp_path / "whole" / "table.txt").read_text()
    assert "+" in whole  # there is something to compare
    (tmp_path / "log").unlink()
    start = "import sys; from mp_hooks.cli.main import main; sys.exit(main(sys.argv[1:]))"
    out, chance = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", start, "sweep", str(spec), "--out", str(out)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        before = len(list(out.rglob("*.done.json")))
        wanted = before + chance.randint(0, 2)
        while process.poll() is None and len(list(out.rglob("*.gif"))) < 2 * wanted + 1:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert main(["sweep", str(spec), "--out", str(out)]) == 0
    assert (out / "table.txt").read_text() == whole
    ran = (tmp_path / "log").read_text().splitlines()
    marks = {path: path.stat().st_mtime_ns for path in out.rglob("*.done.json")}
    assert len(marks) == 6
    assert main(["sweep", str(spec), "--out", str(out)]) == 0
    assert (tmp_path / "log").read_text().splitlines() == ran
    assert {path: path.stat().st_mtime_ns for path in marks} == marks


def test_processes_share_the_parts(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_as, args=(rank, spec, out)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 6, "none was done twice"
    evaluation = run(read_spec(spec), out)
    assert list(evaluation.values) == ["without", "iterations 1, placement end", "iterations 3, placement end"]
    assert evaluation.clips == ["seed 1: cat", "seed 1: dog", "seed 2: cat", "seed 2: dog"]
    without, one, three = (evaluation.mean(cell, "temporal_flickering") for cell in evaluation.values)
    assert without < one < three


def run_as(rank: int, spec: Path, out: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    tqdm.set_lock(threading.RLock())
    run(read_spec(spec), out)


def test_a_cell_of_another_sweep_and_a_failing_command_are_told(spec: Path, tmp_path: Path) -> None:
    text = spec.read_text()
    spec.write_text(text.replace("'{seed}'", "'x'"))
    with pytest.raises(MotionPromptError, match="exit code 1 from"):
        run(read_spec(spec), tmp_path / "out")
    spec.write_text(text)
    with pytest.raises(MotionPromptError, match=r"other settings \(command\)"):
        run(read_spec(spec), tmp_path / "out")


@pytest.mark.usefixtures("small_packaged")
def test_the_mini_model_needs_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "spec.yaml").write_text(
        "prompts: 2\nguidance: {iterations: 1, start: 0.9, stop: 1.0}\n"
        "cells:\n  plain sampling: plain\n  guided: {learning_rate: 0.5}\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    words = ["sweep", str(tmp_path / "spec.yaml"), "--out", str(out)]
    with held(out / ".lock", 1):
        assert main(words) == 0
        assert "still at work" in capsys.readouterr().out
    assert main(words) == 0
    assert "caption match" in capsys.readouterr().out
    cells = tmp_path / "out" / "cells"
    assert sorted(path.name for path in cells.iterdir()) == ["guided", "plain-sampling"]
    stored = {path: path.stat().st_mtime_ns for path in cells.rglob("*") if path.is_file()}
    evaluation = run(read_spec(tmp_path / "spec.yaml"), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in cells.rglob("*") if path.is_file()} == stored
    assert evaluation.values["guided"]["flickering"] != evaluation.values["plain sampling"]["flickering"]
