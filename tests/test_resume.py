"""Finished samplings are kept and handed back, to the bit, and only where the same is asked for."""

from __future__ import annotations

import random
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resumption import MEASURED
from torch import Tensor
from upstreams import needs

from mp_hooks import backbones, patching
from mp_hooks.backbones import resume
from mp_hooks.backbones.resume import Samplings
from mp_hooks.guidance import MotionPrompt
from mp_hooks.guidance.trace import read_trace
from mp_hooks.hooks import Hooks
from mp_hooks.testing import HostCase, tiny


class Batch:
    """One run over some samplings of a host, as a script makes them; what it came to, and how many steps it made."""

    def __init__(
        self, case: HostCase, folder: Path | None, trace: Path, seeds: list[int], host: Any = None, **options: Any
    ) -> None:
        self.results: list[Tensor] = []
        self.drawn: list[Any] = []  # right after each sampling
        self.steps = 0
        config = replace(case.config, iterations=1, stop=0.5, trace=str(trace), **options.pop("config", {}))
        with case.open() if host is None else nullcontext(host) as host:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            backbones.attach(host, MotionPrompt(config), Samplings(folder) if folder else None)
            counting = Hooks()
            counting.wrap(*backbones.adapter_for(host).step_site(), self._count)
            for seed in seeds:
                self.results.append(case.sample(host, case.prompts[:1], seed, **options))
                self.drawn.append((torch.rand(3).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
            counting.remove()
            backbones.remove_patch(host)
        self.trace = [
            {name: value for name, value in record.items() if name not in MEASURED} for record in read_trace(trace)
        ]

    def _count(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        return original(*args, **kwargs)


@pytest.fixture(
    params=[
        pytest.param(name, marks=[*needs(name), *[pytest.mark.slow] * (name == "dynamicrafter")])
        for name in patching.names()
    ]
)
def case(request: pytest.FixtureRequest) -> HostCase:
    """A host with a script, on its real code."""
    return tiny(request.param, **{"pictures": 1} if request.param == "animatediff" else {})


@pytest.fixture
def runs(case: HostCase, tmp_path: Path) -> tuple[Batch, Batch]:
    """A whole run, and one that was broken off after two samplings of three."""
    with case.open() as host:
        whole = Batch(case, None, tmp_path / "whole.jsonl", [1, 2, 3], host)
        return whole, Batch(case, tmp_path / "kept", tmp_path / "killed.jsonl", [1, 2], host)


def test_a_run_goes_on_as_if_it_had_not_been_broken(case: HostCase, runs: tuple[Batch, Batch], tmp_path: Path) -> None:
    """Two of three samplings are handed back to a host built anew; the third is as it would have been."""
    whole, killed = runs
    again = Batch(case, tmp_path / "kept", tmp_path / "again.jsonl", [1, 2, 3])
    assert (killed.steps, again.steps) == (whole.steps / 3 * 2, whole.steps / 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.results, whole.results, strict=True))
    assert again.drawn == whole.drawn
    assert again.trace == whole.trace
    assert len({record["run"] for record in again.trace}) == 3


def batch(pipe: Any, tmp_path: Path, seeds: tuple[int, ...] = (1,), **options: Any) -> Batch:
    """A run of a diffusers pipeline that keeps its samplings in `tmp_path`/kept."""
    return Batch(
        tiny("diffusers-animatediff"), tmp_path / "kept", tmp_path / "trace.jsonl", list(seeds), pipe, **options
    )


def kept(tmp_path: Path, number: int = 0) -> Path:
    return tmp_path / "kept" / f"mp-sampling-{number:05d}.pt"


def another_weight(pipe: Any) -> None:
    pipe.unet.conv_in.bias.data += 1


def another_scheduler(pipe: Any) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"config": {"learning_rate": 0.1}}, "options"),
        ({"seeds": (2,)}, "noise"),
        ({"guidance_scale": 3.0}, "arguments"),
        ({"latents": 1.01 * torch.ones(1, 4, 4, 8, 8)}, "conditioning"),
        ({"change": another_weight}, "model"),
        ({"change": another_scheduler}, "model"),
    ],
)
def test_what_is_asked_otherwise_is_sampled(pipe: Any, tmp_path: Path, options: dict[str, Any], other: str) -> None:
    given = {"latents": torch.ones(1, 4, 4, 8, 8)} if "latents" in options else {}
    scheduler, weights = pipe.scheduler, pipe.unet.conv_in.bias.detach().clone()
    first = batch(pipe, tmp_path, **given)
    change = options.pop("change", None)
    try:
        if change is not None:
            change(pipe)
        with pytest.warns(UserWarning, match=f"other .*{other}.*made again"):
            second = batch(pipe, tmp_path, **options)
        assert second.steps == first.steps
        assert batch(pipe, tmp_path, **options).steps == 0  # it has taken the place of the first
    finally:
        pipe.scheduler = scheduler
        pipe.unet.conv_in.bias.data.copy_(weights)


def test_rounding_is_nothing_else_to_ask_for(pipe: Any, tmp_path: Path) -> None:
    """What a text encoder or a VAE made of the same may differ in its last bits in another process."""
    latents = torch.randn(1, 4, 4, 8, 8)
    first = batch(pipe, tmp_path, latents=latents)
    again = batch(pipe, tmp_path, latents=latents * (1 + 1e-6))
    assert (first.steps > 0, again.steps) == (True, 0)


def test_generators_stand_where_the_sampling_left_them(pipe: Any, tmp_path: Path) -> None:
    """Those that are given, and numpy's and Python's where the host draws from them."""
    steps = type(pipe.scheduler).step

    def drawing(self: Any, *args: Any, **kwargs: Any) -> Any:
        random.random(), np.random.rand()  # noqa: NPY002
        return steps(self, *args, **kwargs)

    own = [torch.Generator().manual_seed(5) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe.scheduler), "step", drawing)
        first, again = (batch(pipe, tmp_path, generator=generator) for generator in own)
    assert (first.steps > 0, again.steps) == (True, 0)
    assert torch.equal(first.results[0], again.results[0])
    assert first.drawn == again.drawn
    assert torch.equal(own[0].get_state(), own[1].get_state())
    assert not torch.equal(own[0].get_state(), torch.Generator().manual_seed(5).get_state())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def somebody_elses(path: Path) -> None:
    torch.save({"asked": 1}, path)


def code(path: Path) -> None:
    torch.save(Path(), path)


@pytest.mark.parametrize("damage", [cut, emptied, somebody_elses, code])
def test_what_cannot_be_read_is_sampled_again(pipe: Any, tmp_path: Path, damage: Any) -> None:
    first = batch(pipe, tmp_path)
    damage(kept(tmp_path))
    with pytest.warns(UserWarning, match=r"mp-sampling-00000\.pt cannot be read .*made again"):
        second = batch(pipe, tmp_path)
    assert second.steps == first.steps
    assert torch.equal(second.results[0], first.results[0])
    assert batch(pipe, tmp_path).steps == 0


def test_a_full_disk_is_a_warning(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="not kept: cannot write .*No space left.*goes on"):
        first = batch(pipe, tmp_path, (1, 2))
    monkeypatch.undo()
    assert list((tmp_path / "kept").iterdir()) == []
    second = batch(pipe, tmp_path, (1, 2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.results, second.results, strict=True))


def test_the_end_removes_what_is_ours(tmp_path: Path) -> None:
    """Of this and of killed runs, half-written too; the folder goes if nothing else is in it."""
    folder = tmp_path / "a" / "kept"
    ours = ["mp-sampling-00000.pt", "mp-sampling-00012.pt", ".mp-sampling-00013-a1b2c3d_.pt"]
    theirs = ["notes.txt", "mp-sampling-00000.pt.bak", "sampling-00000.pt", "mp-sampling-last.pt"]
    for names, left in [(ours + theirs, theirs), (ours, None)]:
        done = Samplings(folder)
        for name in names:
            (folder / name).write_text("x")
        done.discard()
        assert folder.exists() == (left is not None)
        if left is not None:
            assert sorted(path.name for path in folder.iterdir()) == sorted(left)
            for name in left:
                (folder / name).unlink()


@pytest.mark.parametrize(
    "result",
    [
        None,
        (torch.ones(2), {"x_inter": [torch.zeros(3, dtype=torch.float16)], "pred_x0": []}),
        [1, 2.5, "text", True, (None, ())],
        {0: torch.arange(6).view(2, 3).T},
    ],
)
def test_results_come_back_in_their_form(result: Any, tmp_path: Path) -> None:
    torch.save(resume.packed(result), tmp_path / "result.pt")
    back = resume.unpacked(torch.load(tmp_path / "result.pt", weights_only=True))
    assert repr(back) == repr(result)  # tuples, lists, tensors with their values and types


def test_no_class_but_an_output_is_ever_called(tmp_path: Path) -> None:
    for place in ("subprocess:Popen", "builtins:dict", "nowhere:Output"):
        with pytest.raises(TypeError, match="no output"):
            resume.unpacked((place, {"args": "true"}))


def test_a_part_of_a_tensor_is_kept_alone(tmp_path: Path) -> None:
    whole = torch.zeros(1000, 1000)
    torch.save(resume.packed(whole[:2]), tmp_path / "part.pt")
    assert (tmp_path / "part.pt").stat().st_size < 20_000


def test_off_is_off(pipe: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Batch(tiny("diffusers-animatediff"), None, tmp_path / "trace.jsonl", [1], pipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.jsonl"]
