"""What guidance costs a host at its real size: operations and bytes, counted without weights, GPU or time."""

from mp_hooks.lab.cost.algorithm import Cost, Count, cost
from mp_hooks.lab.cost.hosts import FULL_SIZE, FullSize, full_size

__all__ = ["FULL_SIZE", "Cost", "Count", "FullSize", "cost", "full_size"]
