"""Every registered adapter against its host's real code with tiny random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mp_hooks.backbones import BACKBONES
from mp_hooks.testing import ConformanceSuite
from mp_hooks.testing.animatediff import AnimateDiffCase
from mp_hooks.testing.diffusers import AnimateDiffCase as DiffusersAnimateDiffCase
from mp_hooks.testing.diffusers import CogVideoXCase, LTXCase, TextToVideoSDCase, WanCase
from mp_hooks.testing.dynamicrafter import DynamiCrafterCase
from mp_hooks.testing.lavie import LaVieCase
from mp_hooks.testing.videocrafter import VideoCrafterCase, VideoCrafterImageCase

THIRD_PARTY = Path(__file__).parents[1] / "third_party"


def upstream(name: str) -> Callable[[type], type]:
    """Marks the suite of a host whose code is a submodule; skips it with the reason where that is empty."""
    reason = f"{name} is not in third_party/; git submodule update --init third_party/{name} gets it"
    empty = pytest.mark.skipif(not any((THIRD_PARTY / name).glob("*.md")), reason=reason)
    return lambda suite: pytest.mark.upstream(empty(suite))


class FreeInitCase(DiffusersAnimateDiffCase):
    @contextmanager
    def open(self) -> Iterator[Any]:
        with super().open() as pipe:
            pipe.enable_free_init(num_iters=2)
            yield pipe


@upstream("VideoCrafter")
class TestVideoCrafter(ConformanceSuite):
    case = VideoCrafterCase(THIRD_PARTY / "VideoCrafter")


@upstream("VideoCrafter")
class TestVideoCrafter1(ConformanceSuite):
    """Neither scaled latents nor a frame rate, relative positions in time."""

    case = VideoCrafterCase(THIRD_PARTY / "VideoCrafter", "t2v_512_v1.0")


@pytest.mark.slow
@upstream("VideoCrafter")
class TestVideoCrafter1Large(ConformanceSuite):
    """The 1024 configuration scales its latents in another way."""

    case = VideoCrafterCase(THIRD_PARTY / "VideoCrafter", "t2v_1024_v1.0")


@upstream("VideoCrafter")
class TestVideoCrafterImage(ConformanceSuite):
    case = VideoCrafterImageCase(THIRD_PARTY / "VideoCrafter")


@upstream("LaVie")
class TestLaVie(ConformanceSuite):
    case = LaVieCase(THIRD_PARTY / "LaVie")


@upstream("LaVie")
class TestLaVieVariants(ConformanceSuite):
    """Euler's scaled input, no classifier-free guidance."""

    case = LaVieCase(THIRD_PARTY / "LaVie", "EulerDiscreteScheduler", guidance_scale=1.0)


@upstream("DynamiCrafter")
class TestDynamiCrafter(ConformanceSuite):
    case = DynamiCrafterCase(THIRD_PARTY / "DynamiCrafter")


@pytest.mark.slow
@upstream("DynamiCrafter")
class TestDynamiCrafter256(ConformanceSuite):
    """Noise is predicted, nothing is rescaled."""

    case = DynamiCrafterCase(THIRD_PARTY / "DynamiCrafter", "256")


@upstream("DynamiCrafter")
class TestDynamiCrafter1024(ConformanceSuite):
    """Rescaled more; a scale of its own for the image; first and last frame given."""

    case = DynamiCrafterCase(THIRD_PARTY / "DynamiCrafter", "1024", cfg_img=4.0, ends="interp")


@upstream("AnimateDiff")
class TestAnimateDiff(ConformanceSuite):
    case = AnimateDiffCase(THIRD_PARTY / "AnimateDiff")


@upstream("AnimateDiff")
class TestSparseCtrl(ConformanceSuite):
    """First and second frame given, negative prompts."""

    case = AnimateDiffCase(THIRD_PARTY / "AnimateDiff", pictures=2, negative_prompt=["else", "else"])


class TestDiffusersAnimateDiff(ConformanceSuite):
    case = DiffusersAnimateDiffCase()


class TestDiffusersAnimateDiffVariants(ConformanceSuite):
    """Negative prompts with v-prediction under Euler, whose input is scaled."""

    case = DiffusersAnimateDiffCase(
        "EulerDiscreteScheduler", "v_prediction", negative_prompt=["else", "else"], guidance_scale=3
    )


class TestDiffusersAnimateDiffWithoutGuidance(ConformanceSuite):
    case = DiffusersAnimateDiffCase(guidance_scale=1.0)


class TestDiffusersAnimateDiffWithFreeInit(ConformanceSuite):
    """The schedule starts again: twice four steps in one sampling."""

    case = FreeInitCase()


class TestTextToVideoSD(ConformanceSuite):
    case = TextToVideoSDCase()


class TestCogVideoX(ConformanceSuite):
    case = CogVideoXCase()


class TestCogVideoXDynamicGuidance(ConformanceSuite):
    """The guidance scale changes from step to step."""

    case = CogVideoXCase(use_dynamic_cfg=True, guidance_scale=4.0)


class TestWan(ConformanceSuite):
    case = WanCase()


class TestWanWithoutGuidance(ConformanceSuite):
    case = WanCase(guidance_scale=1.0)


class TestLTX(ConformanceSuite):
    case = LTXCase()


class TestLTXVariants(ConformanceSuite):
    """A negative prompt, and the guided output rescaled to the conditional one's deviation."""

    case = LTXCase(negative_prompt="something else", guidance_scale=4.0, guidance_rescale=0.7)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _since(cls) -> None:
        pytest.importorskip("diffusers", minversion="0.34")  # whose LTXPipeline takes guidance_rescale


def test_every_adapter_is_held_to_the_kit() -> None:
    tested = {
        "videocrafter2": TestVideoCrafter,
        "lavie": TestLaVie,
        "dynamicrafter": TestDynamiCrafter,
        "animatediff": TestAnimateDiff,
        "diffusers-animatediff": TestDiffusersAnimateDiff,
        "diffusers-text-to-video-sd": TestTextToVideoSD,
        "diffusers-cogvideox": TestCogVideoX,
        "diffusers-wan": TestWan,
        "diffusers-ltx": TestLTX,
    }
    assert set(tested) == set(BACKBONES)
