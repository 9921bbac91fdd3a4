"""mp_hooks: MotionPrompt (CVPR 2025) as hooks on existing text-to-video codebases."""

__version__ = "0.1.0"
