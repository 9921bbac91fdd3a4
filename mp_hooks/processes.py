"""Which of several processes this one is, as their launcher tells it in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


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
