"""The paired experiment and `motionprompt generate`, on the packaged mini model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from resumption import assert_same_trace, kill_when

from mp_hooks import motionprompt
from mp_hooks.cli.main import main
from mp_hooks.config import load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.lab import mini
from mp_hooks.lab.experiments.methods import METHODS
from mp_hooks.lab.experiments.paired import Experiment, load_clips
from mp_hooks.video import read_frames

for library in ("diffusers", "scipy", "jinja2", "matplotlib"):
    pytest.importorskip(library)


def test_compare_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every method on two prompts: it differs from the baseline, is measured and shown, and is not sampled twice."""
    out = tmp_path / "compare"
    command = ["compare", "--out", str(out), "--prompts", "2", "--seeds", "1", "--shown", "1", "--workers", "1"]
    command += ["--mp-start", "0.3", "--mp-stop", "0.34", "--mp-iterations", "1"]  # one guided step of 25
    assert main([*command, "--methods", *METHODS]) == 0
    printed = capsys.readouterr().out
    assert all(method in printed for method in METHODS)
    baseline = load_clips(out, "baseline", 0)
    assert baseline.shape == (2, 8, 3, 64, 64)
    for method in METHODS:
        assert method == "baseline" or not torch.equal(load_clips(out, method, 0), baseline)
    page = (out / "index.html").read_text()
    assert page.count("data:image/webp") == 1
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert len(list((out / "side-by-side").iterdir())) == 2
    assert set(json.loads((out / "results.json").read_text())["against baseline"]) == set(METHODS) - {"baseline"}

    written = {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    former = ["prove", *command[1:]]  # the command's name of old, and its option's
    assert main([*former, "--arms", "motionprompt"]) == 0
    assert set(json.loads((out / "measures.json").read_text())) == {"baseline", "motionprompt"}
    assert written == {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    assert main([*command, "--seed", "5"]) == 2
    assert "experiment.seed" in capsys.readouterr().err


def test_the_same_clips_may_be_measured_with_another_flow(tmp_path: Path) -> None:
    settings = {"model": "m", "prompts": 8, "seeds": 2, "guidance": mini.guidance()}
    Experiment(seed=1, flow="pyramid", flow_weights=None, **settings).claim(tmp_path)
    Experiment(seed=1, flow="raft_small", flow_weights="w.pth", **settings).claim(tmp_path)
    assert json.loads((tmp_path / "experiment.json").read_text())["experiment"]["flow"] == "raft_small"
    with pytest.raises(MotionPromptError, match=r"\(experiment.seed\)"):
        Experiment(seed=2, flow="raft_small", flow_weights="w.pth", **settings).claim(tmp_path)


def test_guided_clips_depend_on_their_noise_seed_alone() -> None:
    """Not on torch's global seed, which every process draws anew: the frame pairs come from the clip's own."""
    clips = []
    for process in (1, 2):
        torch.manual_seed(process)
        config = mini.guidance(load_config(mini.GUIDANCE, iterations=1, progress=False))
        pipe = mini.load_pipeline()
        with motionprompt(pipe, config):
            clips.append(mini.sample(["a red circle moving left"], [5], steps=4, pipe=pipe))
    assert torch.equal(*clips)


def test_prompts_share_nothing_between_seeds() -> None:
    settings = {"model": "m", "prompts": 8, "seeds": 2, "flow": "pyramid", "flow_weights": None}
    one, two = (Experiment(seed=seed, guidance=mini.guidance(), **settings).clips() for seed in (1, 2))
    assert len(one) == 16
    assert not {seed for *_, seed in one} & {seed for *_, seed in two}
    assert not any("authentic" in prompt or "steady" in prompt for prompt, *_ in one)


def test_generate_with_and_without(tmp_path: Path) -> None:
    for flags in ([], ["--motionprompt", "--no-mp-progress"]):
        prompt = ["--prompt", "a red circle moving left", "--steps", "8"]
        assert main(["generate", *prompt, "--out", str(tmp_path), *flags]) == 0
    plain, guided = (read_frames(tmp_path / f"00-seed0{name}.gif") for name in ("", "-motionprompt"))
    assert plain.shape == (8, 3, 64, 64)
    assert not torch.equal(plain, guided)
    assert (tmp_path / "config.yaml").is_file()
    assert (tmp_path / "trace.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--methods", "baseline", "magic"], "magic"),
        (["compare", "--prompts", "0"], "at least 1"),
        (["generate", "--prompt", "x", "--steps", "0"], "at least 1"),
        (["generate", "--prompt", "x", "--model", "nowhere"], "no mini model"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_generate_for_a_file_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two shards make what VBench asks for; a second run keeps what is there and makes what is not."""
    (tmp_path / "prompts.txt").write_text("a red circle moving left\n\na blue square moving up\n")
    out = tmp_path / "out"
    command = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "5", "--steps", "2"]
    command += ["--out", str(out), "--motionprompt", "--mp-iterations", "1"]
    assert main([*command, "--shard", "1/2"]) == 0
    names = [
        f"{prompt}-{i}.mp4" for prompt in ("a red circle moving left", "a blue square moving up") for i in range(5)
    ]
    assert sorted(path.name for path in out.glob("*.mp4")) == sorted(names[8:])
    assert main([*command, "--shard", "0/2"]) == 0
    assert sorted(path.name for path in out.glob("*.mp4")) == sorted(names)
    assert sorted(path.name for path in (out / "traces").iterdir()) == ["00000.jsonl", "00001.jsonl"]
    assert "torch " in (out / "versions.txt").read_text()
    first = read_frames(out / names[8])
    assert not torch.equal(first, read_frames(out / names[9]))
    (out / names[8]).unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in names[:8]}
    assert main(command) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in names[:8]} == kept
    # x264 is not the same to the bit
    assert (read_frames(out / names[8]).float() - first).abs().mean() < 2
    assert (read_frames(out / names[9]).float() - first).abs().mean() > 5
    assert main([*command, "--mp-iterations", "2"]) == 2
    assert "guidance.iterations" in capsys.readouterr().err
    for shard in ("2/2", "x"):
        assert main([*command, "--shard", shard]) == 2
        assert "--shard" in capsys.readouterr().err


def test_generate_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Killed while it samples the second batch: clips and traces are an unbroken run's, finished clips untouched."""
    (tmp_path / "prompts.txt").write_text("a red circle moving left\na blue square moving up\n")
    command = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "5", "--steps", "2"]
    command += ["--motionprompt", "--mp-iterations", "1", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*command, str(whole)]) == 0
    program = str(Path(sys.executable).with_name("motionprompt"))
    kill_when((killed / "traces/00001.jsonl").exists, [program, *command, str(killed)], tmp_path)
    finished = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.mp4") if path.name[0] != "."}
    assert len(finished) == 8
    assert main([*command, str(killed)]) == 0
    assert {name: (killed / name).stat().st_mtime_ns for name in finished} == finished
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.glob("*.mp4"):
        # x264 is not the same to the bit
        assert (read_frames(path).float() - read_frames(killed / path.name).float()).abs().mean() < 2
    for path in (whole / "traces").iterdir():
        assert_same_trace(path, killed / "traces" / path.name)
