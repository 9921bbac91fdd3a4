"""mp_hooks: MotionPrompt (CVPR 2025) as hooks on existing text-to-video codebases."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mp_hooks.backbones import apply_patch, describe_patch, is_patched, motionprompt, remove_patch, supported_hosts
    from mp_hooks.config import MotionPromptConfig, load_config
    from mp_hooks.errors import MotionPromptError

__version__ = "0.1.0"

__all__ = [
    "MotionPromptConfig",
    "MotionPromptError",
    "__version__",
    "apply_patch",
    "describe_patch",
    "is_patched",
    "load_config",
    "motionprompt",
    "remove_patch",
    "supported_hosts",
]

# Where they live: each is imported with its first use, so that commands answer at once and torch comes late.
_HOMES = {
    "MotionPromptConfig": "mp_hooks.config",
    "MotionPromptError": "mp_hooks.errors",
    "load_config": "mp_hooks.config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mp_hooks' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES.get(name, "mp_hooks.backbones")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
