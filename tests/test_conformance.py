"""Every registered adapter against its host's real code with tiny random weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import pytest
import torch
from upstreams import needs, slow

from mp_hooks import patching
from mp_hooks.backbones import BACKBONES, adapter_class
from mp_hooks.testing import CASES, ConformanceSuite, HostCase, tiny
from mp_hooks.testing.diffusers import AnimateDiffCase
from mp_hooks.testing.videocrafter import VideoCrafterImageCase

# What is fast: the whole kit where every way to call a denoiser is met once, and its core for all others.
CORE = ("test_off_on_off", "test_prediction_is_the_hosts_own", "test_gradient_is_that_of_finite_differences")


def suite(case: HostCase, title: str, whole: bool) -> type[ConformanceSuite]:
    """The kit on a tiny instance; where it is not the whole, what is not its core is slow."""
    members: dict[str, Any] = {"case": case}
    for name, test in vars(ConformanceSuite).items():
        if name.startswith("test_") and name not in CORE and not whole:
            copied = FunctionType(test.__code__, test.__globals__, name, test.__defaults__, test.__closure__)
            vars(copied).update(vars(test), pytestmark=[*getattr(test, "pytestmark", []), pytest.mark.slow.mark])
            members[name] = copied
    made = type(f"Test{title}", (ConformanceSuite,), members)
    for mark in needs(case.name):
        made = mark(made)
    return made


SUITES = [suite(tiny(name), re.sub(r"[-.]", "", name.title()), not slow(name)) for name in CASES]
RELATIVES = [
    suite(tiny(name, pipeline=pipeline), pipeline, whole=False)
    for name in BACKBONES
    for pipeline in getattr(adapter_class(name), "pipelines", ())[1:]
]
globals().update({made.__name__: made for made in (*SUITES, *RELATIVES)})  # where pytest looks for them


def test_every_adapter_is_held_to_the_kit() -> None:
    """By a case of its own; the kit asserts that the adapter of that name answers for the case's host."""
    assert sorted(made.case.name for made in SUITES) == sorted(BACKBONES)


# --- more configurations


def guided_throughout(case: HostCase) -> HostCase:
    """At every step and by three tokens, where text does too little to a tiny clip for the kit's own settings."""
    case.config = replace(case.config, start=0.0, stop=1.0, iterations=1, tokens=3)
    return case


@pytest.mark.upstream("videocrafter2")
class TestVideoCrafter1(ConformanceSuite):
    """Neither scaled latents nor a frame rate, relative positions in time."""

    case = guided_throughout(tiny("videocrafter2", version="t2v_512_v1.0"))


@pytest.mark.slow
@pytest.mark.upstream("videocrafter2")
class TestVideoCrafter1Large(ConformanceSuite):
    """The 1024 configuration scales its latents in another way."""

    case = tiny("videocrafter2", version="t2v_1024_v1.0")


@pytest.mark.upstream("videocrafter2")
class TestVideoCrafterImage(ConformanceSuite):
    case = guided_throughout(VideoCrafterImageCase(patching.default_checkout(patching.load("videocrafter2"))))


@pytest.mark.upstream("lavie")
class TestLaVieVariants(ConformanceSuite):
    """Euler's scaled input, no classifier-free guidance."""

    case = guided_throughout(tiny("lavie", scheduler="EulerDiscreteScheduler", guidance_scale=1.0))


@pytest.mark.slow
@pytest.mark.upstream("dynamicrafter")
class TestDynamiCrafter256(ConformanceSuite):
    """Noise is predicted, nothing is rescaled."""

    case = tiny("dynamicrafter", version="256")


@pytest.mark.upstream("dynamicrafter")
class TestDynamiCrafter1024(ConformanceSuite):
    """Rescaled more; a scale of its own for the image; first and last frame given."""

    case = tiny("dynamicrafter", version="1024", cfg_img=4.0, ends="interp")


@pytest.mark.upstream("animatediff")
class TestSparseCtrl(ConformanceSuite):
    """First and second frame given, negative prompts."""

    case = tiny("animatediff", pictures=2, negative_prompt=["else", "else"])


class TestDiffusersAnimateDiffVariants(ConformanceSuite):
    """Negative prompts with v-prediction under Euler, whose input is scaled."""

    case = tiny(
        "diffusers-animatediff",
        scheduler="EulerDiscreteScheduler",
        prediction="v_prediction",
        negative_prompt=["else", "else"],
        guidance_scale=3,
    )


class TestDiffusersAnimateDiffWithoutGuidance(ConformanceSuite):
    case = guided_throughout(tiny("diffusers-animatediff", guidance_scale=1.0))


class FreeInitCase(AnimateDiffCase):
    @contextmanager
    def open(self) -> Iterator[Any]:
        with super().open() as pipe:
            pipe.enable_free_init(num_iters=2)
            yield pipe


class TestDiffusersAnimateDiffWithFreeInit(ConformanceSuite):
    """The schedule starts again: twice four steps in one sampling."""

    case = FreeInitCase()


class IPAdapterCase(AnimateDiffCase):
    """With the image prompt of a random IP-Adapter."""

    def build(self, diffusers: Any) -> Any:
        pipe = super().build(diffusers)
        crossed = [name for name in pipe.unet.attn_processors if "motion" not in name and "attn2" in name]
        layers = {
            f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(32, 32) / 6
            for number in range(len(crossed))
            for part in "kv"
        }
        projection = {"proj.weight": torch.randn(4 * 32, 16), "proj.bias": torch.zeros(4 * 32)}
        projection |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
        pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
        return pipe

    def inputs(self, taken: Any) -> dict[str, Any]:
        return {"ip_adapter_image_embeds": [torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))]}


class TestDiffusersAnimateDiffWithIPAdapter(ConformanceSuite):
    """Each branch has its own half of the image's embedding."""

    case = guided_throughout(IPAdapterCase())


class TestCogVideoXDynamicGuidance(ConformanceSuite):
    """The guidance scale changes from step to step."""

    case = guided_throughout(tiny("diffusers-cogvideox", use_dynamic_cfg=True, guidance_scale=4.0))


@pytest.mark.slow
class TestWanWithTwoTransformers(ConformanceSuite):
    """Wan 2.2: the second one samples the steps of little noise, with a guidance scale of its own."""

    case = guided_throughout(tiny("diffusers-wan", boundary=0.9, guidance_scale_2=3.0))


@pytest.mark.slow
class TestHunyuanVideoWithNegativePrompt(ConformanceSuite):
    """Classifier-free guidance beside the distilled one."""

    case = tiny("diffusers-hunyuan-video", true_cfg_scale=3.0, negative_prompt=["else", "else"])


GUIDERS = {
    "ClassifierFreeZeroStarGuidance": {"guidance_scale": 4.0, "zero_init_steps": 0},
    "AdaptiveProjectedGuidance": {"guidance_scale": 4.0, "adaptive_projected_guidance_momentum": -0.5},
}
globals().update(
    {
        f"Test{guider}": suite(tiny("diffusers-hunyuan-video15", guider=guider, guiding=guiding), guider, whole=False)
        for guider, guiding in GUIDERS.items()
    }
)


class TestWanWithoutGuidance(ConformanceSuite):
    case = guided_throughout(tiny("diffusers-wan", guidance_scale=1.0))


class TestLTXVariants(ConformanceSuite):
    """A negative prompt, and the guided output rescaled to the conditional one's deviation."""

    case = tiny("diffusers-ltx", negative_prompt="something else", guidance_scale=4.0, guidance_rescale=0.7)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _since(cls) -> None:
        pytest.importorskip("diffusers", minversion="0.34")  # whose LTXPipeline takes guidance_rescale
