"""ModelScope's pipelines: text-to-video, its video-to-video relative, and I2VGen-XL."""

from __future__ import annotations

from mp_hooks.backbones.diffusers.branches import SingleFrames
from mp_hooks.guidance import Step


class TextToVideoSD(SingleFrames):
    """Both branches in one call, a guidance scale that is not stored, a VAE of single frames."""

    name = "diffusers-text-to-video-sd"
    pipelines = ("TextToVideoSDPipeline", "VideoToVideoSDPipeline")
    denoiser = "unet"
    latents_argument = "sample"

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.arguments["guidance_scale"] > 1

    def scale(self, step: Step) -> float:
        return self.arguments["guidance_scale"]


class I2VGenXL(SingleFrames):
    """A picture beside the text; its own text encoding knows whether there is a negative branch."""

    name = "diffusers-i2vgen-xl"
    pipelines = ("I2VGenXLPipeline",)
    denoiser = "unet"
    latents_argument = "sample"
