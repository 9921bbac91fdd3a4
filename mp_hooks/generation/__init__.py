"""Clips of many prompts with any saved diffusers pipeline: what `motionprompt generate` does, for Python too."""

from mp_hooks.generation.pipeline import DTYPES, OFFLOADS, Generation, load_pipeline
from mp_hooks.generation.prompts import Clip, Prompt, clips_of, read_prompts
from mp_hooks.generation.run import Sampler, begin, generate

__all__ = [
    "DTYPES",
    "OFFLOADS",
    "Clip",
    "Generation",
    "Prompt",
    "Sampler",
    "begin",
    "clips_of",
    "generate",
    "load_pipeline",
    "read_prompts",
]
