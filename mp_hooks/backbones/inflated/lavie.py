"""LaVie's base model: its VideoGenPipeline is a diffusers pipeline of its own. Facts carry the commit in patches/."""

from __future__ import annotations

from mp_hooks.backbones.inflated.pipeline import InflatedStableDiffusion


class LaVie(InflatedStableDiffusion):
    """Its layers in time know frames by their distance, so that any sub-clip will do."""

    name = "lavie"
    module = "pipeline_videogen"
    pipeline = "VideoGenPipeline"
    copies_argument = "num_images_per_prompt"
