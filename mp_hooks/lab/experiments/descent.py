"""Does the optimiser descend? In how many guided steps the loss on fixed frame pairs falls, on every host.

`python -m mp_hooks.lab.experiments.descent mini lavie --mp-relative-rate 0.1` prints a line each; without names all:
tiny random instances of every host that can be built here. Random networks tell whether steps are of a sound size, not
what they gain: their updates look at the fixed pairs themselves (`SizeOfSteps` says why).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mp_hooks.backbones import attached
from mp_hooks.config import MotionPromptConfig, add_config_flags, config_from_flags
from mp_hooks.errors import MotionPromptError, exits_cleanly
from mp_hooks.guidance import MotionPrompt, Step, full_precision
from mp_hooks.guidance.method import TokenOptimizer
from mp_hooks.guidance.schedule import Pairs
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab import mini
from mp_hooks.lab.experiments.paired import Experiment
from mp_hooks.testing import CASES, tiny

MINI = "mini"
CLIPS, SEED = 12, 901  # of the mini model
SAMPLINGS = 2  # of two prompts, by a tiny host


@dataclass(frozen=True)
class Descents:
    """Of guided steps of single samples: in how many the loss fell, the mean loss before and after, cosine to T0.

    The cosines are those after the first guided step and after the last.
    """

    fell: int
    steps: int
    before: float
    after: float
    first_cosine: float
    last_cosine: float

    def __str__(self) -> str:
        return (
            f"fell in {self.fell} of {self.steps} guided steps ({self.fell / self.steps:.0%}), "
            f"mean loss {self.before:+.4f} -> {self.after:+.4f}, "
            f"cosine to T0 {self.first_cosine:.2f} after the first, {self.last_cosine:.2f} after the last"
        )


class SizeOfSteps(TokenOptimizer):
    """Of a random network only its steps' size is asked: updates look at the fixed pairs, with the whole gradient.

    Two of its frame pairs have nothing in common, so that an update on one says nothing of another; and its causal VAE
    hands early frames on undiminished, so that the gradient of a part of the clip points elsewhere (docs/cost.md).
    """

    def draw_pairs(self, step: Step) -> Pairs:
        return self.fixed_pairs(step)

    def pixels(self, clean: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        wanted = [0, *pairs.frames.flatten().tolist()]  # with the first frame no latent frame lacks its gradient
        frames = full_precision(self.host.decode(clean, wanted))[:, :, 1:].transpose(1, 2)
        first, second = frames.unflatten(1, (-1, 2)).unbind(2)
        return first, second


class SizingMotionPrompt(MotionPrompt):
    """MotionPrompt for tiny random hosts."""

    optimizer_type = SizeOfSteps


def measure(name: str, config: MotionPromptConfig, folder: Path) -> Descents:
    """Sample host `name`, or the mini model, guided as `config` says, and read its trace in `folder`.

    Raises MotionPromptError for an unknown host, and for one that cannot be built here.
    """
    trace = folder / f"{name}.jsonl"
    with _sampler(name) as (host, case_config, sample):
        given = replace(config, discriminator=config.discriminator or case_config.discriminator)
        method = MotionPrompt if name == MINI else SizingMotionPrompt
        with attached(host, method(replace(given, descent=True, trace=str(trace), progress=False))):
            sample()
    records = read_trace(trace)
    before, after = (
        torch.tensor([value for record in records if record["event"] == "descent" for value in record[side]])
        for side in ("before", "after")
    )
    ends: dict[tuple[int, int], Tensor] = {}  # by run and guided step: after its last update
    for record in records:
        if record["event"] == "iteration":
            ends[record["run"], record["step"]] = torch.tensor(record["cosine"]).mean()
    steps = [step for _, step in ends]
    first, last = (
        float(torch.stack([value for (_, step), value in ends.items() if step == which]).mean())
        for which in (min(steps), max(steps))
    )
    return Descents(int((after < before).sum()), len(before), float(before.mean()), float(after.mean()), first, last)


@contextmanager
def _sampler(name: str) -> Iterator[tuple[object, MotionPromptConfig, Callable[[], object]]]:
    """The host, the configuration that names its discriminator, and a call that samples it."""
    if name == MINI:
        pipe = mini.load_pipeline()
        clips = Experiment(str(mini.PACKAGED), SEED, CLIPS, 1, "pyramid", None, mini.guidance()).clips()
        prompts, seeds = [prompt for prompt, _, _ in clips], [seed for _, _, seed in clips]
        yield pipe, mini.guidance(), lambda: mini.sample(prompts, seeds, pipe=pipe)
        return
    case = tiny(name)
    with case.open() as host:

        def sample() -> None:
            for seed in range(SAMPLINGS):
                torch.manual_seed(seed)
                case.sample(host, case.prompts[:2], seed=seed)

        yield host, case.config, sample


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.experiments.descent", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"mini, {', '.join(CASES)}; all unless given")
    add_config_flags(parser)
    args = parser.parse_args(arguments)
    for name in args.names or [MINI, *CASES]:
        given = argparse.Namespace(**vars(args))
        if name == MINI:
            given.mp_config = args.mp_config or mini.GUIDANCE
        else:  # a tiny host samples in four steps
            given.mp_start, given.mp_stop = args.mp_start or 0.25, args.mp_stop or 1.0
        try:
            with TemporaryDirectory() as folder:
                print(f"{name}: {measure(name, config_from_flags(given), Path(folder))}", flush=True)
        except MotionPromptError as missing:
            if args.names:
                raise
            print(f"{name}: {missing}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
