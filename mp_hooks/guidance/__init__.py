"""The method: learnable tokens, objective, window, frame pairs, K updates a step, trace. Knows no backbone."""

from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.guidance.method import Host, MotionPrompt, Run, Step, full_precision, widened

__all__ = ["Host", "MotionPrompt", "MotionPromptConfig", "Run", "Step", "full_precision", "load_config", "widened"]
