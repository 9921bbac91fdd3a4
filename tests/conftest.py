"""What all tests share: marks that skip with a remedy, one thread a process, the tiny pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is this small only waits on more threads, and cannot be forked
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the hub, and what asks for it all the same is not to wait

import pytest
import torch
from hypothesis import settings

from mp_hooks import patching
from mp_hooks.lab import mini
from mp_hooks.lab.mini import model
from mp_hooks.lab.mini.clips import SIDE
from mp_hooks.testing import tiny
from mp_hooks.testing.case import MissingPackage

settings.register_profile("suite", deadline=None, derandomize=True)  # the same examples, however busy the machine is
settings.load_profile("suite")


@pytest.hookimpl(wrapper=True, trylast=True)  # inside of those that pytest undoes afterwards
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Skip, before any fixture is made, what cannot run here; the reason tells the remedy."""
    for mark in item.iter_markers("upstream"):
        (name,) = mark.args
        host = patching.PACKS.get(name) or patching.load(name)
        if not patching.is_present(patching.default_checkout(host)):
            pytest.skip(f"{host.title} is not in third_party/; mp-patch {name} gets it")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device; run this on a machine with a GPU and a CUDA build of torch")
    try:
        return (yield)
    except MissingPackage as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    """A tiny AnimateDiffPipeline, the fastest host there is."""
    with tiny("diffusers-animatediff").open() as pipe:
        yield pipe


@pytest.fixture(scope="session")
def small_form() -> model.Form:
    """A mini model of half the side and half the frames, and less of a network."""
    return model.Form(SIDE, vae_channels=(8, 16, 16, 16), unet_channels=(16, 16))


@pytest.fixture(scope="session")
def small_mini(small_form: model.Form, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained mini model of that form, for tests that sample much and ask nothing of the clips."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("small-mini")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.build_pipeline(small_form).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def small_packaged(small_form: model.Form, small_mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That model in place of the packaged one, wherever none is named."""
    monkeypatch.setattr(mini, "PACKAGED", small_mini)
    monkeypatch.setattr(model, "FORM", small_form)
    monkeypatch.setattr(model.load_pipeline, "__defaults__", (small_mini,))
    monkeypatch.setattr(model.build_pipeline, "__defaults__", (small_form,))
