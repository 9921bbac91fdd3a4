"""What happened in a run, for people and for plots: JSON lines and a progress bar."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.processes import processes

if TYPE_CHECKING:
    from mp_hooks.guidance.method import Update


class Trace:
    """JSON-lines writer, a line per record, written line by line so that a killed run keeps what it did.

    Records: {"event": "run", ...} once a run, {"event": "iteration", ...} per iteration (lists hold a value per
    sample), {"event": "descent", ...} per guided step where the loss on fixed pairs is compared. A path of None writes
    nothing. Processes that run at the same time may have one path: each appends lines with its rank and process
    number, and only the first of them begins the file anew.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file: FileIO | None = None
        self._copies: list[dict[str, Any]] | None = None
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = _opened(Path(path))
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
            line = (json.dumps({**record, "rank": processes().rank, "process": os.getpid()}) + "\n").encode()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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


def _opened(path: Path) -> FileIO:
    """The file, to append to; emptied unless another process is writing to it, which its lock tells."""
    file = path.open("a+b", buffering=0)  # in one write a line stays whole, whoever else appends
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first = True
    except (BlockingIOError, PermissionError):
        first = False
    except OSError:  # a file system without locks
        first = processes().rank == 0
    if first and os.fstat(file.fileno()).st_size:
        file.truncate(0)
    with suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_SH)
    return file


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
    """The records of a trace file, run by run; MotionPromptError if it is no trace.

    Runs of several processes are in order of rank, numbered through. A last line cut off by a kill is left out.
    """
    runs: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MotionPromptError(f"cannot read the trace {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["event"], str):
                raise TypeError("an event is named by text")
            rank, process, run = (int(record.get(name, 0)) for name in ("rank", "process", "run"))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            raise MotionPromptError(f"{path} is no trace: line {number} is none of its records") from error
        runs.setdefault((rank, process, run), []).append(record)
    in_order = sorted(runs, key=lambda run: run[0])
    records = [{**record, "run": number} for number, run in enumerate(in_order) for record in runs[run]]
    for record in records:
        record.pop("process", None)  # which the run's number stands for
    return records


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the allocator's peak since this was last asked, elsewhere the process's peak resident size."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
