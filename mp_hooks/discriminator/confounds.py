"""What gives a clip's class away without any look at its motion, before and after `FlowSettings.equalise`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from mp_hooks.discriminator.data import FlowData, FlowSettings, cached_flow, find_clips, split_by_video
from mp_hooks.discriminator.evaluation import auc, judge, score, trivial_floor, trivial_statistics
from mp_hooks.discriminator.model import DiscriminatorConfig
from mp_hooks.discriminator.train import TrainingConfig, fit
from mp_hooks.files import replacing
from mp_hooks.flow import load_flow

STATES = {"native": False, "equalised": True}


def measure_confounds(
    real: str | Path,
    fake: str | Path,
    out: str | Path,
    config: DiscriminatorConfig,
    settings: FlowSettings,
    training: TrainingConfig,
    *,
    exclude: Sequence[str] = (),
    flow_weights: str | Path | None = None,
    pretrained: bool | str | Path = False,
) -> str:
    """Two tables as text, also written to confounds.json and confounds.md in `out`.

    The first has the AUC of every single confound over all clips, the second that of judges (per flow field, held out
    by video) trained on native and on equalised data, each with both flow normalisations and beside the trivial floor.
    Raises MotionPromptError for folders that cannot be used.
    """
    out = Path(out)
    clips = find_clips(real, fake, exclude)
    estimator = load_flow(config.flow, flow_weights)
    single: dict[str, dict[str, float]] = {}
    judges: dict[str, dict[str, dict]] = {}
    for state, equalise in STATES.items():
        data = cached_flow(out / f"flow-{state}.safetensors", clips, estimator, replace(settings, equalise=equalise))
        for name, values in _per_clip(data, equalise).items():
            single.setdefault(name, {})[state] = _separation(values, data)
        train_clips, held_out_clips = split_by_video(data.clips, training.seed)
        held_out = data.of_clips(held_out_clips)
        floor = score(trivial_floor(data.of_clips(train_clips), held_out), held_out)
        judges.setdefault("regression on mean flow and TV", {})[state] = asdict(floor)
        for normalise in ("fixed", "magnitude"):
            model = fit(
                data, train_clips, held_out_clips, replace(config, normalise=normalise), training, pretrained=pretrained
            )
            result = score(judge(model, held_out.flow), held_out)
            judges.setdefault(f"judge, {normalise} normalisation", {})[state] = asdict(result)
    text = _table(single, judges)
    with replacing(out / "confounds.json") as path:
        path.write_text(json.dumps({"single": single, "judges": judges}, indent=2) + "\n")
    with replacing(out / "confounds.md") as path:
        path.write_text(text + "\n")
    return text


def _per_clip(data: FlowData, equalised: bool) -> dict[str, Tensor]:
    """Each confound as a number a clip, as the judge's input has it; a constant tells nothing."""
    statistics = trivial_statistics(data.flow)
    means = torch.stack([statistics[data.clip == number].mean(0) for number in range(len(data.clips))])
    return {
        "aspect ratio": torch.tensor([1.0 if equalised else fact.width / fact.height for fact in data.facts]),
        "seconds between frames": torch.tensor([fact.step for fact in data.facts]),
        "sharpness (size, container, dithering)": torch.tensor([fact.sharpness for fact in data.facts]),
        "mean flow": means[:, 0],
        "total variation of the flow": means[:, 1],
    }


def _separation(values: Tensor, data: FlowData) -> float:
    """AUC of one number a clip, in whichever direction it separates."""
    area = auc(values, torch.tensor([float(clip.real) for clip in data.clips]))
    return max(area, 1 - area)


def _table(single: dict[str, dict[str, float]], judges: dict[str, dict[str, dict]]) -> str:
    lines = ["| single confound, AUC over clips | native | equalised |", "|---|---|---|"]
    lines += [f"| {name} | {found['native']:.3f} | {found['equalised']:.3f} |" for name, found in single.items()]
    lines += ["", "| held out by video, AUC per flow field [95 %] | native | equalised |", "|---|---|---|"]
    for name, found in judges.items():
        cells = [f"{found[s]['auc']:.3f} [{found[s]['low']:.3f}, {found[s]['high']:.3f}]" for s in STATES]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
