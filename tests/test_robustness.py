"""Guidance when memory or the disk is full, in threads, with offloaded weights, in and after other settings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mp_hooks import backbones
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.trace import Trace, read_trace
from mp_hooks.testing.conformance import Recorder, assert_same_guidance
from mp_hooks.testing.diffusers import AnimateDiffCase

accelerate = pytest.importorskip("accelerate")
CASE = AnimateDiffCase()
CONFIG = replace(CASE.config, checkpointing="none")  # which is chosen by a rehearsal otherwise
PARTS = ("unet", "text_encoder", "vae")


@pytest.fixture(scope="module")
def guided(pipe: Any) -> torch.Tensor:
    with backbones.motionprompt(pipe, CASE.config):
        return sample(pipe)


def sample(pipe: Any, prompts: list[str] | None = None) -> torch.Tensor:
    return CASE.sample(pipe, prompts or CASE.prompts, seed=7)


WORDS = (
    "CUDA out of memory. Tried to allocate 20.00 GiB",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
)


def failing(method: Recorder, calls: range, words: str = WORDS[0]) -> None:
    """Let memory run out in these calls of the objective."""
    objective, count = method.objective, []

    def full(*args: Any) -> Any:
        count.append(1)
        if len(count) - 1 in calls:
            raise RuntimeError(words)
        return objective(*args)

    method.objective = full  # type: ignore[assignment]


@pytest.mark.parametrize("words", WORDS)
def test_out_of_memory_is_met_with_more_checkpointing_and_the_step_made_again(
    pipe: Any, guided: torch.Tensor, tmp_path: Path, words: str
) -> None:
    """Twice in the second guided step: its updates begin anew, from the same tokens and with the same pairs."""
    method = Recorder(replace(CONFIG, trace=str(tmp_path / "trace.jsonl")))
    failing(method, range(3, 5), words)
    with backbones.attached(pipe, method), pytest.warns(UserWarning, match="out of memory at guided step 2") as told:
        latents = sample(pipe)
    assert_same_guidance(latents, guided)
    assert [str(one.message).partition("from now on: ")[2] for one in told] == [
        "checkpointing attention",
        "checkpointing all",
    ]
    records = read_trace(tmp_path / "trace.jsonl")
    assert [record["to"] for record in records if record["event"] == "tightened"] == [
        "checkpointing attention",
        "checkpointing all",
    ]
    assert records[-1]["guided"] == 2 and records[-1]["unguided"] == 0


def test_out_of_memory_at_last_ends_guidance_and_not_the_run(pipe: Any, tmp_path: Path) -> None:
    """From the second update of the second guided step on: the first step keeps what it did."""
    method = Recorder(replace(CONFIG, trace=str(tmp_path / "trace.jsonl")))
    failing(method, range(3, 10))
    with (
        backbones.attached(pipe, method),
        pytest.warns(UserWarning, match="without guidance: memory did not suffice") as told,
    ):
        latents = sample(pipe)
    assert latents.isfinite().all()
    assert not torch.equal(latents, sample(pipe))
    assert sum("updates look at a sub-clip" in str(one.message) for one in told) == 1, "the last thing that was tried"
    records = read_trace(tmp_path / "trace.jsonl")
    assert {record["step"] for record in records if record["event"] == "iteration"} == {1, 2}
    assert [record["reason"] for record in records if record["event"] == "unguided"] == ["out of memory"]
    assert records[-1]["guided"] == 1 and records[-1]["unguided"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_ends_the_trace_and_not_the_run() -> None:
    trace = Trace("/dev/full")
    with pytest.warns(UserWarning, match="No space left on device; the run goes on"):
        trace.write("run", run=0)
    trace.write("end", run=0)
    trace.close()


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What the functions return, or raise, each run in a thread of its own at the same time."""
    results: list[Any] = [None] * len(functions)

    def run(number: int) -> None:
        try:
            results[number] = functions[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_pipelines_in_two_threads(pipe: Any) -> None:
    """Each is guided as it is alone, with its own prompts, settings and generator."""
    with CASE.open() as other:
        pipes = [pipe, other]

        def run(number: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(number)
            with backbones.motionprompt(pipes[number], replace(CASE.config, seed=number)):
                return CASE.sample(pipes[number], [CASE.prompts[number]], seed=7, generator=generator)

        alone = [run(number) for number in range(2)]
        together = in_threads(lambda: run(0), lambda: run(1))
    for ours, theirs in zip(together, alone, strict=True):
        assert_same_guidance(ours, theirs)


def test_a_model_shared_by_two_threads_is_refused(pipe: Any) -> None:
    twin = type(pipe)(**pipe.components)
    twin.set_progress_bar_config(disable=True)
    met: list[Any] = []

    method = Recorder(CONFIG)
    objective = method.objective

    def meanwhile(*args: Any) -> Any:
        if not met:
            met.extend(in_threads(lambda: sample(twin)))
        return objective(*args)

    method.objective = meanwhile
    with backbones.attached(pipe, method):
        sample(pipe)
    assert isinstance(met[0], MotionPromptError)
    assert "give each thread a model of its own" in str(met[0])


def test_weights_that_are_offloaded_layer_by_layer(pipe: Any, guided: torch.Tensor) -> None:
    for name in PARTS:
        accelerate.cpu_offload(getattr(pipe, name), torch.device("cpu"))
    try:
        assert next(pipe.unet.parameters()).device.type == "meta"
        with backbones.motionprompt(pipe, CASE.config):
            assert_same_guidance(sample(pipe), guided)
    finally:
        for name in PARTS:
            accelerate.hooks.remove_hook_from_submodules(getattr(pipe, name))


def test_models_that_are_offloaded_whole_stay_during_a_guided_step(pipe: Any, guided: torch.Tensor) -> None:
    """As enable_model_cpu_offload does it, which asks for an accelerator: here both places are the CPU.

    It takes its hooks off and on again after every call of the pipeline, whereby guidance must not get lost.
    """
    method, staying = Recorder(CONFIG), []

    def offload() -> list[Any]:
        hooks, last = [], None
        for name in ("text_encoder", "unet", "vae"):
            _, last = accelerate.cpu_offload_with_hook(getattr(pipe, name), torch.device("cpu"), last)
            hooks.append(last)
        return hooks

    hooks = offload()
    objective = method.objective
    method.objective = lambda *args: staying.append(pipe.unet._hf_hook.prev_module_hook) or objective(*args)
    with backbones.attached(pipe, method):
        assert_same_guidance(sample(pipe), guided)
        for hook in hooks:
            hook.remove()
        hooks = offload()
        assert_same_guidance(sample(pipe), guided)
        assert pipe.unet._hf_hook.prev_module_hook is hooks[0]
    for hook in hooks:
        hook.remove()
    assert len(method.updates) == 8
    assert staying == [None] * 8


def test_settings_of_one_run_do_not_reach_the_next(pipe: Any, guided: torch.Tensor) -> None:
    other = replace(CASE.config, tokens=2, iterations=1)
    with backbones.motionprompt(pipe, CASE.config):
        with backbones.motionprompt(pipe, other):
            inner = sample(pipe)
        assert_same_guidance(sample(pipe), guided)
    assert not torch.equal(inner, guided)
    with backbones.motionprompt(pipe, other):
        assert_same_guidance(sample(pipe), inner)


def test_the_same_seed_gives_the_same_trace_and_latents_bit_for_bit(pipe: Any, tmp_path: Path) -> None:
    """On the CPU, but for seconds and memory; and torch's flags are put back."""
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    runs = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        with backbones.motionprompt(pipe, replace(CASE.config, deterministic=True, seed=3, trace=str(path))):
            latents = sample(pipe)
        records = read_trace(path)
        for record in records:
            for key in ("seconds", "peak_memory"):
                record.pop(key, None)
        runs.append((latents, records))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == flags
