"""The method: learnable tokens, objective, window, frame pairs, K updates a step, trace. Knows no backbone."""

from mp_hooks.guidance.contract import Host, Step
from mp_hooks.guidance.numerics import full_precision
from mp_hooks.guidance.run import MotionPrompt, Run

__all__ = ["Host", "MotionPrompt", "Run", "Step", "full_precision"]
