"""What the tests of runs that are killed and started again share."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing.doctor import environment

MEASURED = ("seconds", "peak_memory")  # which no two runs share
WORDS = ("event", "prompts", "reason")


def kill_when(happened: Callable[[], bool], words: Sequence[str], folder: Path) -> None:
    """Run a command, and kill it and all that it started in the moment in which something has happened."""
    process = subprocess.Popen(
        words,
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not happened():
            assert process.poll() is None, f"it ended too early, with exit code {process.returncode}"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def held(lock: Path, number: int) -> Iterator[None]:
    """Inside, another process is at the part of this number: it holds the byte that stands for it in a lock file."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()

    def hold() -> None:
        with lock.open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, number)
            ready.set()
            time.sleep(600)

    process = fork.Process(target=hold)
    process.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        process.kill()
        process.join()


def assert_same_trace(one: Path, other: Path) -> None:
    """The same records, but for rounding and what is measured."""
    ours, theirs = ([split(record) for record in read_trace(path)] for path in (one, other))
    assert [words for words, _ in ours] == [words for words, _ in theirs]
    for (_, numbers), (_, others) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(numbers, others, rtol=1e-3, atol=1e-6, equal_nan=True)


def split(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record's words and its numbers."""
    words = {name: value for name, value in record.items() if name in WORDS}
    return words, {name: value for name, value in record.items() if name not in (*WORDS, *MEASURED)}
