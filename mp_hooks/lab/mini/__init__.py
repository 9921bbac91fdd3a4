"""The embedded mini text-to-video model: drawn clips, a small AnimateDiff pipeline, its training and evaluation."""

from mp_hooks.lab.mini.clips import FRAME_RATE, clean_clips
from mp_hooks.lab.mini.model import GUIDANCE, PACKAGED, guidance, load_pipeline, sample
from mp_hooks.lab.mini.reading import Reading, jerk, read_clip

__all__ = [
    "FRAME_RATE",
    "GUIDANCE",
    "PACKAGED",
    "Reading",
    "clean_clips",
    "guidance",
    "jerk",
    "load_pipeline",
    "read_clip",
    "sample",
]
