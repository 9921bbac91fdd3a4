"""What a host really takes: seconds and peak bytes of whole samplings, plain and guided, on the device it is on."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp_hooks.backbones import motionprompt
from mp_hooks.config import MotionPromptConfig
from mp_hooks.guidance.trace import peak_memory, read_trace


@dataclass(frozen=True)
class Subject:
    """A host, and what samples it in a number of steps to latents, without decoding them."""

    host: Any
    sample: Callable[..., Tensor]


@dataclass(frozen=True)
class Timed:
    """A sampling.

    peak: most bytes allocated on the device, on a CPU the process's. guided: steps with updates, unguided: those that
    were to have them and had not. updates, skipped: of one sample's tokens each. gradient: the norms of those updates.
    tightened: what was done against running out of memory. said: warnings of MotionPrompt's.
    """

    seconds: float
    peak: int
    steps: int
    finite: bool
    guided: int = 0
    unguided: int = 0
    updates: int = 0
    skipped: int = 0
    gradient: tuple[float, ...] = ()
    tightened: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def timed(subject: Subject, steps: int, device: str, config: MotionPromptConfig | None = None) -> Timed:
    """Sample in that many steps, as the host does or guided."""
    place = torch.device(device)
    with ExitStack() as stack:
        trace = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trace.jsonl"
        said = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        if config is not None:
            stack.enter_context(motionprompt(subject.host, replace(config, trace=str(trace), progress=False)))
        peak_memory(place)  # begins anew
        _wait(place)
        began = time.perf_counter()
        with torch.no_grad():
            latents = subject.sample(steps)
        _wait(place)
        seconds, peak = time.perf_counter() - began, peak_memory(place)
        records = read_trace(trace) if config is not None else []
    iterations = [record for record in records if record["event"] == "iteration"]
    moved = [
        (norm, one) for record in iterations for norm, one in zip(record["gradient"], record["updated"], strict=True)
    ]
    return Timed(
        seconds=seconds,
        peak=max(peak, *(record["peak_memory"] for record in iterations), 0),
        steps=steps,
        finite=bool(latents.isfinite().all()),
        guided=len({record["step"] for record in iterations}),
        unguided=sum(record["event"] == "unguided" for record in records),
        updates=sum(one for _, one in moved),
        skipped=sum(not one for _, one in moved),
        gradient=tuple(norm for norm, one in moved if one),
        tightened=tuple(record["to"] for record in records if record["event"] == "tightened"),
        said=tuple(str(one.message) for one in said if "mp_hooks" in one.filename),
    )


@dataclass(frozen=True)
class Price:
    """A plain sampling, and a guided one of as many steps."""

    plain: Timed
    guided: Timed

    @property
    def plain_step(self) -> float:
        """Seconds."""
        return self.plain.seconds / self.plain.steps

    @property
    def guided_step(self) -> float:
        """Seconds; not a number where no step was guided."""
        if not self.guided.guided:
            return math.nan
        return self.plain_step + (self.guided.seconds - self.plain.seconds) / self.guided.guided

    def run(self, steps: int, guided: int) -> float:
        """Seconds of a run of so many steps, put together; nothing is decoded."""
        return (steps - guided) * self.plain_step + (guided * self.guided_step if guided else 0)


def windowed(config: MotionPromptConfig, steps: int, guided: int) -> MotionPromptConfig:
    """The configuration with that many guided steps of `steps`, after the first fifth of them."""
    first = steps // 5
    return replace(config, start=first / steps, stop=(first + guided) / steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
