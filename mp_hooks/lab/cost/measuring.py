"""What the mini model really takes: seconds and resident memory, plain and guided by turns, and operations."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from mp_hooks.backbones import apply_patch, motionprompt, remove_patch
from mp_hooks.config import MotionPromptConfig
from mp_hooks.guidance.trace import peak_memory
from mp_hooks.lab import mini
from mp_hooks.lab.cost.counting import Meter
from mp_hooks.lab.experiments.methods import sample_with

KINDS = ("plain", "off", "guided")  # off: patched once, and the patch removed
PROMPT = "a red circle moving left"


@dataclass(frozen=True)
class Measured:
    """A sampling: wall and processor seconds a clip, on one thread, and the process's peak resident bytes."""

    wall: float
    processor: float
    memory: int


def measure(config: MotionPromptConfig, rounds: int, clips: int) -> dict[str, list[Measured]]:
    """`rounds` samplings of each kind, by turns, each of `clips` clips at once and in a process of its own."""
    found: dict[str, list[Measured]] = {kind: [] for kind in KINDS}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for _ in range(rounds):
            for kind in KINDS:
                found[kind].append(pool.submit(_sampled, kind, mini.PACKAGED, config, clips).result())
    return found


def operations(method: str, config: MotionPromptConfig) -> tuple[int, int]:
    """Floating-point operations and most bytes alive, weights included, of one clip sampled under a method."""
    pipe = mini.load_pipeline()
    modules = [pipe.unet, pipe.vae, pipe.text_encoder]
    with torch.no_grad(), Meter() as meter:
        sample_with(method, pipe, [PROMPT], [0], config)
    return meter.flops.total(), meter.peak + sum(w.nbytes for module in modules for w in module.parameters())


def _sampled(kind: str, model: Path, config: MotionPromptConfig, clips: int) -> Measured:
    torch.set_num_threads(1)
    pipe = mini.load_pipeline(model)
    prompts, seeds = [PROMPT] * clips, range(clips)
    mini.sample(prompts, seeds, steps=1, pipe=pipe, batch=clips)  # what is done once is done
    if kind == "off":
        apply_patch(pipe, config)
        remove_patch(pipe)
    with motionprompt(pipe, config) if kind == "guided" else nullcontext():
        wall, processor = time.perf_counter(), time.process_time()
        mini.sample(prompts, seeds, pipe=pipe, batch=clips)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Measured(wall / clips, processor / clips, peak_memory(torch.device("cpu")))
