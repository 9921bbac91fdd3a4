"""Which of two videos of the same prompt does a discriminator prefer? For results published with a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path

from mp_hooks.discriminator.data import FlowData, find_clips
from mp_hooks.discriminator.evaluation import Share, logits_of, trivial_statistics
from mp_hooks.discriminator.model import FlowDiscriminator
from mp_hooks.errors import MotionPromptError

BASELINE = "baseline"
NO_PAIRS = "no pairs: the videos' INDEX.tsv must give pair_id and pair_role (baseline, or another)"


def unpaired(videos: Path, exclude: Sequence[str] = ()) -> list[str]:
    """`exclude`, and globs of the clips below `videos` that are in no pair. Raises MotionPromptError when none is."""
    clips = find_clips(videos, False, exclude)
    alone = [escape(clip.path) for clip in clips if not (clip.pair and clip.role)]
    if len(alone) == len(clips):
        raise MotionPromptError(NO_PAIRS)
    return [*exclude, *alone]


def preferences(model: FlowDiscriminator, data: FlowData) -> dict[str, dict[str, Share]]:
    """For each source of `data` and for what rates a clip: in how many pairs the result wins over its baseline.

    A clip's logit is the mean over its fields. "less motion" and "smoother flow" are the two trivial statistics, which
    tell what a discriminator adds to them. Raises MotionPromptError when no two clips make a pair.
    """
    statistics = trivial_statistics(data.flow)
    measures = {
        "discriminator": logits_of(model, data.flow),
        "less motion": -statistics[:, 0],
        "smoother flow for its motion": statistics[:, 0] - statistics[:, 1],
    }
    pairs: dict[str, dict[bool, int]] = {}
    for number, clip in enumerate(data.clips):
        if clip.pair and clip.role:
            pairs.setdefault(clip.pair, {})[clip.role == BASELINE] = number
    found: dict[str, dict[str, list[bool]]] = {}
    for numbers in pairs.values():
        if len(numbers) == 2:
            source = data.clips[numbers[False]].source
            for name, values in measures.items():
                result, baseline = (values[data.clip == numbers[role]].mean() for role in (False, True))
                found.setdefault(source, {}).setdefault(name, []).append(bool(result > baseline))
    if not found:
        raise MotionPromptError(NO_PAIRS)
    return {
        source: {name: Share(sum(won), len(won)) for name, won in by_measure.items()}
        for source, by_measure in found.items()
    }
