"""The paired experiment: the same prompts and seeds under every arm, measured clip by clip; can be resumed.

OUT/clips holds what was sampled and OUT/traces what guidance did, one file an arm and chunk, each written whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mp_hooks import __version__
from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.files import replacing
from mp_hooks.flow import FlowEstimator, load_flow
from mp_hooks.guidance import MotionPromptConfig
from mp_hooks.lab.experiments.methods import ARMS, BASELINE, sample_arm
from mp_hooks.lab.metrics import (
    Comparison,
    Measure,
    compare,
    dynamic_degree,
    flow_length,
    neighbouring_flow,
    temporal_flickering,
    warping_error,
)
from mp_hooks.lab.mini.clips import captions, sample_scenes
from mp_hooks.lab.mini.model import load_pipeline
from mp_hooks.lab.mini.reading import jerk, read_clip, velocity
from mp_hooks.video import as_frames

CHUNK = 8  # clips sampled in one batch
SETTINGS_FILE, MEASURES_FILE = "experiment.json", "measures.json"
MEASURED_WITH = ("flow", "flow_weights")  # of Experiment: these decide no clip, and the same clips may be measured anew


MEASURES = {
    "flickering": Measure("temporal flickering (VBench)", 4, True),
    "warping": Measure("warping error x 1000", 3, False),
    "jerk": Measure("jerk of the object, px per frame cubed", 2, False),
    "missing": Measure("frames without the object", 2, False),
    "dynamic": Measure("dynamic degree (VBench)", 3, None),
    "length": Measure("mean flow, px per frame", 3, None),
    "speed": Measure("speed of the object, px per frame", 3, None),
    "caption": Measure("caption match", 3, True),
}


@dataclass(frozen=True)
class Experiment:
    """What decides a result: prompts x seeds clips an arm, drawn from `seed`, of the pipeline in `model`.

    Prompts are captions of scenes drawn from `seed`, without quality words and without the initial word. Two
    experiments of different seeds share neither prompts nor noise.
    """

    model: str
    seed: int
    prompts: int
    seeds: int
    flow: str  # estimator that the measures use
    flow_weights: str | None
    guidance: MotionPromptConfig

    def clips(self) -> list[tuple[str, tuple[str, str, str], int]]:
        """(prompt, its attributes, noise seed) of every clip, in order."""
        scenes = sample_scenes(self.prompts, torch.Generator().manual_seed(self.seed), held_out=None)
        scenes.words[:, :2] = False
        drawn = list(zip(captions(scenes), scenes.attributes(), strict=True))
        return [
            (*drawn[i], 1_000_000 * self.seed + self.seeds * i + j)
            for i in range(self.prompts)
            for j in range(self.seeds)
        ]

    def chunks(self) -> int:
        """Number of batches an arm is sampled in."""
        return -(-self.prompts * self.seeds // CHUNK)


def run(experiment: Experiment, arms: Sequence[str], out: Path, workers: int | None = None) -> dict[str, dict]:
    """Sample what is not in `out` yet, measure everything; returns {arm: {measure: [value a clip]}}.

    Workers are processes of one thread, as many as there are cores unless told. Raises MotionPromptError for an
    unknown arm and for a folder that holds another experiment.
    """
    for arm in arms:
        if arm not in ARMS:
            raise unknown_name("arm", arm, list(ARMS))
    load_pipeline(experiment.model)  # a missing model is told before anything is written
    claim(out, experiment)
    tasks = [(arm, chunk) for chunk in range(experiment.chunks()) for arm in arms]
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    context = multiprocessing.get_context("spawn")
    results: dict[str, dict[str, list[float]]] = {arm: {name: [] for name in MEASURES} for arm in arms}
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        done = pool.map(sample_and_measure, *zip(*[(experiment, arm, chunk, out) for arm, chunk in tasks], strict=True))
        for (arm, _), rows in zip(tasks, tqdm(done, total=len(tasks), desc="sampling", unit="batch"), strict=True):
            for row in rows:
                for name, value in row.items():
                    results[arm][name].append(value)
    with replacing(out / MEASURES_FILE) as path:
        path.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results


def comparisons(results: dict[str, dict], against: str = BASELINE) -> dict[str, dict[str, Comparison]]:
    """{arm: {measure: paired comparison with the arm `against`}} for all other arms."""
    reference = results[against]
    return {
        arm: {name: compare(reference[name], values[name]) for name in MEASURES}
        for arm, values in results.items()
        if arm != against
    }


def load_clips(out: Path, arm: str, chunk: int) -> Tensor:
    """The clips of one arm and chunk, uint8 [b, t, 3, h, w]."""
    return load_file(_clips_file(out, arm, chunk))["clips"]


def trace_file(out: Path, arm: str, chunk: int) -> Path:
    """Where guidance wrote what it did in one arm and chunk."""
    return out / "traces" / f"{arm}-{chunk:03d}.jsonl"


def _clips_file(out: Path, arm: str, chunk: int) -> Path:
    return out / "clips" / f"{arm}-{chunk:03d}.safetensors"


def claim(out: Path, experiment: Experiment) -> None:
    """Make `out` this experiment's folder, or find that its clips are."""
    settings = json.loads(json.dumps(asdict(experiment)))
    path = out / SETTINGS_FILE
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["experiment"]
        except (ValueError, KeyError, OSError) as error:
            raise MotionPromptError(f"cannot read {path}; give another folder") from error
        changed = {name for name in settings if before.get(name) != settings[name]}
        if changed - set(MEASURED_WITH):
            raise MotionPromptError(
                f"{out} holds an experiment with another {', '.join(sorted(changed))}; repeat that one, or give "
                "another folder"
            )
        if not changed:
            return
    import diffusers

    versions = {"mp_hooks": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    record = {"experiment": settings, "versions": {**versions, "python": platform.python_version()}}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _start_worker() -> None:
    torch.set_num_threads(1)


@cache
def _pipeline(model: str) -> Any:
    return load_pipeline(model)


@cache
def _estimator(name: str, weights: str | None) -> FlowEstimator:
    return load_flow(name, weights)


def sample_and_measure(experiment: Experiment, arm: str, chunk: int, out: Path) -> list[dict[str, float]]:
    """Sample a chunk unless it is there, and measure it: a row a clip."""
    part = experiment.clips()[chunk * CHUNK : (chunk + 1) * CHUNK]
    path = _clips_file(out, arm, chunk)
    try:
        clips = load_clips(out, arm, chunk)
    except (SafetensorError, OSError):
        config = replace(experiment.guidance, trace=str(trace_file(out, arm, chunk)), progress=False)
        prompts, seeds = [prompt for prompt, _, _ in part], [seed for _, _, seed in part]
        video = sample_arm(arm, _pipeline(experiment.model), prompts, seeds, config)
        clips = torch.stack([as_frames(clip) for clip in video])
        with replacing(path) as temporary:
            save_file({"clips": clips}, temporary)
    estimator = _estimator(experiment.flow, experiment.flow_weights)
    return [measure(clip, wanted, estimator) for clip, (_, wanted, _) in zip(clips, part, strict=True)]


def measure(frames: Tensor, wanted: tuple[str, str, str], estimator: FlowEstimator) -> dict[str, float]:
    """Every measure of one clip, uint8 [t, 3, h, w], whose caption named the attributes `wanted`."""
    flow = neighbouring_flow(frames, estimator)
    reading = read_clip(frames.transpose(0, 1).float() / 127.5 - 1)
    return {
        "flickering": temporal_flickering(frames),
        "warping": 1000 * warping_error(frames, flow),
        "jerk": jerk(reading.path),
        "missing": float(reading.path[:, 0].isnan().sum()),
        "dynamic": float(dynamic_degree(flow)),
        "length": flow_length(flow),
        "speed": velocity(reading.path).norm().item(),
        "caption": float(reading.attributes == wanted),
    }
