"""The video pipelines of the installed diffusers: each is guided, or there is a reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mp_hooks import backbones
from mp_hooks.backbones.diffusers.unguided import UNGUIDED
from mp_hooks.errors import MotionPromptError

diffusers = pytest.importorskip("diffusers")


@cache
def video_pipelines() -> set[str]:
    """Those of diffusers' source that take a number of frames or return frames; none is imported."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    return {name for path in folder.rglob("pipeline_*.py") for name in pipelines_in(path.read_text(encoding="utf-8"))}


def pipelines_in(source: str) -> Iterator[str]:
    for name, body in re.findall(r"^class (\w+Pipeline)\((.*?)(?=^class |\Z)", source, re.M | re.S):
        for call in re.findall(r"^    def __call__\((.*?)(?=^    def |\Z)", body, re.M | re.S):
            taken = call.split("\n    ):")[0]
            if re.search(r"^ +(num_frames|video_length): (?!.*= 1,)", taken, re.M) or re.search(r"Output\(\s*frames=", call):
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
        assert known - video_pipelines() == set(), "gone from this diffusers"


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
