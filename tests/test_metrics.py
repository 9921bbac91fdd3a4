"""Measures on clips whose answer is known, and the statistics of paired comparisons."""

from __future__ import annotations

import math

import pytest
import torch

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow
from mp_hooks.lab.metrics import (
    compare,
    dynamic_degree,
    flow_jerk,
    flow_length,
    flow_variation,
    neighbouring_flow,
    temporal_flickering,
    warping_error,
)
from mp_hooks.lab.metrics.temporal import NeighbouringFlow
from mp_hooks.lab.mini.clips import SIDE, SPAN, draw, sample_scenes
from mp_hooks.video import as_frames


def test_flickering_is_the_mean_absolute_difference() -> None:
    frames = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    frames[1] = 51
    assert temporal_flickering(frames) == pytest.approx(1 - 51 / 255)
    assert temporal_flickering(frames[:1].repeat(3, 1, 1, 1)) == 1


def test_faults_raise_flicker_and_warping_error() -> None:
    scenes = sample_scenes(60, torch.Generator().manual_seed(0), fault_share=1.0, frames=SPAN)
    flicker = scenes[scenes.faults[:, 1]]
    estimator, worse = load_flow("pyramid"), []
    for faulty, clean in zip(draw(flicker, SIDE), draw(flicker.without_faults(), SIDE), strict=True):
        pair = [as_frames(clip) for clip in (clean, faulty)]
        errors = [warping_error(clip, neighbouring_flow(clip, estimator)) for clip in pair]
        worse.append(errors[1] > errors[0] and temporal_flickering(pair[1]) < temporal_flickering(pair[0]))
    assert sum(worse) > 0.9 * len(worse)


def test_warping_error_is_zero_for_exact_flow_and_ignores_what_is_hidden() -> None:
    frames = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(2, 1, 1, 1)
    still = NeighbouringFlow(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))
    assert warping_error(frames, still) == pytest.approx(0, abs=1e-9)
    frames[1, :, :, 8:] = 255 - frames[1, :, :, 8:]
    assert warping_error(frames, still) > 0.01
    hidden = NeighbouringFlow(still.forward, still.backward.clone())
    hidden.backward[..., 8:] = 5.0
    assert warping_error(frames, hidden) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("speed", "moves"), [(1.4, False), (1.6, True)])
def test_dynamic_degree_is_vbenchs_rule(speed: float, moves: bool) -> None:
    """At 64 pixels the limit is 1.5, for the fastest 5 % of the pixels, in 2 of 8 frames."""
    flow = torch.zeros(7, 2, 64, 64)
    flow[:2, 0, :4] = speed
    assert dynamic_degree(NeighbouringFlow(flow, -flow)) is moves
    flow[1] = 0
    assert dynamic_degree(NeighbouringFlow(flow, -flow)) is False


def test_flow_length_and_too_short_a_clip() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 0], flow[:, 1] = 3, 4
    assert flow_length(NeighbouringFlow(flow, -flow)) == 5
    with pytest.raises(MotionPromptError, match="has 1"):
        neighbouring_flow(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), load_flow("pyramid"))


def test_comparison_has_interval_signs_and_leaves_missing_pairs_out() -> None:
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, generator=generator).tolist()
    shifted = [value + 0.5 for value in noise]
    steady = compare(noise, shifted)
    assert (steady.up, steady.down, steady.pairs) == (200, 0, 200)
    assert steady.mean == pytest.approx(0.5)
    assert steady.p < 1e-50
    other = torch.randn(200, generator=generator).tolist()
    unrelated = compare(noise, other)
    assert unrelated.low < unrelated.mean < unrelated.high
    # the interval is about the standard error to either side
    assert (unrelated.high - unrelated.low) / 2 == pytest.approx(1.96 * math.sqrt(2 / 200), rel=0.3)
    assert compare([1.0, math.nan, 2.0], [2.0, 1.0, 2.0]).pairs == 2
    with pytest.raises(ValueError, match="as many"):
        compare([1.0], [])


def test_jerk_of_the_flow_is_the_third_difference_of_riding_points() -> None:
    steady = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).expand(6, 2, 24, 24)
    assert flow_jerk(NeighbouringFlow(steady, -steady)) == pytest.approx(0, abs=1e-6)
    shaken = steady.clone()
    shaken[::2, 0] += 1  # velocities v + 1, v, v + 1, ...: second difference 2 everywhere
    assert flow_jerk(NeighbouringFlow(shaken, -shaken)) == pytest.approx(2, abs=1e-5)
    # a field that is steady in time: in place nothing changes, but points speed up and slow down as they ride along
    places = torch.arange(24.0)
    ridden = torch.zeros(6, 2, 24, 24)
    ridden[:, 0] = 2 + torch.sin(places)
    assert flow_jerk(NeighbouringFlow(ridden, -ridden)) > 0.5
    assert math.isnan(flow_jerk(NeighbouringFlow(steady[:2], -steady[:2])))


def test_variation_of_the_flow_is_its_slope() -> None:
    zoom = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="xy"))[None] * 0.1
    assert flow_variation(NeighbouringFlow(zoom, -zoom)) == pytest.approx(0.2, abs=1e-5)


def test_flow_is_the_same_in_parts() -> None:
    scenes = sample_scenes(2, torch.Generator().manual_seed(1), frames=SPAN)
    frames = torch.stack([as_frames(clip) for clip in draw(scenes, SIDE)])
    estimator = load_flow("pyramid")
    longer = neighbouring_flow(frames.flatten(0, 1), estimator)
    assert torch.allclose(longer.forward[: SPAN - 1], neighbouring_flow(frames[0], estimator).forward, atol=1e-4)
