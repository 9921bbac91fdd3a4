"""What does a word at the token's place do to the loss, and how far does guidance get? On the mini model.

`python -m mp_hooks.lab.experiments.words --mp-placement end` prints a line a guided step: the discriminator's term of
the loss on fixed frame pairs, with the token as it starts, with words that name a quality in its place, and as guidance
has moved it by then. All at the same latents, those of the guided sampling.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

import torch

from mp_hooks.backbones import attached
from mp_hooks.config import MotionPromptConfig, add_config_flags, config_from_flags
from mp_hooks.errors import exits_cleanly
from mp_hooks.guidance import MotionPrompt, Run
from mp_hooks.guidance.method import Update
from mp_hooks.guidance.schedule import draw_pairs
from mp_hooks.guidance.tokens import initial_tokens
from mp_hooks.lab import mini
from mp_hooks.lab.experiments.paired import Experiment
from mp_hooks.lab.mini.clips import FAULTS, STEADY

WORDS = (STEADY, *FAULTS.values())
CLIPS, SEED, PAIRS = 4, 901, 6


def measure(config: MotionPromptConfig, clips: int) -> list[tuple[int, dict[str, float]]]:
    """(guided step, {word: mean discriminator's term}) of so many clips of the mini model."""
    found: list[tuple[int, dict[str, float]]] = []

    def look(run: Run, update: Update) -> None:
        if update.iteration + 1 < config.iterations:
            return
        step, host, after = update.step, run.host, update.after
        pairs = draw_pairs(step.frames, PAIRS, 1, 1, torch.Generator().manual_seed(SEED), False)
        tokens = {config.init_word: run.initial}
        tokens |= {word: initial_tokens(host.text, host.word_ids(word), 1) for word in WORDS}
        tokens["guided"] = after
        with torch.no_grad():
            losses = {
                name: run.optimizer.loss(step, token.expand_as(after), pairs).disc for name, token in tokens.items()
            }
        found.append((step.index, {name: float(values.mean()) for name, values in losses.items()}))

    pipe, method = mini.load_pipeline(), MotionPrompt(config)
    method.observers.append(look)
    drawn = Experiment(str(mini.PACKAGED), SEED, clips, 1, "pyramid", None, config).clips()
    with attached(pipe, method):
        mini.sample([prompt for prompt, _, _ in drawn], [seed for _, _, seed in drawn], pipe=pipe)
    return found


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
