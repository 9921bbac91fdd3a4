"""Does a discriminator know generators and collections it has never seen? Cross-validation over sources, not clips."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mp_hooks.discriminator.data import FlowData, folds_by_source
from mp_hooks.discriminator.evaluation import (
    Gain,
    SourceScore,
    logits_of,
    rigidity,
    score_by_source,
    trivial_floor,
)
from mp_hooks.discriminator.model import DiscriminatorConfig
from mp_hooks.discriminator.train import TrainingConfig, fit
from mp_hooks.files import replacing

REGRESSION, RIGIDITY = "regression on mean flow and TV", "rigidity"


@dataclass(frozen=True)
class CrossValidation:
    """Scores by unseen source of a discriminator and of its two floors."""

    discriminator: SourceScore
    floors: dict[str, SourceScore]

    def __str__(self) -> str:
        """Markdown: the scores in all and over the floors, then each generator and each collection, worst first."""
        scores = {"discriminator": self.discriminator, **self.floors}
        lines = [
            f"| AUC per clip of unseen sources [95 %] | | {' | '.join(f'over {name}' for name in self.floors)} |",
            "|---" * (2 + len(self.floors)) + "|",
            *(
                f"| {name} | {score.auc:.3f} [{score.low:.3f}, {score.high:.3f}] | "
                + " | ".join("" if score is floor else _gain(score.over(floor)) for floor in self.floors.values())
                + " |"
                for name, score in scores.items()
            ),
        ]
        for kind in ("generators", "collections"):
            lines += ["", f"| {kind}, worst first | clips | {' | '.join(scores)} |", "|---" * (2 + len(scores)) + "|"]
            lines += [
                f"| {name} | {clips} | "
                + " | ".join(f"{getattr(s, kind)[name][0]:.3f}" for s in scores.values())
                + " |"
                for name, (_, clips) in getattr(self.discriminator, kind).items()
            ]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """cross.md, and cross.json with the same."""
        values = {name: asdict(score) for name, score in {"discriminator": self.discriminator, **self.floors}.items()}
        for score in values.values():
            score.pop("resampled")
        with replacing(folder / "cross.json") as path:
            path.write_text(json.dumps(values, indent=2) + "\n")
        with replacing(folder / "cross.md") as path:
            path.write_text(f"{self}\n")


def cross_validate(
    data: FlowData, config: DiscriminatorConfig, training: TrainingConfig, pretrained: bool | str | Path = False
) -> CrossValidation:
    """Train once a fold of `folds_by_source`; each clip is rated by the discriminator that has not seen its source.

    Raises MotionPromptError for fewer than two sources of a class.
    """
    tests: dict[str, list] = {"discriminator": [], REGRESSION: [], RIGIDITY: []}
    for number, (train, held_out) in enumerate(folds_by_source(data.clips, seed=training.seed), 1):
        tqdm.write(f"fold {number}: {len(train)} clips in training, {len(held_out)} of unseen sources")
        model = fit(data, train, held_out, config, training, pretrained=pretrained)
        seen, unseen = data.of_clips(train), data.of_clips(held_out)
        tests["discriminator"].append((logits_of(model, unseen.flow), unseen))
        tests[REGRESSION].append((trivial_floor(seen, unseen), unseen))
        tests[RIGIDITY].append((rigidity(unseen.flow), unseen))
    scores = {name: score_by_source(parts) for name, parts in tests.items()}
    return CrossValidation(scores.pop("discriminator"), scores)


def _gain(gain: Gain) -> str:
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
