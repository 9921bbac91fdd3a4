"""The embedded mini text-to-video model: drawn clips, a small AnimateDiff pipeline, its training and evaluation."""

from mp_hooks.lab.mini.clips import FRAME_RATE
from mp_hooks.lab.mini.model import CALL, GUIDANCE, PACKAGED, guidance, load_pipeline, sample
from mp_hooks.lab.mini.tracking import TrackedObject, jerk, track_object

__all__ = [
    "CALL",
    "FRAME_RATE",
    "GUIDANCE",
    "PACKAGED",
    "TrackedObject",
    "guidance",
    "jerk",
    "load_pipeline",
    "sample",
    "track_object",
]
