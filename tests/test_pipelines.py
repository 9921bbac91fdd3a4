"""The video pipelines of the installed diffusers: each is guided, or there is a reason."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch import nn

from mp_hooks import backbones
from mp_hooks.backbones.diffusers.unguided import UNGUIDED
from mp_hooks.cli import patch
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.tokens import SLOT, RoomyTokenizer, TextInput
from mp_hooks.testing import tiny
from mp_hooks.testing.conformance import Recorder
from mp_hooks.testing.pipelines import chat_tokenizer

diffusers = pytest.importorskip("diffusers")
ROOT = Path(__file__).parents[1]


@cache
def video_pipelines() -> set[str]:
    """Those of diffusers' source that take a number of frames or return frames; none is imported."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    return {name for path in folder.rglob("pipeline_*.py") for name in pipelines_in(path.read_text(encoding="utf-8"))}


def pipelines_in(source: str) -> Iterator[str]:
    for name, body in re.findall(r"^class (\w+Pipeline)\((.*?)(?=^class |\Z)", source, re.M | re.S):
        for call in re.findall(r"^    def __call__\((.*?)(?=^    def |\Z)", body, re.M | re.S):
            taken = call.split("\n    ):")[0]
            if re.search(r"^ +(num_frames|video_length): (?!.*= 1,)", taken, re.M) or re.search(
                r"Output\(\s*frames=", call
            ):
                yield name


def guided() -> dict[str, str]:
    """Pipeline classes and the names of their adapters."""
    return {
        pipeline: name
        for name in backbones.BACKBONES
        for pipeline in getattr(backbones.adapter_class(name), "pipelines", ())
    }


def test_every_video_pipeline_is_guided_or_there_is_a_reason() -> None:
    """Fails with a diffusers that has a new one: write an adapter, or say in unguided.py why not."""
    known = guided().keys() | UNGUIDED.keys()
    assert video_pipelines() - known == set(), "new in this diffusers"
    if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42):
        assert {name for name in known if "Modular" not in name} <= video_pipelines(), "gone from this diffusers"


def test_no_pipeline_is_both_or_twice() -> None:
    adapters = [backbones.adapter_class(name) for name in backbones.BACKBONES]
    names = [pipeline for adapter in adapters for pipeline in getattr(adapter, "pipelines", ())]
    assert len(names) == len(set(names))
    assert set(names).isdisjoint(UNGUIDED)


@pytest.mark.parametrize("name", UNGUIDED)
def test_one_that_is_not_guided_says_why(name: str) -> None:
    host = type(name, (), {"__module__": "diffusers.pipelines"})()
    with pytest.raises(MotionPromptError, match="cannot guide") as error:
        backbones.apply_patch(host)
    assert str(error.value) == f"MotionPrompt cannot guide {name}: {UNGUIDED[name]}"


def test_mp_patch_says_why_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert patch.main(["StableVideoDiffusionPipeline"]) == 2
    assert "it reads no text" in capsys.readouterr().err


# Few steps and no classifier-free guidance: distilled models.
FEW = {
    "AnimateLCM": tiny("diffusers-animatediff", scheduler="LCMScheduler", guidance_scale=1.5),
    "Lightning": tiny("diffusers-animatediff", scheduler="EulerDiscreteScheduler", guidance_scale=1.0),
    "distilled Wan": tiny("diffusers-wan", guidance_scale=1.0),
    "distilled LTX": tiny("diffusers-ltx", guidance_scale=1.0),
    "HunyuanVideo": tiny("diffusers-hunyuan-video"),
    "the end of a clip": tiny("diffusers-wan", pipeline="WanVideoToVideoPipeline", strength=0.8),
}


@pytest.mark.parametrize("model", FEW)
def test_four_steps_have_a_guided_one(model: str) -> None:
    """With the paper's window, by a gradient that is there."""
    case = FEW[model]
    method = Recorder(replace(case.config, start=0.08, stop=0.30))
    with case.open() as host, backbones.attached(host, method):
        case.sample(host, case.prompts[:1], seed=7)
    (run,) = method.runs
    assert run.outcome.guided == 1
    assert len(method.updates) == case.config.iterations
    for update in method.updates:
        assert update.gradient.isfinite().all()
        assert float(update.gradient.norm()) > 0


def test_the_pages_tell_what_the_registry_has() -> None:
    """Else: python scripts/hosts.py."""
    subprocess.run([sys.executable, "scripts/hosts.py", "--check"], cwd=ROOT, check=True)


# Where room for the tokens is made: "S" in what a tokenizer gives a text encoder, and the mask below it.
TEMPLATE = "<|im_start|> user a boat <|im_end|> assistant"
ROOM = {
    "after the prompt in a template": (
        {"placement": "end", "end": "<|im_end|>", "padding": "max_length"},
        "<|im_start|> user a boat S S <|im_end|> assistant <pad> <pad>",
    ),
    "before it": (
        {"placement": "front", "end": "<|im_end|>", "skip": 2, "padding": "max_length"},
        "<|im_start|> user S S a boat <|im_end|> assistant <pad> <pad>",
    ),
    "before padding on the left": (
        {"placement": "end", "side": "left", "padding": "max_length"},
        "<pad> <pad> <|im_start|> user a boat <|im_end|> assistant S S",
    ),
    "in a longer text where it has no fixed length": (
        {"placement": "end", "end": "<|im_end|>", "padding": True},
        "<|im_start|> user a boat S S <|im_end|> assistant",
    ),
    "in the prompt's place where there is no other": (
        {"placement": "end", "end": "<|im_end|>", "skip": 2, "padding": "max_length", "length": 7},
        "<|im_start|> user a S S <|im_end|> assistant",
    ),
}


@pytest.mark.parametrize("place", ROOM)
def test_room_is_made(place: str) -> None:
    how, expected = ROOM[place]
    tokenizer, report = chat_tokenizer(side=how.get("side", "right")), {"lost": 0}
    end = tokenizer.convert_tokens_to_ids(how["end"]) if "end" in how else -1
    text = TextInput(nn.Embedding(1, 1), end=end, tokenizer=(None, ""), skip=how.get("skip", 0))
    roomy = RoomyTokenizer(tokenizer, text, 2, how["placement"], report)
    given = roomy([TEMPLATE], padding=how["padding"], max_length=how.get("length", 10), return_tensors="pt")
    ids, mask = (given[name][0].tolist() for name in ("input_ids", "attention_mask"))
    words = ["S" if number == SLOT else tokenizer.convert_ids_to_tokens(number) for number in ids]
    assert " ".join(words) == expected
    assert mask == [int(word != "<pad>") for word in words]
    assert report["lost"] == (1 if "length" in how else 0)


def test_more_tokens_than_the_prompt_has_room_for_are_an_error() -> None:
    tokenizer = chat_tokenizer()
    text = TextInput(
        nn.Embedding(1, 1), end=tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer=(None, ""), skip=2
    )
    roomy = RoomyTokenizer(tokenizer, text, 4, "end", {"lost": 0})
    with pytest.raises(MotionPromptError, match="4 learnable tokens do not fit"):
        roomy([TEMPLATE], padding="max_length", max_length=7, return_tensors="pt")
