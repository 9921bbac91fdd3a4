"""The embedded mini text-to-video model: drawn clips, a small AnimateDiff pipeline, its training and evaluation."""

from mp_hooks.mini.clips import clean_clips
from mp_hooks.mini.model import load_pipeline, sample
from mp_hooks.mini.reading import Reading, jerk, read_clip

__all__ = ["Reading", "clean_clips", "jerk", "load_pipeline", "read_clip", "sample"]
