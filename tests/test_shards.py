"""Flow shards: the same whoever extracts them and however often it is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch
from textures import make_video
from tqdm import tqdm

from mp_hooks.cli.main import main
from mp_hooks.discriminator import shards
from mp_hooks.discriminator.data import FlowSettings
from mp_hooks.discriminator.shards import extract, gather, read_shards
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow
from mp_hooks.video import write_video

SETTINGS = FlowSettings(flow_size=64, stored_size=32, pairs_per_clip=4)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CLIPS_A_SHARD", 2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen clips, one of them still, and a file that is no video."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(14):
        make_video(root / f"model{number % 2}" / f"{number}.mp4", seed=number)
    write_video(root / "model0/still.mp4", torch.full((8, 3, 64, 64), 100, dtype=torch.uint8), fps=8)
    (root / "model0/broken.mp4").write_bytes(b"not a video")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the hidden ones, which only a killed run leaves."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def unbroken(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CLIPS_A_SHARD", 2)
        folder = tmp_path_factory.mktemp("unbroken")
        extract(videos, folder, load_flow("pyramid"), SETTINGS)
    return folder


def test_a_shard_is_what_webdataset_reads(unbroken: Path) -> None:
    """Pairs of members KEY.npy, KEY.json, the key without a dot; float16 fields of the motion that was drawn."""
    with tarfile.open(unbroken / "flow-00002.tar") as tar:
        names = tar.getnames()
        record = json.load(tar.extractfile(names[1]))
    keys = [name.split(".")[0] for name in names]
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == len(names) / 2
    assert [name.split(".")[1:] for name in names] == [["npy"], ["json"]] * len(set(keys))
    assert record["source"] in ("model", "model0", "model1")
    assert (record["size"], record["fps"]) == (32, pytest.approx(8, rel=0.01))
    assert record["interval"] == record["frames"][1] - record["frames"][0] in (1, 2, 3)
    data = read_shards(unbroken, real=True)
    assert data.flow.dtype == torch.float16
    assert data.flow.shape[1:] == (2, 32, 32)
    assert len(data.clips) == 14
    one = data.flow[0, :, 8:-8, 8:-8].float().mean((1, 2)) * 64 / 32
    first = read_record(unbroken)
    assert one.tolist() == pytest.approx([-first["interval"]] * 2, abs=0.2)  # one pixel a frame, up and to the left


def read_record(folder: Path) -> dict:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            if names := tar.getnames():
                return json.load(tar.extractfile(names[1]))
    raise AssertionError("no example")


def test_what_cannot_be_used_is_listed_and_skipped(unbroken: Path) -> None:
    said = "".join(path.read_text() for path in unbroken.glob("*.skipped.txt"))
    assert len(said.splitlines()) == 2
    assert "broken.mp4" in said
    assert "still.mp4" in said


def test_a_second_run_does_only_what_is_missing(videos: Path, unbroken: Path, tmp_path: Path) -> None:
    for name, content in contents(unbroken).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "flow-00001.tar").unlink()
    assert extract(videos, tmp_path, load_flow("pyramid"), SETTINGS).clips == 2
    assert contents(tmp_path) == contents(unbroken)
    again = extract(videos, tmp_path, load_flow("pyramid"), SETTINGS)
    assert (again.clips, again.fields, len(again.skipped)) == (0, 0, 2)


def test_new_clips_get_shards_of_their_own(videos: Path, unbroken: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{videos / 'model0/0.mp4'}\n{videos / 'model0/2.mp4'}\n{videos / 'model0/4.mp4'}\n")
    out = tmp_path / "shards"
    extract(listing, out, load_flow("pyramid"), SETTINGS)
    before = contents(out)
    with listing.open("a") as file:
        file.write(f"{videos / 'model1/1.mp4'}\n")
    assert extract(listing, out, load_flow("pyramid"), SETTINGS).clips == 1
    after = contents(out)
    assert all(after[name] == content for name, content in before.items() if name != "plan.json")
    assert len(read_shards(out, real=True).clips) == 4
    with pytest.raises(MotionPromptError, match="other settings"):
        extract(listing, out, load_flow("pyramid"), FlowSettings(flow_size=48))


def test_killed_again_and_again_and_resumed_is_as_unbroken(videos: Path, unbroken: Path, tmp_path: Path) -> None:
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and one killed with it in hand keeps it
    out = tmp_path / "shards"
    moments = random.Random(0)
    fork = multiprocessing.get_context("fork")
    for kills in range(10):
        process = fork.Process(target=extract, args=(videos, out, load_flow("pyramid"), SETTINGS))
        process.start()
        wanted = len(list(out.glob("*.tar"))) + moments.randrange(2)  # at most one of eight shards before each kill
        while process.is_alive() and len(list(out.glob("*.tar"))) < wanted:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert kills > 2, "was over before it was killed"
            break
        for name, content in contents(out).items() if out.is_dir() else ():
            assert content == (unbroken / name).read_bytes(), f"{name} is not whole"
    extract(videos, out, load_flow("pyramid"), SETTINGS)
    assert contents(out) == contents(unbroken)
    assert not list(out.glob(".flow*"))


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    """The command line under torchrun, in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [*launcher, str(Path(sys.executable).with_name("motionprompt")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_two_processes_extract_what_one_does(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "CLIPS_A_SHARD", 16)
    for copy in range(2):  # twice the clips: a shard each
        for number in range(9):
            link = tmp_path / "videos" / f"copy{copy}-{number}.mp4"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(videos / f"model{number % 2}" / f"{number}.mp4")
    command = ["flow", "extract", "--videos", str(tmp_path / "videos"), "--flow-size", "64", "--stored-size", "32"]
    command += ["--pairs", "2", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert "fields a second" in capsys.readouterr().out
    result = torchrun(*command, str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    told = re.findall(r"(\d+) flow fields of (\d+) clips", result.stdout)
    assert len(told) == 2, "each process tells what it did"
    assert [sum(map(int, column)) for column in zip(*told, strict=True)] == [36, 18], "each shard is done once"
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("fault", ["unfinished", "damaged", "of another size", "too small", "no plan"])
def test_shards_that_do_not_serve_are_refused(videos: Path, unbroken: Path, tmp_path: Path, fault: str) -> None:
    for name, content in contents(unbroken).items():
        (tmp_path / name).write_bytes(content)
    wanted = SETTINGS
    if fault == "unfinished":
        (tmp_path / "flow-00001.tar").unlink()
    elif fault == "damaged":
        shard = tmp_path / "flow-00002.tar"
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    elif fault == "of another size":
        wanted = FlowSettings(flow_size=48, stored_size=32)
    elif fault == "too small":
        wanted = FlowSettings(flow_size=64, stored_size=64)
    elif fault == "no plan":
        (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(MotionPromptError) as caught:
        gather(unbroken, tmp_path, tmp_path / "cache", "pyramid", wanted)
    assert "\n" not in str(caught.value)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """On shards, to the same held-out AUC within noise and in as many steps."""
    generator = torch.Generator().manual_seed(0)
    for kind in ("real", "fake"):
        for number in range(10):
            frames = torch.randint(0, 255, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
            if kind == "real":  # drifts
                frames = torch.stack([frames[0].roll(t, 2) for t in range(8)])
            big = torch.nn.functional.interpolate(frames.float(), (64, 64), mode="bicubic").clamp(0, 255).byte()
            write_video(tmp_path / kind / f"{number}.mp4", big, fps=8)
        extract(tmp_path / kind, tmp_path / f"{kind}-flow", load_flow("pyramid"), SETTINGS)
    sizes = ["--flow-size", "64", "--image-size", "32", "--epochs", "8"]
    train = ["discriminator", "train", *sizes]
    flow = ["--real", str(tmp_path / "real-flow"), "--fake", str(tmp_path / "fake-flow")]
    assert main([*train, *flow, "--out", str(tmp_path / "one")]) == 0
    result = torchrun(*train, *flow, "--out", str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("discriminator and model card in") == 1
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one["by_video"]["auc"] > 0.8
    assert two["by_video"]["auc"] == pytest.approx(one["by_video"]["auc"], abs=0.1)
    steps = [
        torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True)["global_step"] for n in ("one", "two")
    ]
    assert steps[0] == steps[1]


def test_two_processes_train_on_shards_and_not_on_videos(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folders = ["--real", str(videos / "model0"), "--fake", str(videos / "model1"), "--out", str(tmp_path)]
    assert main(["discriminator", "train", *folders]) == 2
    assert "flow extract" in capsys.readouterr().err
