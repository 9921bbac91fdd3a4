"""The measures of a video file by name, and what takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow
from mp_hooks.lab.metrics.features import Encoder, consistency, load_clip, load_dino
from mp_hooks.lab.metrics.temporal import (
    at_vbench_rate,
    dynamic_degree,
    flow_jerk,
    flow_length,
    flow_variation,
    neighbouring_flow,
    temporal_flickering,
    warping_error,
)
from mp_hooks.video import read_frames, video_info


@dataclass(frozen=True)
class Measure:
    """What is measured: in words, the decimals shown, and whether more or less is better (None: neither)."""

    title: str
    digits: int
    higher_is_better: bool | None


VBENCH = {  # the poster's columns; all of them lie in [0, 1]
    "subject_consistency": Measure("subject consistency", 4, True),
    "background_consistency": Measure("background consistency", 4, True),
    "temporal_flickering": Measure("temporal flickering", 4, True),
    "motion_smoothness": Measure("motion smoothness", 4, True),
    "dynamic_degree": Measure("dynamic degree", 4, True),
    "overall_consistency": Measure("overall consistency", 4, True),
}
WEIGHTLESS = {  # units: squared grey levels of 0 to 1, px per px, px per frame cubed, px per frame
    "warping_error": Measure("warping x 1000", 3, False),
    "flow_variation": Measure("flow variation", 4, False),
    "flow_jerk": Measure("flow jerk", 3, False),
    "flow_length": Measure("flow length", 3, None),
}
MEASURES = {**VBENCH, **WEIGHTLESS}
MISSING = {  # measure: the remedy
    "subject_consistency": "needs DINO's weights: --dino FILE or --dino hub",
    "background_consistency": "needs CLIP's weights: --clip FILE or --clip hub",
    "motion_smoothness": "needs AMT's code and weights: --vbench-python PATH of an environment with VBench",
    "overall_consistency": "needs ViCLIP's code and weights: --vbench-python PATH of an environment with VBench",
}


@dataclass(frozen=True)
class Settings:
    """What decides a measure besides the video: the flow estimator, and weights as a file, "hub", or None."""

    flow: str = "pyramid"
    flow_weights: str | None = None
    dino: str | None = None
    clip: str | None = None


class Unmeasurable(MotionPromptError):
    """A video that cannot be read or is too short."""


class Measurer:
    """Takes every measure it has the weights for; networks are loaded once. `missing` tells the remedy of the others.

    Raises MotionPromptError for weights that are named and cannot be had.
    """

    def __init__(self, settings: Settings) -> None:
        self.flow = load_flow(settings.flow, settings.flow_weights)
        loaders = {
            "subject_consistency": (load_dino, settings.dino),
            "background_consistency": (load_clip, settings.clip),
        }
        self.encoders: dict[str, Encoder] = {
            name: load(weights) for name, (load, weights) in loaders.items() if weights is not None
        }
        self.missing = {name: remedy for name, remedy in MISSING.items() if name not in self.encoders}

    def __call__(self, path: Path) -> dict[str, float]:
        """The measures of a video of two frames or more, {name: value}, without those that are missing.

        Raises Unmeasurable for other files.
        """
        try:
            return self.measure(read_frames(path), video_info(path).fps)
        except MotionPromptError as error:
            raise Unmeasurable(str(error) if str(path) in str(error) else f"{path}: {error}") from error

    def measure(self, frames: Tensor, fps: float) -> dict[str, float]:
        """The measures of frames uint8 [t, 3, h, w] at `fps` a second."""
        flow = neighbouring_flow(frames, self.flow)
        sampled = at_vbench_rate(frames, fps)
        sampled_flow = flow if len(sampled) in (len(frames), 1) else neighbouring_flow(sampled, self.flow)
        features = {name: consistency(encode(frames)) for name, encode in self.encoders.items()}
        return {
            **features,
            "temporal_flickering": temporal_flickering(frames),
            "dynamic_degree": float(dynamic_degree(sampled_flow)),
            "warping_error": 1000 * warping_error(frames, flow),
            "flow_variation": flow_variation(flow),
            "flow_jerk": flow_jerk(flow),
            "flow_length": flow_length(flow),
        }
