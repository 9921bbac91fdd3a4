"""What happened in a run, for people and for plots: JSON lines and a progress bar."""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError

if TYPE_CHECKING:
    from mp_hooks.guidance.method import Update


class Trace:
    """JSON-lines writer, a line per record, flushed line by line so that a killed run keeps what it did.

    Records: {"event": "run", ...} once a run, {"event": "iteration", ...} per iteration (lists hold a value per
    sample). A path of None writes nothing.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file: TextIO | None = None
        self._copies: list[dict[str, Any]] | None = None
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
            except OSError as error:
                raise MotionPromptError(f"cannot write the trace {path}: {error.strerror}") from error

    def write(self, event: str, **record: Any) -> None:
        """Append one record. Where that is not possible, on a full disk say, a warning tells, and the run goes on."""
        record = {"event": event, **record}
        if self._copies is not None:
            self._copies.append(record)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            warnings.warn(f"the trace {self._file.name} ends here: {error.strerror}; the run goes on", stacklevel=2)
            self.close()

    @contextmanager
    def copied(self) -> Iterator[list[dict[str, Any]]]:
        """The records of what happens inside, whether they can be written or not."""
        copies: list[dict[str, Any]] = []
        self._copies = copies
        try:
            yield copies
        finally:
            self._copies = None

    def close(self) -> None:
        """Close the file; nothing is written afterwards."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written yet
                self._file.close()
            self._file = None


def record_of(update: Update, initial: Tensor) -> dict[str, Any]:
    """An update as the trace has it; lists hold a value per sample. initial: T0 [n, d]."""
    loss, tokens = update.loss, update.after
    return {
        "step": update.step.index,
        "timestep": update.step.timestep,
        "iteration": update.iteration,
        "pairs": (update.pairs.frames + update.first).tolist(),
        "loss": loss.total.tolist(),
        **{name: getattr(loss, name).tolist() for name in ("disc", "tv", "photo", "reg", "phi")},
        "cosine": torch.cosine_similarity(tokens, initial.expand_as(tokens), dim=-1).mean(1).tolist(),
        "gradient": update.gradient.flatten(1).norm(dim=1).tolist(),
        "updated": update.moved.tolist(),
        "loss_scale": update.loss_scale,
        "seconds": round(update.seconds, 4),
        "peak_memory": peak_memory(tokens.device),
    }


def read_trace(path: str | Path) -> list[dict[str, Any]]:
    """The records of a trace file; a last line cut off by a kill is left out. MotionPromptError if it is no trace."""
    records = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MotionPromptError(f"cannot read the trace {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["event"], str):
                raise TypeError("an event is named by text")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines):
                break
            raise MotionPromptError(f"{path} is no trace: line {number} is none of its records") from error
        records.append(record)
    return records


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the allocator's peak since this was last asked, elsewhere the process's peak resident size."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
