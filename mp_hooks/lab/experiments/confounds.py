"""What gives a clip's class away without any look at its motion, before and after `FlowSettings.equalise`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.discriminator.data import (
    FlowData,
    FlowSettings,
    split_by_video,
)
from mp_hooks.discriminator.evaluation import auc, logits_of, score, trivial_floor, trivial_statistics
from mp_hooks.discriminator.model import NORMALISATIONS, DiscriminatorConfig
from mp_hooks.discriminator.shards import gather
from mp_hooks.discriminator.train import TrainingConfig, fit
from mp_hooks.files import replacing

STATES = {"native": False, "equalised": True}
SINGLE = "single confound, AUC over clips"
DISCRIMINATORS = "AUC per flow field [95 %], held out by video"
STRATA = "AUC of the discriminator on generated clips that share a confound"


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
    """Three tables as text, also written to confounds.json and confounds.md in `out`.

    The AUC of every single confound over all clips; that of discriminators, held out by video, trained on native and on
    equalised data with both flow normalisations, beside the trivial floors; and that of the discriminator of
    `config.normalise` on held-out generated clips of one container, size or rate against all real.
    Raises MotionPromptError for folders that cannot be used.
    """
    out = Path(out)
    tables: dict[str, dict[str, dict[str, str]]] = {SINGLE: {}, DISCRIMINATORS: {}, STRATA: {}}

    def enter(table: str, row: str, column: str, value: str) -> None:
        tables[table].setdefault(row, {})[column] = value

    for state, equalise in STATES.items():
        state_settings = replace(settings, equalise=equalise)
        data = gather(real, fake, out / f"flow-{state}", config.flow, state_settings, exclude, flow_weights)
        for name, values in _per_clip(data, equalise).items():
            enter(SINGLE, name, state, f"{_separation(values, data):.3f}")
        train_clips, held_out_clips = split_by_video(data.clips, training.seed)
        train, held_out = data.of_clips(train_clips), data.of_clips(held_out_clips)
        enter(
            DISCRIMINATORS, "regression on mean flow and TV", state, _interval(trivial_floor(train, held_out), held_out)
        )
        ratio = trivial_floor(train, held_out, scale_free=True)
        enter(DISCRIMINATORS, "regression on their ratio", state, _interval(ratio, held_out))
        for normalise in NORMALISATIONS:
            tqdm.write(f"training on {state} data, {normalise} normalisation")
            with_normalisation = replace(config, normalise=normalise)
            model = fit(data, train_clips, held_out_clips, with_normalisation, training, pretrained=pretrained)
            logits = logits_of(model, held_out.flow)
            enter(DISCRIMINATORS, f"discriminator, {normalise} normalisation", state, _interval(logits, held_out))
            if normalise == config.normalise:
                for name, area in _strata(logits, held_out).items():
                    enter(STRATA, name, state, area)
    text = "\n\n".join(_markdown(title, rows) for title, rows in tables.items())
    with replacing(out / "confounds.json") as path:
        path.write_text(json.dumps(tables, indent=2) + "\n")
    with replacing(out / "confounds.md") as path:
        path.write_text(text + "\n")
    return text


def _per_clip(data: FlowData, equalised: bool) -> dict[str, Tensor]:
    """Each confound as a number a clip, as the discriminator's input has it; a constant tells nothing."""
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


def _interval(logits: Tensor, data: FlowData) -> str:
    found = score(logits, data)
    return f"{found.auc:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _strata(logits: Tensor, data: FlowData) -> dict[str, str]:
    """AUC of the real fields against generated ones that share a container, a shape or a rate."""
    groups: dict[str, set[int]] = {}
    for number in data.clip.unique().tolist():
        clip, fact = data.clips[number], data.facts[number]
        if not clip.real:
            for name in (
                f"container {clip.container}",
                "square" if fact.width == fact.height else "not square",
                "up to 8.5 frames a second" if fact.fps <= 8.5 else "more than 8.5 frames a second",
            ):
                groups.setdefault(name, set()).add(number)
    found = {}
    for name, numbers in sorted(groups.items()):
        chosen = (data.real > 0.5) | torch.isin(data.clip, torch.tensor(sorted(numbers)))
        found[f"{name} ({len(numbers)} clips)"] = f"{auc(logits[chosen], data.real[chosen]):.3f}"
    return found


def _markdown(title: str, rows: dict[str, dict[str, str]]) -> str:
    lines = [f"| {title} | {' | '.join(STATES)} |", "|---" * (1 + len(STATES)) + "|"]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(cells.get(s, '') for s in STATES)} |" for name, cells in rows.items()]
    )
