"""What the method does, told by its results alone: options go in, clips and the trace's records come out.

Each of these changes of the method makes a test below fail, also where third_party/ is empty: the gradient negated in
the update, lambda_tv dropped from the objective's total, the discriminator's term with the other sign, the tokens reset
at every step or kept for the next sampling, the window shifted by one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from upstreams import needs, slow

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig
from mp_hooks.guidance import MotionPrompt
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.mini.clips import SIDE, SPAN
from mp_hooks.lab.mini.model import DISCRIMINATOR, GUIDANCE_SCALE, load_pipeline
from mp_hooks.testing import CASES, HostCase, tiny
from mp_hooks.testing.diffusers import AnimateDiffCase, CogVideoXCase

# Intervals beyond any clip's length leave one pair to draw, the first and the last frame. The frames are square, so
# that there is one crop, too.
FIXED_PAIR = {"min_interval": 99, "max_interval": 99}
FALL = 1e-4  # of the loss in the first update: far above its rounding, and the loss is still a plane


class MiniCase(AnimateDiffCase):
    """The trained mini model, on clips of half its side and half its frames."""

    prompts: ClassVar = ["red circle moving right on a plain background"]
    config = replace(AnimateDiffCase.config, discriminator=str(DISCRIMINATOR))
    settings: ClassVar = {"num_frames": SPAN, "height": SIDE, "width": SIDE, "guidance_scale": GUIDANCE_SCALE}

    def build(self, diffusers: Any) -> Any:
        return load_pipeline()


class Subject(NamedTuple):
    """A host, open, guided with plain gradient descent at one frame pair; a sampling has four steps."""

    case: HostCase
    host: Any
    trace: Path

    def predictions(self) -> list[Tensor]:
        """z0_hat of every step of a sampling."""
        torch.manual_seed(7)
        return self.case.own_predictions(self.host, self.case.prompts[:1], seed=7)

    def guided(self, samplings: int = 1, **options: Any) -> tuple[list[list[Tensor]], list[dict[str, Any]]]:
        """Of guided samplings: z0_hat of every step of each, and the updates' records."""
        config = replace(self.case.config, **FIXED_PAIR, **options, trace=str(self.trace))
        with backbones.motionprompt(self.host, config):
            predictions = [self.predictions() for _ in range(samplings)]
        return predictions, updates(self.trace)


def updates(trace: Path) -> list[dict[str, Any]]:
    """The trace's records of updates."""
    return [record for record in read_trace(trace) if record["event"] == "iteration"]


@pytest.fixture(
    scope="module", params=["mini", *(pytest.param(name, marks=[*needs(name), *slow(name)]) for name in CASES)]
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    case = MiniCase() if request.param == "mini" else tiny(request.param)
    with case.open() as host:
        yield Subject(case, host, tmp_path_factory.mktemp(request.param) / "trace.jsonl")


class Twice(NamedTuple):
    """Two samplings by one patch, their last two steps guided by one update each."""

    predictions: list[list[Tensor]]
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def twice(subject: Subject) -> Twice:
    return Twice(*subject.guided(samplings=2, start=0.5, stop=1.0, iterations=1))


def test_steps_before_the_window_are_vanillas_to_the_bit(subject: Subject, twice: Twice) -> None:
    """Fails when the window opens a step early or late."""
    vanilla = subject.predictions()
    assert len(vanilla) == 4
    for guided in twice.predictions:
        assert [torch.equal(*pair) for pair in zip(guided, vanilla, strict=True)] == [True, True, False, False]


def test_tokens_carry_over_within_a_sampling_and_start_afresh_at_the_next(subject: Subject, twice: Twice) -> None:
    """Fails when the tokens are reset at every step, or are not at a sampling.

    The trace tells ||T - T0||^2 before an update, which by plain gradient descent moves T by rate times gradient.
    """
    assert [(record["run"], record["step"]) for record in twice.records] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    for first, second in (twice.records[:2], twice.records[2:]):
        moved = subject.case.config.learning_rate * first["gradient"][0]
        assert first["reg"] == [0.0]
        assert second["reg"] == [pytest.approx(moved**2, rel=1e-3)]
        assert moved > 0


def test_updates_lower_the_loss(subject: Subject, twice: Twice) -> None:
    """By what the gradient promises, rate times |gradient|^2; fails when an update goes uphill, or another way."""
    rate = FALL / twice.records[0]["gradient"][0] ** 2
    _, records = subject.guided(start=0.5, stop=0.75, iterations=3, learning_rate=rate)
    losses = [record["loss"][0] for record in records]
    falls = [before - after for before, after in pairwise(losses)]
    promised = [rate * record["gradient"][0] ** 2 for record in records[:-1]]
    assert falls == pytest.approx(promised, rel=0.8)  # the loss bends, and may do so within an update


@pytest.mark.parametrize("weights", [*torch.eye(4).tolist(), [0.7, 1.3, 0.2, 5.0]])
def test_the_loss_is_the_signed_weighted_sum_of_its_parts(weights: list[float]) -> None:
    """l_total = lambda_disc log(1 - phi) + lambda_tv TV + lambda_reg ||T - T0||^2 + lambda_photo photometric error.

    Fails when a term is dropped, or has another's weight or the other sign.
    """
    names = ("lambda_disc", "lambda_tv", "lambda_reg", "lambda_photo")
    method = MotionPrompt(MotionPromptConfig(**dict(zip(names, weights, strict=True))))
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 2, 1, 3, 64, 64, generator=generator) * 2 - 1  # of two samples a pair each
    tokens, initial = torch.randn(2, 1, 8, generator=generator), torch.ones(1, 8)
    with torch.no_grad():
        loss = method.objective(first, second, tokens, initial, torch.zeros(1))
    parts = torch.stack([torch.log1p(-loss.phi), loss.tv, loss.reg, loss.photo])
    assert (parts.abs() > 1e-2).all(), "a part that is nothing would not be missed"
    torch.testing.assert_close(loss.total, torch.tensor(weights) @ parts)


@pytest.mark.parametrize(
    ("start", "stop", "guided"),
    [(0.0, 0.2, [0, 1]), (0.31, 0.5, [4]), (0.8, 1.0, [8, 9])],
)
def test_the_window_opens_at_start_and_closes_before_stop(
    tmp_path: Path, start: float, stop: float, guided: list[int]
) -> None:
    """Ten steps of a real sampling; fails when either edge is shifted by one."""
    case, trace = CogVideoXCase(), tmp_path / "trace.jsonl"
    config = replace(case.config, start=start, stop=stop, iterations=1, trace=str(trace))
    with case.open() as pipe, backbones.motionprompt(pipe, config):
        case.sample(pipe, case.prompts[:1], seed=7, num_inference_steps=10)
    assert [record["step"] for record in updates(trace)] == guided
