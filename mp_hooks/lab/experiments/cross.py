"""Does a discriminator that knows one generator know another? Trained on each source, tested on every other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mp_hooks.discriminator.data import FlowData, split_by_video
from mp_hooks.discriminator.evaluation import Score, logits_of, score, trivial_floor
from mp_hooks.discriminator.model import DiscriminatorConfig
from mp_hooks.discriminator.train import TrainingConfig, fit
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.lab.report.plots import as_svg, new_figure


@dataclass(frozen=True)
class CrossTable:
    """Scores of discriminators and of trivial floors by (source trained on, source tested on)."""

    names: list[str]
    discriminators: dict[tuple[str, str], Score]
    floors: dict[tuple[str, str], Score]

    def __str__(self) -> str:
        """Two Markdown tables of AUC per flow field with 95 % intervals, rows trained on, columns tested on."""
        return "\n\n".join(
            "\n".join(
                [
                    f"| {title} | {' | '.join(self.names)} |",
                    "|---" * (1 + len(self.names)) + "|",
                    *(
                        f"| {row} | {' | '.join(_cell(scores[row, column]) for column in self.names)} |"
                        for row in self.names
                    ),
                ]
            )
            for title, scores in (
                ("discriminator", self.discriminators),
                ("regression on mean flow and TV", self.floors),
            )
        )

    def save(self, folder: Path) -> None:
        """cross.json, cross.md and cross.svg, the discriminators' table in colour."""
        values = {
            name: {row: {column: asdict(scores[row, column]) for column in self.names} for row in self.names}
            for name, scores in (("discriminator", self.discriminators), ("floor", self.floors))
        }
        with replacing(folder / "cross.json") as path:
            path.write_text(json.dumps(values, indent=2) + "\n")
        with replacing(folder / "cross.md") as path:
            path.write_text(f"{self}\n")
        self._draw(folder / "cross.svg")

    def _draw(self, path: Path) -> None:
        count = len(self.names)
        areas = [[self.discriminators[row, column].auc for column in self.names] for row in self.names]
        figure = new_figure(1.1 * count + 2, 0.8 * count + 1.5)
        axis = figure.subplots()
        image = axis.imshow(areas, vmin=0.5, vmax=1, cmap="viridis", aspect="auto")
        for i, row in enumerate(areas):
            for j, area in enumerate(row):
                axis.text(j, i, f"{area:.2f}", ha="center", va="center", color="white" if area < 0.85 else "black")
        axis.set_xticks(range(count), self.names, rotation=30, ha="right")
        axis.set_yticks(range(count), self.names)
        axis.set_xlabel("tested on")
        axis.set_ylabel("trained on")
        figure.colorbar(image, label="AUC per flow field against real video")
        with replacing(path) as temporary:
            temporary.write_text(as_svg(figure), encoding="utf-8")


def cross_generators(data: FlowData, config: DiscriminatorConfig, training: TrainingConfig) -> CrossTable:
    """Train a discriminator on each generated source of `data` against the real clips, and test it on every source.

    A fifth of the real clips and of every source is held out, groups whole. The tests use the held-out real clips, and
    of a source not trained on all clips of groups (prompts, pairs) that were not trained on. Raises MotionPromptError
    for fewer than two sources.
    """
    names = sorted({clip.source for clip in data.clips if not clip.real})
    if len(names) < 2:
        raise MotionPromptError(
            "a table across generators needs two generated sources; give a folder with a subfolder each"
        )
    train, held_out = split_by_video(data.clips, training.seed)
    discriminators: dict[tuple[str, str], Score] = {}
    floors: dict[tuple[str, str], Score] = {}
    for row in names:
        seen = [i for i in train if data.clips[i].real or data.clips[i].source == row]
        groups = {data.clips[i].group for i in seen}
        tqdm.write(f"training on {row}")
        model = fit(data, seen, held_out, config, training)
        for column in names:
            tested = [
                i
                for i, clip in enumerate(data.clips)
                if (clip.real and i in held_out) or (clip.source == column and clip.group not in groups)
            ]
            part = data.of_clips(tested)
            if part.real.min() > 0:
                raise MotionPromptError(f"no clip of {column} is left to test on; give more of its videos")
            discriminators[row, column] = score(logits_of(model, part.flow), part)
            floors[row, column] = score(trivial_floor(data.of_clips(seen), part), part)
    return CrossTable(names, discriminators, floors)


def _cell(score: Score) -> str:
    return f"{score.auc:.2f} [{score.low:.2f}, {score.high:.2f}]"
