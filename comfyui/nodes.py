"""MotionPrompt's nodes. Each only calls mp_hooks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mp_hooks.backbones.comfyui.model import KEY, ComfyUI
from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.errors import MotionPromptError

PRESETS = ["exact", "paper"]  # the cheaper ones need sub-clips, or latents of Stable Diffusion
OURS = {"strict": True, "progress": False}  # an error, because nobody sees a warning here; ComfyUI has a bar of its own
CONFIG = {option.name: option for option in fields(MotionPromptConfig)}
ADVANCED = [
    *("tokens", "placement", "init_word", "iterations", "learning_rate", "optimizer"),
    *("pairs", "min_interval", "max_interval", "lambda_disc", "lambda_tv", "lambda_reg", "lambda_photo"),
    *("discriminator", "flow", "flow_weights", "checkpointing", "precision"),
]


def widget(name: str) -> tuple[Any, dict[str, Any]]:
    """An option of the configuration as an input of a node; text that is left empty stands for none."""
    option = CONFIG[name]
    settings = {"default": option.default, "tooltip": option.metadata["help"]}
    if "choices" in option.metadata:
        return list(option.metadata["choices"]), settings
    kind = option.type.split(" | ")[0]
    if kind == "str":
        return "STRING", {**settings, "default": settings["default"] or ""}
    limits = {"min": option.metadata["at_least"], "max": option.metadata.get("at_most", 1000)}
    return kind.upper(), {**settings, **limits, **({"step": 0.001, "round": False} if kind == "float" else {})}


class MotionPrompt:
    """MODEL -> MODEL whose samplings are guided."""

    CATEGORY = "MotionPrompt"
    DESCRIPTION = "Guides the sampling of a video by its optical flow (MotionPrompt, arXiv 2411.15540)."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "guide"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = "the positive prompt: the very text that the sampler's positive conditioning is made of"
        strength = "how far an update moves the tokens: a factor on the preset's learning rate; 0 changes nothing"
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Wan or LTX-Video, with its LoRAs"}),
                "clip": ("CLIP", {"tooltip": "the text encoder of the positive prompt"}),
                "vae": ("VAE", {"tooltip": "the VAE that decodes this model's latents"}),
                "text": ("STRING", {"multiline": True, "tooltip": text}),
                "preset": (PRESETS, {"tooltip": "exact: this project's loss; paper: the paper's settings"}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.05, "tooltip": strength}),
                "start": widget("start"),
                "stop": widget("stop"),
            },
            "optional": {"options": ("MOTIONPROMPT_OPTIONS", {"tooltip": "from MotionPrompt Options"})},
        }

    def guide(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        text: str,
        preset: str,
        strength: float,
        start: float,
        stop: float,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any]:
        given = {**OURS, **(options or {}), "start": start, "stop": stop}
        given["learning_rate"] = strength * load_config(preset=preset, **given).learning_rate
        return (ComfyUI(clip, vae, text, load_config(preset=preset, **given)).guide(model),)


class MotionPromptOptions:
    """What is seldom changed."""

    CATEGORY = "MotionPrompt"
    DESCRIPTION = "Further options of MotionPrompt; what is left as it is stays the preset's."
    RETURN_TYPES = ("MOTIONPROMPT_OPTIONS",)
    RETURN_NAMES = ("options",)
    FUNCTION = "options"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {name: widget(name) for name in ADVANCED}}

    def options(self, **given: Any) -> tuple[dict[str, Any]]:
        return ({name: value for name, value in given.items() if value not in (CONFIG[name].default, "")},)


class MotionPromptTrace:
    """What the last sampling's updates came to, drawn."""

    CATEGORY = "MotionPrompt"
    DESCRIPTION = "Draws the loss and the tokens' cosine to their start over the updates of a guided sampling."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "the guided model that was sampled"}),
                "samples": ("LATENT", {"tooltip": "what the sampler made of it: the trace is drawn after that"}),
            }
        }

    def draw(self, model: Any, samples: Any) -> tuple[Any]:
        from mp_hooks.lab.report.pictures import trace_image

        guided = model.get_attachment(KEY)
        if guided is None:
            raise MotionPromptError("this model is not guided; connect the MODEL that comes out of MotionPrompt")
        return (trace_image(guided.records).permute(1, 2, 0)[None].float() / 255,)


NODES = {
    "MotionPrompt": MotionPrompt,
    "MotionPrompt Options": MotionPromptOptions,
    "MotionPrompt Trace": MotionPromptTrace,
}
