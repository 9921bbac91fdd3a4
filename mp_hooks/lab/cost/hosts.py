"""Hosts at their real size on fake weights, about to take a step.

Sizes are the hosts' own: their configuration files, or the published models'.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks import patching
from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.lab.cost.counting import FakeWeights, fake_weights
from mp_hooks.testing.case import require

PROMPT = "a tiger walks in the forest"
STEPS = 50  # the paper's schedule


@dataclass(frozen=True)
class FullSize:
    """A host before a step.

    host: what an adapter takes. call, options: the arguments of its step. latents: their shape [b, c, t, h, w]. mode:
    in which it is computed. arguments: those of its run that its adapter reads. steps: of the schedule.
    """

    host: Any
    call: Sequence[Any]
    options: dict[str, Any]
    latents: tuple[int, ...]
    mode: FakeWeights
    arguments: dict[str, Any] = field(default_factory=dict)
    prompts: Sequence[str] = (PROMPT,)
    steps: int = STEPS


def full_size(name: str, repo: Path | None = None) -> AbstractContextManager[FullSize]:
    """Host `name`, on the code in `repo` or third_party/ if it has a checkout; an unknown name lists the valid ones."""
    if name not in FULL_SIZE:
        raise unknown_name("host of known full size", name, list(FULL_SIZE))
    if name not in patching.names():
        if repo is not None:
            raise MotionPromptError(f"{name} is a library, not a checkout; leave --repo out")
        return FULL_SIZE[name]()
    manifest = patching.load(name)
    checkout = repo or patching.default_checkout(manifest)
    if not patching.is_present(checkout):
        raise MotionPromptError(f"no checkout of {manifest.title} in {checkout}; get one with: mp-patch {name}")
    return FULL_SIZE[name](checkout)


@contextmanager
def videocrafter2(checkout: Path) -> Iterator[FullSize]:
    """320x512, 16 frames (the host's scripts/run_text2video.sh)."""
    from mp_hooks.testing.videocrafter import VideoCrafterCase

    case = VideoCrafterCase(checkout)
    with case.host_imports(), fake_weights() as mode:
        model = _latent_diffusion(case.host_config())
        with mode:
            latents, text = torch.empty(1, 4, 16, 40, 64), [torch.empty(1, 77, 1024) for _ in range(2)]
        conditional, unconditional = ({"c_crossattn": [rows], "fps": torch.tensor([28])} for rows in text)
        options = {"unconditional_conditioning": unconditional, "unconditional_guidance_scale": 12.0}
        yield _lvdm(model, mode, latents, conditional, options)


@contextmanager
def dynamicrafter(checkout: Path) -> Iterator[FullSize]:
    """The 1024 model: 576x1024, 16 frames (the host's scripts/run.sh)."""
    from omegaconf import OmegaConf

    from mp_hooks.testing.dynamicrafter import DynamiCrafterCase

    with DynamiCrafterCase(checkout, "1024").host_imports(), fake_weights() as mode:
        model = _latent_diffusion(OmegaConf.load(checkout / "configs" / "inference_1024_v1.0.yaml"))
        with mode:
            latents, picture = (torch.empty(1, 4, 16, 72, 128) for _ in range(2))
            rows = [torch.empty(1, 77 + 16 * 16, 1024) for _ in range(2)]  # of the picture, 16 a frame
        conditional, unconditional = ({"c_crossattn": [row], "c_concat": [picture]} for row in rows)
        options = {
            "unconditional_conditioning": unconditional,
            "unconditional_guidance_scale": 7.5,
            "fs": torch.tensor([10]),
            "guidance_rescale": 0.7,
        }
        yield _lvdm(model, mode, latents, conditional, options)


def _latent_diffusion(config: Any) -> nn.Module:
    for stage in ("cond_stage_config", "img_cond_stage_config"):
        if stage in config.model.params:
            config.model.params[stage].params.version = None  # no download
    return importlib.import_module("utils.utils").instantiate_from_config(config.model).eval()


def _lvdm(
    model: nn.Module, mode: FakeWeights, latents: Tensor, conditioning: dict[str, Any], options: dict[str, Any]
) -> FullSize:
    sampler = importlib.import_module("lvdm.models.samplers.ddim").DDIMSampler(model)
    sampler.make_schedule(STEPS, ddim_eta=1.0, verbose=False)
    index = STEPS - 1 - STEPS // 5  # the host counts down
    timestep = torch.tensor([int(sampler.ddim_timesteps[index])])
    return FullSize(model, [sampler, latents, conditioning, timestep, index], options, tuple(latents.shape), mode)


@contextmanager
def animatediff() -> Iterator[FullSize]:
    """Stable Diffusion 1.5 with AnimateDiff's second motion modules, 512x512, 16 frames."""
    diffusers = require("diffusers", extra="diffusers")
    with fake_weights() as mode:
        pipe = diffusers.AnimateDiffPipeline(
            unet=diffusers.UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=True).eval(),
            scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
            motion_adapter=None,
            **_stable_diffusion(diffusers),
        )
        pipe._guidance_scale, pipe._clip_skip = 7.5, None
        with mode:
            latents, text = torch.empty(2, 4, 16, 64, 64), torch.empty(2 * 16, 77, 768)
        yield _pipeline(pipe, mode, latents, text)


@contextmanager
def lavie(checkout: Path) -> Iterator[FullSize]:
    """The base model, 320x512, 16 frames (the host's base/configs/sample.yaml)."""
    from mp_hooks.testing.lavie import SCHEDULE, LaVieCase

    diffusers = require("diffusers", extra="lavie")
    with LaVieCase(checkout).host_imports(), fake_weights() as mode:
        unet = importlib.import_module("models.unet").UNet3DConditionModel(sample_size=64, cross_attention_dim=768)
        pipe = importlib.import_module("pipeline_videogen").VideoGenPipeline(
            unet=unet.eval(),
            scheduler=diffusers.DDPMScheduler(**SCHEDULE, clip_sample=False),
            **_stable_diffusion(diffusers),
        )
        with mode:
            latents, text = torch.empty(2, 4, 16, 40, 64), torch.empty(2, 77, 768)
        yield _pipeline(pipe, mode, latents, text, arguments={"guidance_scale": 7.5})


@contextmanager
def mini(steps: int = 25) -> Iterator[FullSize]:
    """The embedded model, 64x64, 8 frames."""
    from mp_hooks.lab.mini.clips import FRAMES
    from mp_hooks.lab.mini.model import (
        GUIDANCE_SCALE,
        LATENT_CHANNELS,
        LATENT_SIZE,
        MAX_TOKENS,
        TEXT_WIDTH,
        build_pipeline,
    )

    with fake_weights() as mode:
        pipe = build_pipeline()
        pipe._guidance_scale, pipe._clip_skip = GUIDANCE_SCALE, None
        with mode:
            latents = torch.empty(2, LATENT_CHANNELS, FRAMES, LATENT_SIZE, LATENT_SIZE)
            text = torch.empty(2 * FRAMES, MAX_TOKENS, TEXT_WIDTH)
        yield _pipeline(pipe, mode, latents, text, steps=steps)


def _stable_diffusion(diffusers: Any) -> dict[str, Any]:
    """Stable Diffusion 1's VAE and text encoder in their published sizes, and a tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from mp_hooks.testing.tokenizer import build_tokenizer

    vae = diffusers.AutoencoderKL(
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return {
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(text).eval(),
        "tokenizer": build_tokenizer(["authentic", *PROMPT.split()], length=77),
    }


def _pipeline(pipe: Any, mode: FakeWeights, latents: Tensor, text: Tensor, steps: int = STEPS, **more: Any) -> FullSize:
    """`latents` and `text` are those of both branches."""
    pipe.scheduler.set_timesteps(steps)
    call = [latents, pipe.scheduler.timesteps[steps // 5]]
    shape = (len(latents) // 2, *latents.shape[1:])
    return FullSize(pipe, call, {"encoder_hidden_states": text}, shape, mode, steps=steps, **more)


FULL_SIZE = {
    "videocrafter2": videocrafter2,
    "diffusers-animatediff": animatediff,
    "lavie": lavie,
    "dynamicrafter": dynamicrafter,
    "mini": mini,
}
