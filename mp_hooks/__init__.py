"""mp_hooks: MotionPrompt (CVPR 2025) as hooks on existing text-to-video codebases."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and where they live; torch is imported with the first use, so that commands answer at once.
_PUBLIC = {
    "MotionPromptConfig": "mp_hooks.guidance",
    "MotionPromptError": "mp_hooks.errors",
    "apply_patch": "mp_hooks.backbones",
    "is_patched": "mp_hooks.backbones",
    "load_config": "mp_hooks.guidance",
    "motionprompt": "mp_hooks.backbones",
    "remove_patch": "mp_hooks.backbones",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mp_hooks' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
