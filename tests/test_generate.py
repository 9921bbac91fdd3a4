"""`motionprompt generate` on saved pipelines: any family, any number of processes, killed and started again."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from mp_hooks.generation import Clip, Generation, Prompt, Sampler, begin, clips_of, load_pipeline, read_prompts, run
from mp_hooks.generation.prompts import as_file
from mp_hooks.testing import CASES, tiny
from mp_hooks.video import write_video

pytest.importorskip("diffusers")

FAMILIES = [name for name in CASES if name.startswith("diffusers-")]
PLAIN = {"num_inference_steps": 2}
CLIP_TARS = ["clips-00000.tar", "clips-00001.tar"]
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


def command(name: str, model: Path, *further: str) -> list[str]:
    """The words of `generate` in two steps; `further` come last."""
    settings = {**PLAIN, **tiny(name).settings}
    flags = [word for key, value in settings.items() for word in ("--argument", f"{key}={value}")]
    return ["generate", "--model", str(model), *flags, *further]


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
        words = command(name, model, "--prompt", PROMPTS[0], "--seed", "5", *further)
        assert main([*words, "--out", str(tmp_path / out)]) == 0
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


@dataclass(frozen=True)
class Unbroken:
    """A guided run of eight clips in batches of two: its words but for the folder, what it left, and its seconds."""

    words: list[str]
    contents: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def unbroken(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder, name = tmp_path_factory.mktemp("unbroken"), "diffusers-animatediff"
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["--prompts", str(folder / "prompts.txt"), "--seeds", "4", "--batch-size", "2", *guided(name, folder)]
    words, out = [*command(name, saved(name), *words), "--out"], folder / "out"
    began = time.monotonic()
    assert main([*words, str(out)]) == 0
    return Unbroken(words, contents(out), time.monotonic() - began)


def test_two_ranks_make_the_clips_of_one(unbroken: Unbroken, tmp_path: Path) -> None:
    clips = [f"{prompt}-{sample}.mp4" for prompt in sorted(PROMPTS) for sample in range(4)]
    assert sorted(name for name in unbroken.contents if name.endswith(".mp4")) == clips
    ranks = [start([*unbroken.words, str(tmp_path)], RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path) == unbroken.contents
    traces = [path.read_text().splitlines()[0] for path in (tmp_path / "traces").iterdir()]
    assert {json.loads(line)["rank"] for line in traces} == {0, 1}, "both had a share"


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_run_again_is_as_unbroken(kills: int, unbroken: Unbroken, tmp_path: Path) -> None:
    """Ranks by turns, at random moments; the next one takes up what the last has left."""
    words, moments = [*unbroken.words, str(tmp_path)], random.Random(0)
    for number in range(kills):
        process = start(words, RANK=str(number % 2), WORLD_SIZE="2")
        time.sleep(moments.uniform(0, 1.5 * unbroken.seconds / kills))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        for name, content in contents(tmp_path).items():
            assert Path(name).name[0] == "." or content == unbroken.contents[name], f"{name} is not whole"
    assert main(words) == 0
    assert contents(tmp_path) == unbroken.contents


def test_webdataset_in_and_out(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars hold what files would, and a killed shard goes on from its files; prompts are read from tars."""
    monkeypatch.setattr(run, "CLIPS_A_SHARD", 3)
    name = "diffusers-animatediff"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = command(name, saved(name), "--seeds", "2", "--prompts", str(tmp_path / "prompts.txt"), "--out")
    files, tars = tmp_path / "files", tmp_path / "tars"
    assert main([*words, str(files)]) == 0
    assert main([*words, str(tars), "--webdataset"]) == 0
    assert sorted(path.name for path in tars.iterdir()) == [".lock", *CLIP_TARS, "generate.json"]
    whole = contents(tars)
    with tarfile.open(tars / CLIP_TARS[1]) as tar:
        assert tar.getnames() == ["000003.json", "000003.mp4", "000003.txt"]
        about = json.load(tar.extractfile("000003.json"))
        assert (about["name"], about["seed"]) == (f"{PROMPTS[1]}-1.mp4", 3)
        assert tar.extractfile("000003.mp4").read() == (files / about["name"]).read_bytes()
        assert tar.extractfile("000003.txt").read().decode() == PROMPTS[1]
    (tars / CLIP_TARS[0]).unlink()
    kept = tars / f"{PROMPTS[0]}-0.mp4"
    kept.write_bytes(b"finished before the kill")
    assert main([*words, str(tars), "--webdataset"]) == 0
    with tarfile.open(tars / CLIP_TARS[0]) as tar:
        assert tar.extractfile("000000.mp4").read() == b"finished before the kill"
        assert tar.extractfile("000001.mp4").read() == (files / f"{PROMPTS[0]}-1.mp4").read_bytes()
    assert contents(tars).keys() == whole.keys()
    assert main([*words, str(files), "--webdataset"]) == 2
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        members = {"a.b/0.txt": b"cat", "a.b/0.jpg": b"a picture", "1.json": b'{"prompt": "dog"}', "1.mp4": b"a video"}
        for member, content in members.items():
            header = tarfile.TarInfo(member)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    cat, dog = read_prompts(tmp_path / "in.tar")
    assert (cat.text, cat.video, dog.text, dog.image) == ("cat", None, "dog", None)
    for source, content in ((cat.image, b"a picture"), (dog.video, b"a video")):
        with as_file(source) as path:
            assert path.read_bytes() == content


def test_prompts_as_vbench_has_them(tmp_path: Path) -> None:
    """Each once, in order; seeds are counted through; longer texts under the short ones' names; pictures by name."""
    (tmp_path / "all.txt").write_text("a cat\n\n a dog, 4/4 \na cat\n")
    clips = clips_of(read_prompts(tmp_path / "all.txt"), samples=2, seed=10)
    assert [(clip.name, clip.prompt, clip.seed) for clip in clips] == [
        ("a cat-0.mp4", "a cat", 10),
        ("a cat-1.mp4", "a cat", 11),
        ("a dog, 4 4-0.mp4", "a dog, 4/4", 12),
        ("a dog, 4 4-1.mp4", "a dog, 4/4", 13),
    ]
    info = [
        {"prompt_en": "a cat", "dimension": ["color"], "image_name": "cat.jpg"},
        {"prompt_en": "a dog", "prompt": "a big dog in a green field", "image_name": "dog.jpg"},
    ]
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "crops").mkdir()
    for name in ("cat.jpg", "dog.jpg", "a cat.png", "a dog, 4 4.jpg"):
        (tmp_path / "crops" / name).touch()
    crops = str(tmp_path / "crops")
    named = clips_of(read_prompts(tmp_path / "info.json", image=crops))
    assert [(clip.name, clip.prompt, clip.image) for clip in named] == [
        ("a cat-0.mp4", "a cat", f"{crops}/cat.jpg"),
        ("a dog-0.mp4", "a big dog in a green field", f"{crops}/dog.jpg"),
    ]
    found = [prompt.image for prompt in read_prompts(tmp_path / "all.txt", image=crops)]
    assert found == [f"{crops}/a cat.png", f"{crops}/a dog, 4 4.jpg"]
    (tmp_path / "crops/a cat.png").unlink()
    with pytest.raises(MotionPromptError, match=r"a cat\.jpg; give a file, or a folder"):
        read_prompts(tmp_path / "all.txt", image=crops)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("p.json", content) for content in ("{", "7", '[{"prompt_en": 7}]', '[{"caption": "x"}]')),
        *(("p.txt", content) for content in ("\n", "x" * 300, "a/b\na b")),
        ("p.tar", "no tar"),
    ],
)
def test_prompts_that_do_not_serve_are_one_sentence(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MotionPromptError) as caught:
        clips_of(read_prompts(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_pictures_and_videos_reach_the_pipelines_that_start_from_them(saved: Any, tmp_path: Path) -> None:
    """By diffusers' classes for them, on the same folders: another picture, another clip."""
    shades = torch.linspace(0, 255, 9).byte().view(9, 1, 1, 1).expand(9, 3, 64, 64)
    Image.fromarray(shades[3].permute(1, 2, 0).numpy()).save(tmp_path / "grey.png")
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / "white.png")
    write_video(tmp_path / "dawn.mp4", shades, 8)
    write_video(tmp_path / "dusk.mp4", shades.flip(0), 8)
    for name, kind, flag, sources in (
        ("diffusers-ltx", "LTXImageToVideoPipeline", "--image", ("grey.png", "white.png")),
        ("diffusers-cogvideox", "CogVideoXVideoToVideoPipeline", "--video", ("dawn.mp4", "dusk.mp4")),
    ):
        clips = []
        for source in sources:
            settings = {
                key: value for key, value in tiny(name).settings.items() if key != "num_frames" or flag == "--image"
            }
            flags = [word for key, value in settings.items() for word in ("--argument", f"{key}={value}")]
            words = [
                "generate",
                "--model",
                str(saved(name)),
                "--pipeline",
                kind,
                *flags,
                "--steps",
                "2",
                "--prompt",
                "x",
            ]
            out = tmp_path / f"{source}-out"
            assert main([*words, flag, str(tmp_path / source), "--out", str(out)]) == 0
            clips.append(decoded(out / "x-0.mp4"))
        assert not np.array_equal(*clips)
    assert main(command(name, saved(name), "--prompt", "x", flag, str(tmp_path / source), "--out", str(out))) == 2


def test_scheduler_lora_and_dtype_take_effect(saved: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig

    name = "diffusers-wan"
    with tiny(name).open() as pipe:
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        weights = {
            key.replace(".default", ""): value for key, value in pipe.transformer.state_dict().items() if "lora_" in key
        }
        type(pipe).save_lora_weights(tmp_path / "lora", transformer_lora_layers=weights)
    clips = {}
    for change in (
        {},
        {"scheduler": "FlowMatchEulerDiscreteScheduler"},
        {"dtype": "bfloat16"},
        {"lora": str(tmp_path / "lora")},
    ):
        settings = Generation(str(saved(name)), arguments={**PLAIN, **tiny(name).settings}, **change)
        clips[str(change)] = Sampler(settings).sample([Clip("x-0.mp4", PROMPTS[0], 1)])[0]
    assert len({clip.numpy().tobytes() for clip in clips.values()}) == len(clips)


def test_a_hub_id_without_network_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert main(["generate", "--model", "someone/some-model", "--prompt", "x", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: cannot load someone/some-model: it is no folder here, and of the hub: ")


def test_pickled_weights_are_loaded_only_if_told(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tiny("diffusers-ltx").open() as pipe:
        pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    words = command("diffusers-ltx", tmp_path / "pickled", "--prompt", "x", "--out", str(tmp_path / "out"))
    assert main(words) == 2
    assert "safetensors" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, "--allow-pickle"]) == 0


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--pipeline", "NoPipeline"], "no pipeline NoPipeline"),
        (["--scheduler", "NoScheduler"], "FlowMatchEulerDiscreteScheduler"),
        (["--argument", "promt=x"], "negative_prompt"),
        (["--argument", "promt"], "NAME=VALUE"),
        (["--argument", "generator=7"], "not an argument to give"),
        (["--lora", "nowhere"], "cannot load nowhere"),
        (["--offload", "model"], "runs on the CPU"),
        (["--offload", "some"], "none, sequential"),
        (["--dtype", "int8"], "bfloat16"),
        (["--seed", "1"], "other settings (model"),
        (["--height", "33"], "LTXPipeline refuses this: `height`"),
        (["--batch-size", "0"], "must be 1 or more"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    further: list[str], message: str, saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "diffusers-ltx"
    words = command(name, saved(name), "--device", "cpu", "--prompt", "x", "--out", str(tmp_path), *further)
    begin(Generation("other"), clips_of([Prompt("x")]), tmp_path) if "--seed" in further else None
    try:
        assert main(words) == 2
    except SystemExit as refused:  # by argparse
        assert refused.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
