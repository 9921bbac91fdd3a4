"""Hosts that run in float16: every gradient of the tokens against the one computed in float32. -s prints them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from upstreams import needs

from mp_hooks.backbones import attached
from mp_hooks.config import MotionPromptConfig
from mp_hooks.testing import tiny
from mp_hooks.testing.case import DISCRIMINATOR
from mp_hooks.testing.conformance import Recorder
from mp_hooks.testing.diffusers import DiffusersCase
from mp_hooks.testing.precision import compare, table

pytestmark = pytest.mark.filterwarnings("ignore:.*not finite")
CONFIG = MotionPromptConfig(discriminator=str(DISCRIMINATOR), iterations=2, progress=False)


def on(name: str, *marks: Any, **options: Any) -> Any:
    """A parameter: the tiny instance of a host."""
    label = "-".join([name, *map(str, options.values())])
    return pytest.param(tiny(name, **options), id=label, marks=[*needs(name), *marks])


@pytest.mark.parametrize(
    "case",
    [
        on("lavie"),
        on("lavie", pytest.mark.slow, scheduler="DDIMScheduler"),
        on("lavie", scheduler="EulerDiscreteScheduler", guidance_scale=1.0),
        on("diffusers-animatediff"),
    ],
)
def test_gradients_in_float16_are_those_of_float32(case: DiffusersCase) -> None:
    found = compare(case, CONFIG, steps=12)
    print(f"\n{table(found)}")
    assert [one.step for one in found] == [1, 1, 2, 2, 3, 3]
    cosines = [cosine for one in found for cosine, moved in zip(one.cosine, one.updated, strict=True) if moved]
    assert len(cosines) >= 10, "more is skipped than the first loss scale's overflow"
    # not all: where float16 moves z0_hat itself, noise-like frames of a random network have another gradient
    assert statistics.median(cosines) > 0.99
    assert sum(cosine >= 0.95 for cosine in cosines) >= 0.8 * len(cosines)


@pytest.mark.parametrize("case", [on("lavie"), on("diffusers-animatediff", pytest.mark.slow)])
def test_updates_may_be_computed_in_float32(case: DiffusersCase) -> None:
    """On a host in float16, which takes its own steps in it."""
    found = compare(case, replace(CONFIG, precision="float32"), steps=12)
    assert all(all(one.updated) for one in found)
    assert min(cosine for one in found for cosine in one.cosine) > 0.999


@pytest.mark.parametrize("case", [on("diffusers-wan"), on("diffusers-ltx")])
def test_updates_of_a_host_in_bfloat16_are_computed_in_float32(case: DiffusersCase) -> None:
    """By default, because bfloat16's own gradients point elsewhere."""
    config = replace(CONFIG, iterations=1)
    found = compare(case, config, steps=12, dtype=torch.bfloat16)
    assert all(all(one.updated) for one in found)
    assert min(cosine for one in found for cosine in one.cosine) > 0.999
    own = compare(case, replace(config, precision="host"), steps=12, dtype=torch.bfloat16)
    assert min(cosine for one in own for cosine in one.cosine) < 0.9


@pytest.mark.parametrize("case", [on("diffusers-hunyuan-video"), on("diffusers-hunyuan-video15")])
def test_all_that_a_bfloat16_denoiser_is_given_is_float32_in_updates(case: DiffusersCase) -> None:
    """A pooled text, a second text: what is neither latents nor rows of text."""
    found = compare(case, replace(CONFIG, iterations=1), steps=12, dtype=torch.bfloat16)
    assert found and all(all(one.updated) for one in found)


@pytest.mark.parametrize("name", [pytest.param("dynamicrafter", marks=needs("dynamicrafter")), "diffusers-animatediff"])
@pytest.mark.parametrize("precision", ["host", "float32"])
def test_updates_under_autocast(name: str, precision: str) -> None:
    """As DynamiCrafter samples: flow, discriminator and backward pass are float32, and all else if configured so."""
    case, types, gradients = tiny(name), set(), []
    config = replace(case.config, start=0.0, stop=0.25, iterations=1, precision=precision, checkpointing="none")
    with case.open() as host:
        for autocast in (False, True):
            method = Recorder(config)
            handle = method.objective.discriminator.register_full_backward_hook(
                lambda _module, given, _made: types.update(one.dtype for one in given if one is not None)
            )
            with attached(host, method), torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
                torch.manual_seed(7)
                assert case.sample(host, case.prompts, seed=7).isfinite().all()
            handle.remove()
            (update,) = method.updates
            assert update.moved.all()
            gradients.append(update.gradient.flatten(1).double())
    assert types == {torch.float32}
    if precision == "float32":  # but what the host encoded under autocast before: negative prompts, pictures
        assert torch.cosine_similarity(*gradients).min() > 0.95
