"""What does a word at the token's place do to the loss, and how far does guidance get? On the mini model.

`python -m mp_hooks.lab.experiments.words --mp-placement end` prints a line a guided step: the discriminator's term of
the loss on fixed frame pairs, with the token as it starts, with words that name a quality in its place, and as guidance
has moved it by then. All at the same latents, those of the guided sampling.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mp_hooks.config import MotionPromptConfig, add_config_flags, config_from_flags
from mp_hooks.errors import exits_cleanly
from mp_hooks.guidance import MotionPrompt, Step
from mp_hooks.guidance.method import Descent, TokenOptimizer, Update
from mp_hooks.guidance.schedule import draw_pairs
from mp_hooks.guidance.tokens import initial_tokens
from mp_hooks.lab import mini
from mp_hooks.lab.experiments.methods import guided
from mp_hooks.lab.experiments.paired import Experiment
from mp_hooks.lab.mini.clips import FAULTS, STEADY

WORDS = (STEADY, *FAULTS.values())
CLIPS, SEED, PAIRS = 4, 901, 6


class Looking(MotionPrompt):
    """MotionPrompt that keeps, at each guided step, (its index, {word: the discriminator's term [b]})."""

    def __init__(self, config: MotionPromptConfig) -> None:
        super().__init__(config)
        self.found: list[tuple[int, dict[str, Tensor]]] = []
        found = self.found

        class Optimizer(TokenOptimizer):
            def optimise(self, step: Step, record: Callable[[Update], None]) -> Descent | None:
                descent = super().optimise(step, record)
                pairs = draw_pairs(step.frames, PAIRS, 1, 1, torch.Generator().manual_seed(SEED), False)
                tokens = {self.config.init_word: self.initial}
                tokens |= {word: initial_tokens(self._text, self.host.word_ids(word), 1) for word in WORDS}
                with torch.no_grad():
                    losses = {
                        name: self.loss(step, token.expand_as(self.tokens), pairs).disc
                        for name, token in {**tokens, "guided": self.tokens}.items()
                    }
                found.append((step.index, losses))
                return descent

        self.optimizer_type = Optimizer


def measure(config: MotionPromptConfig, clips: int) -> list[tuple[int, dict[str, float]]]:
    """(guided step, {word: mean discriminator's term}) of so many clips of the mini model."""
    pipe = mini.load_pipeline()
    experiment = Experiment(str(mini.PACKAGED), SEED, clips, 1, "pyramid", None, config)
    method = Looking(config)
    with guided(pipe, method):
        mini.sample(*zip(*[(prompt, seed) for prompt, _, seed in experiment.clips()], strict=True), pipe=pipe)
    return [(step, {word: float(values.mean()) for word, values in losses.items()}) for step, losses in method.found]


def table(found: Sequence[tuple[int, dict[str, float]]]) -> str:
    """Markdown, a row a guided step."""
    names = list(found[0][1])
    rows = [["step", *names], ["---"] * (len(names) + 1)]
    rows += [[str(step), *(f"{losses[name]:+.3f}" for name in names)] for step, losses in found]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.experiments.words", description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS, help="(default: %(default)s)")
    add_config_flags(parser)
    args = parser.parse_args(arguments)
    args.mp_config = args.mp_config or mini.GUIDANCE
    print(table(measure(mini.guidance(config_from_flags(args)), args.clips)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
