"""Hosts that run in float16: every gradient of the tokens against the one computed in float32. -s prints them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from mp_hooks import patching
from mp_hooks.config import MotionPromptConfig
from mp_hooks.testing.diffusers import AnimateDiffCase, DiffusersCase
from mp_hooks.testing.lavie import LaVieCase
from mp_hooks.testing.precision import compare, table

pytestmark = pytest.mark.filterwarnings("ignore:.*not finite")


def lavie(scheduler: str = "DDPMScheduler", **options: float) -> DiffusersCase:
    checkout = patching.default_checkout(patching.load("lavie"))
    if not patching.is_present(checkout):
        pytest.skip("LaVie is not in third_party/; mp-patch lavie gets it")
    return LaVieCase(checkout, scheduler, **options)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lavie, id="lavie", marks=pytest.mark.upstream),
        pytest.param(lambda: lavie("DDIMScheduler"), id="lavie-ddim", marks=pytest.mark.upstream),
        pytest.param(
            lambda: lavie("EulerDiscreteScheduler", guidance_scale=1.0), id="lavie-euler", marks=pytest.mark.upstream
        ),
        pytest.param(AnimateDiffCase, id="animatediff"),
    ],
)
def test_gradients_in_float16_are_those_of_float32(case: Callable[[], DiffusersCase]) -> None:
    found = compare(case(), MotionPromptConfig(iterations=2, progress=False), steps=12)
    print(f"\n{table(found)}")
    assert [one.step for one in found] == [1, 1, 2, 2, 3, 3]
    cosines = [cosine for one in found for cosine, moved in zip(one.cosine, one.updated, strict=True) if moved]
    assert len(cosines) >= 10, "more is skipped than the first loss scale's overflow"
    # not all: where float16 moves z0_hat itself, noise-like frames of a random network have another gradient
    assert statistics.median(cosines) > 0.99
    assert sum(cosine >= 0.95 for cosine in cosines) >= 0.8 * len(cosines)


@pytest.mark.parametrize(
    "case",
    [pytest.param(lavie, id="lavie", marks=pytest.mark.upstream), pytest.param(AnimateDiffCase, id="animatediff")],
)
def test_updates_may_be_computed_in_float32(case: Callable[[], DiffusersCase]) -> None:
    """On a host in float16, which takes its own steps in it."""
    found = compare(case(), MotionPromptConfig(iterations=2, progress=False, precision="float32"), steps=12)
    assert all(all(one.updated) for one in found)
    assert min(cosine for one in found for cosine in one.cosine) > 0.999
