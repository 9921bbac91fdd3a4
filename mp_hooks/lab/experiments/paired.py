"""The paired experiment: the same prompts and seeds under every method, measured clip by clip; can be resumed.

OUT/clips holds what was sampled and OUT/traces what guidance did, one file a method and chunk, each written whole.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mp_hooks.config import MotionPromptConfig
from mp_hooks.discriminator import FlowDiscriminator, default_discriminator
from mp_hooks.errors import unknown_name
from mp_hooks.files import replacing
from mp_hooks.flow import FlowEstimator, load_flow
from mp_hooks.lab.experiments.methods import BASELINE, METHODS, sample_with
from mp_hooks.lab.metrics import (
    Comparison,
    Measure,
    clip_logits,
    compare,
    dynamic_degree,
    flow_length,
    neighbouring_flow,
    temporal_flickering,
    warping_error,
)
from mp_hooks.lab.mini.clips import SPAN, captions, sample_scenes
from mp_hooks.lab.mini.model import load_pipeline, pipeline_on
from mp_hooks.lab.mini.rigidity import layer_motion
from mp_hooks.lab.mini.tracking import at_tracking_size, jerk, track_object, velocity
from mp_hooks.processes import workers_for
from mp_hooks.runs import claim
from mp_hooks.video import as_frames

SETTINGS_FILE, MEASURES_FILE = "experiment.json", "measures.json"

MEASURES = {
    "flickering": Measure("temporal flickering (VBench)", 4, True),
    "warping": Measure("warping error x 1000", 3, False),
    "morphing": Measure("morphing: flow that no layer's motion explains, px", 3, False),
    "logit": Measure("logit of the discriminator that guides", 3, True),
    "jerk": Measure("jerk of the object, px per frame cubed", 2, False),
    "missing": Measure("frames without the object", 2, False),
    "dynamic": Measure("dynamic degree (VBench)", 3, None),
    "length": Measure("mean flow, px per frame", 3, None),
    "speed": Measure("speed of the object, px per frame", 3, None),
    "camera": Measure("motion of the camera, px per frame", 3, None),
    "caption": Measure("caption match", 3, True),
}


@dataclass(frozen=True)
class Experiment:
    """What decides a result: prompts x seeds clips a method, drawn from `seed`, of the pipeline in `model`.

    Prompts are captions of scenes drawn from `seed`, without quality words and without the initial word. Two
    experiments of different seeds share neither prompts nor noise. The clips of a batch are sampled together and draw
    the same frame pairs; a chunk is one batch.
    """

    model: str
    seed: int
    prompts: int
    seeds: int
    flow: str  # estimator that the measures use
    flow_weights: str | None
    guidance: MotionPromptConfig
    batch: int = 4

    def clips(self) -> list[tuple[str, tuple[str, str, str], int]]:
        """(prompt, its attributes, noise seed) of every clip, in order."""
        # what is drawn beside captions depends on the length, and captions on what was drawn before
        scenes = sample_scenes(self.prompts, torch.Generator().manual_seed(self.seed), held_out=None, frames=SPAN)
        scenes.words[:, :2] = False
        drawn = list(zip(captions(scenes), scenes.attributes(), strict=True))
        return [
            (*drawn[i], 1_000_000 * self.seed + self.seeds * i + j)
            for i in range(self.prompts)
            for j in range(self.seeds)
        ]

    def chunks(self) -> int:
        """Number of batches a method is sampled in."""
        return -(-self.prompts * self.seeds // self.batch)

    def claim(self, out: Path) -> None:
        """Make `out` this experiment's folder, or find that its clips are; they may be measured anew."""
        claim(
            out / SETTINGS_FILE, {"experiment": asdict(self)}, may_change=["experiment.flow", "experiment.flow_weights"]
        )


def run(
    experiment: Experiment, methods: Sequence[str], out: Path, workers: int | None = None, device: str = "cpu"
) -> dict[str, dict]:
    """Sample what is not in `out` yet, measure everything; returns {method: {measure: [value a clip]}}.

    Workers are processes of one thread: unless told as many as there are cores, on a GPU one. Raises MotionPromptError
    for an unknown method and for a folder that holds another experiment.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, list(METHODS))
    load_pipeline(experiment.model)  # a missing model is told before anything is written
    experiment.claim(out)
    tasks = [(method, chunk) for chunk in range(experiment.chunks()) for method in methods]
    workers = min(workers or workers_for(device), len(tasks))
    context = multiprocessing.get_context("spawn")
    results: dict[str, dict[str, list[float]]] = {method: {name: [] for name in MEASURES} for method in methods}
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        done = pool.map(
            sample_and_measure,
            *zip(*[(experiment, method, chunk, out, device) for method, chunk in tasks], strict=True),
        )
        for (method, _), rows in zip(tasks, tqdm(done, total=len(tasks), desc="sampling", unit="batch"), strict=True):
            for row in rows:
                for name, value in row.items():
                    results[method][name].append(value)
    with replacing(out / MEASURES_FILE) as path:
        path.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results


def comparisons(results: dict[str, dict], against: str = BASELINE) -> dict[str, dict[str, Comparison]]:
    """{method: {measure: paired comparison with the method `against`}} for all other methods."""
    reference = results[against]
    return {
        method: {name: compare(reference[name], values[name]) for name in MEASURES}
        for method, values in results.items()
        if method != against
    }


def load_clips(out: Path, method: str, chunk: int) -> Tensor:
    """The clips of one method and chunk, uint8 [b, t, 3, h, w]."""
    return load_file(_clips_file(out, method, chunk))["clips"]


def trace_file(out: Path, method: str, chunk: int) -> Path:
    """Where guidance wrote what it did in one method and chunk."""
    return out / "traces" / f"{method}-{chunk:03d}.jsonl"


def _clips_file(out: Path, method: str, chunk: int) -> Path:
    return out / "clips" / f"{method}-{chunk:03d}.safetensors"


@cache
def _discriminator(folder: str, device: str) -> FlowDiscriminator:
    return FlowDiscriminator.from_pretrained(folder).to(device)


@cache
def _estimator(name: str, weights: str | None, device: str) -> FlowEstimator:
    return load_flow(name, weights, device=device)


def sample_and_measure(
    experiment: Experiment, method: str, chunk: int, out: Path, device: str = "cpu"
) -> list[dict[str, float]]:
    """Sample a chunk unless it is there, and measure it: a row a clip."""
    part = experiment.clips()[chunk * experiment.batch : (chunk + 1) * experiment.batch]
    path = _clips_file(out, method, chunk)
    try:
        clips = load_clips(out, method, chunk)
    except (SafetensorError, OSError):
        config = replace(experiment.guidance, trace=str(trace_file(out, method, chunk)), progress=False)
        prompts, seeds = [prompt for prompt, _, _ in part], [seed for _, _, seed in part]
        video = sample_with(method, pipeline_on(device, experiment.model), prompts, seeds, config).cpu()
        clips = torch.stack([as_frames(clip) for clip in video])
        with replacing(path) as temporary:
            save_file({"clips": clips}, temporary)
    clips = clips.to(device)
    estimator = _estimator(experiment.flow, experiment.flow_weights, device)
    rows = [measure(clip, wanted, estimator) for clip, (_, wanted, _) in zip(clips, part, strict=True)]
    discriminator = _discriminator(str(experiment.guidance.discriminator or default_discriminator()), device)
    own_flow = _estimator(discriminator.config.flow, experiment.guidance.flow_weights, device)
    logits = clip_logits(clips.transpose(1, 2).float() / 127.5 - 1, discriminator, own_flow)
    return [{**row, "logit": logit} for row, logit in zip(rows, logits.tolist(), strict=True)]


def measure(frames: Tensor, wanted: tuple[str, str, str], estimator: FlowEstimator) -> dict[str, float]:
    """Every measure of one clip but its logit, uint8 [t, 3, h, w], whose caption named the attributes `wanted`."""
    flow = neighbouring_flow(frames, estimator)
    video = at_tracking_size(frames.transpose(0, 1).float() / 127.5 - 1)
    tracked = track_object(video.cpu())
    moved = layer_motion(video, estimator)
    return {
        "flickering": temporal_flickering(frames),
        "warping": 1000 * warping_error(frames, flow),
        "morphing": moved.morphing,
        "jerk": jerk(tracked.path),
        "missing": float(tracked.path[:, 0].isnan().sum()),
        "dynamic": float(dynamic_degree(flow)),
        "length": flow_length(flow),
        "speed": velocity(tracked.path).norm().item(),
        "camera": moved.camera,
        "caption": float(tracked.attributes == wanted),
    }
