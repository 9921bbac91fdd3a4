"""The paired experiment and `motionprompt generate`, on the mini model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mp_hooks import motionprompt
from mp_hooks.cli.main import main
from mp_hooks.config import load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.lab import mini
from mp_hooks.lab.experiments import words
from mp_hooks.lab.experiments.methods import METHODS
from mp_hooks.lab.experiments.paired import Experiment, load_clips
from mp_hooks.video import read_frames

for library in ("diffusers", "scipy", "jinja2", "matplotlib"):
    pytest.importorskip(library)


@pytest.mark.usefixtures("small_packaged")
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


@pytest.mark.usefixtures("small_packaged")
def test_words_at_the_tokens_place_are_told_apart() -> None:
    """At every guided step, each word's term and the moved token's are others than the initial token's."""
    config = replace(mini.guidance(), progress=False, stop=0.2)
    found = words.measure(config, clips=1)
    assert [step for step, _ in found] == [2, 3, 4]
    for _, terms in found:
        assert list(terms) == [config.init_word, *words.WORDS, "guided"]
        assert len(set(terms.values())) == len(terms)


@pytest.mark.usefixtures("small_packaged")
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


def test_generate_samples_the_mini_model_unless_told(tmp_path: Path) -> None:
    """With its own guidance, which is written beside the clips."""
    prompt = "a red circle moving left"
    for out, flags in (("plain", []), ("guided", ["--motionprompt"])):
        words = ["generate", "--prompt", prompt, "--steps", "4", "--out", str(tmp_path / out), *flags]
        assert main(words) == 0
    plain, guided = (read_frames(tmp_path / out / f"{prompt}-0.mp4") for out in ("plain", "guided"))
    assert plain.shape == (16, 3, 128, 128)
    assert not torch.equal(plain, guided)
    assert load_config(tmp_path / "guided/config.yaml") == mini.guidance()
    assert (tmp_path / "guided/traces" / f"{prompt}-0.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--methods", "baseline", "magic"], "magic"),
        (["compare", "--prompts", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
