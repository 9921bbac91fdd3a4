"""What every flow estimator promises, and the registry that finds one by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError, unknown_name

MIN_SIDE = 16


class FlowEstimator(nn.Module):
    """Optical flow between two batches of frames, differentiable in both.

    Called with frames [b, 3, h, w] in [-1, 1] (RGB, sides of 16 or more) it returns flow [b, 2, h, w] in
    pixels of that grid, x then y, such that first(p) ~ second(p + flow(p)). Half precision and autocast are
    left at the door: the computation and the result are float32, or float64 for float64 frames. Nothing in
    it is trainable. A new estimator implements `estimate` and is registered with `register_flow`.
    """

    name: str

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 3 or min(first.shape[2:]) < MIN_SIDE:
            raise MotionPromptError(
                f"flow needs two equal batches of frames [b, 3, h, w] with sides of {MIN_SIDE} or more, "
                f"not {list(first.shape)} and {list(second.shape)}"
            )
        dtype = torch.promote_types(first.dtype, torch.float32)
        with torch.autocast(first.device.type, enabled=False):
            return self.estimate(first.to(dtype), second.to(dtype))

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow [b, 2, h, w] of frames already checked and in full precision."""
        raise NotImplementedError


_BUILDERS: dict[str, Callable[[str | Path | None], FlowEstimator]] = {}


def register_flow(name: str) -> Callable:
    """Decorator: enter a class or function that makes a FlowEstimator from `weights` (a path or None)."""

    def enter(builder: Callable[[str | Path | None], FlowEstimator]) -> Callable:
        if name in _BUILDERS:
            raise ValueError(f"two flow estimators are called '{name}'")
        _BUILDERS[name] = builder
        return builder

    return enter


def flow_names() -> list[str]:
    """The names `load_flow` knows."""
    return sorted(_BUILDERS)


def load_flow(
    name: str = "pyramid", weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FlowEstimator:
    """The estimator of that name, frozen and in eval mode.

    `pyramid` has no weights. `raft_small` and `raft_large` read theirs from the file `weights`, or download
    torchvision's. Raises MotionPromptError for an unknown name or weights that cannot be had.
    """
    if name not in _BUILDERS:
        raise unknown_name("flow estimator", name, flow_names())
    return _BUILDERS[name](weights).requires_grad_(False).eval().to(device)
