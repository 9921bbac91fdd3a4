"""Which of several processes this one is, as their launcher tells it in the environment, and what falls to it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LOCK = ".lock"


@dataclass(frozen=True)
class Processes:
    """This process's number among all `world` of them, and among the `local_world` on this machine; both from 0."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def processes() -> Processes:
    """What torchrun and accelerate tell, else what Slurm's srun does; without any of them one process alone.

    A batch script that Slurm runs without srun is one process too, however many tasks its job has room for.
    """

    def number(name: str, default: int) -> int:
        return int(os.environ.get(name, default))

    if "WORLD_SIZE" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:  # srun's alone
        world = number("SLURM_STEP_NUM_TASKS", 1)
        machines = number("SLURM_STEP_NUM_NODES", 1)
        return Processes(number("SLURM_PROCID", 0), world, number("SLURM_LOCALID", 0), world // machines)
    return Processes(number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1))


def local_device() -> str:
    """This process's GPU, else the CPU."""
    import torch

    gpus = torch.cuda.device_count()  # 1 where the launcher shows each process its own
    return f"cuda:{processes().local_rank % gpus}" if gpus else "cpu"


def workers_for(device: str) -> int:
    """How many processes of one thread sample at once: one a core, and one alone on a GPU."""
    return (os.cpu_count() or 1) if device == "cpu" else 1


def shared(parts: Sequence[T], done: Callable[[T], bool], folder: Path) -> Iterator[T]:
    """The parts that are not done and fall to this process, which does each before it asks for the next.

    Its own share comes first, every world-th part, then what the others have not begun: none idles, and the share of a
    process that failed is done by the rest, or by a rerun of any number. A lock in folder/.lock, gone with its process,
    keeps two from doing one part; on a file system without locks each keeps to its own share.
    """
    launched = processes()
    own = range(launched.rank, len(parts), launched.world)
    others = [number for number in reversed(range(len(parts))) if number not in own]
    with (folder / LOCK).open("ab") as file:
        for number in [*own, *others]:
            if done(parts[number]):
                continue
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):  # another process is at it
                continue
            except OSError:  # no locks here
                if number not in own:
                    return
                yield parts[number]
                continue
            if not done(parts[number]):
                yield parts[number]
            fcntl.lockf(file, fcntl.LOCK_UN, 1, number)
