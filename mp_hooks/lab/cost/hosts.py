"""Hosts at their real size: on fake weights, about to take a step, or on random ones on a device, to be sampled.

Sizes are the hosts' own: their configuration files, or the published models'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mp_hooks import backbones, patching
from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.hooks import Hooks
from mp_hooks.lab.cost.counting import fake_weights
from mp_hooks.testing import CASES
from mp_hooks.testing.case import HostCase, require
from mp_hooks.testing.diffusers import awaken
from mp_hooks.testing.lvdm import LVDMCase

Case = TypeVar("Case", bound=HostCase)

PROMPT = "a tiger walks in the forest"
STEPS = 50  # the paper's schedule
SEED = 7


@dataclass(frozen=True)
class Weights:
    """What a host is built on: fake weights, or without `fake` random ones of a type, on a device ("cpu", "cuda")."""

    fake: bool = True
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def mode(self) -> AbstractContextManager[AbstractContextManager[Any]]:
        """In it the host is built and used; yields what makes its tensors like the weights."""
        return fake_weights() if self.fake else nullcontext(torch.device(self.device))

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Modules built inside have each parameter moved as it is registered, and initialised there."""

        def register(original: Callable[..., None], module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
            if weight is not None and (weight.device.type, weight.dtype) != (self.device, self.dtype):
                weight = nn.Parameter(weight.detach().to(self.device, self.dtype), requires_grad=weight.requires_grad)
            original(module, name, weight)

        hooks = Hooks()
        if not self.fake:
            hooks.wrap(nn.Module, "register_parameter", register)
        try:
            yield
        finally:
            hooks.remove()


FAKE = Weights()


@dataclass(frozen=True)
class FullSize:
    """A host before a step.

    host: what an adapter takes. sample: the latents, sampled in that many steps through the host's public path. call,
    options: the arguments of its step. latents: their shape [b, c, t, h, w]. mode: in which it is computed. arguments:
    those of its run that its adapter reads. steps: of the schedule. frames: of the clip, where the latents' are fewer.
    begin: what the host does first and its adapter listens to. calls: of the denoiser in a step; a guided one needs
    the first alone.
    """

    host: Any
    sample: Callable[..., Tensor]
    call: Sequence[Any]
    options: dict[str, Any]
    latents: tuple[int, ...]
    mode: AbstractContextManager[Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    prompts: Sequence[str] = (PROMPT,)
    steps: int = STEPS
    frames: int | None = None
    begin: Callable[[], Any] = lambda: None
    calls: int = 1


@contextmanager
def full_size(name: str, repo: Path | None = None, weights: Weights = FAKE, **options: Any) -> Iterator[FullSize]:
    """Host `name`, on the code in `repo` or third_party/ if it has a checkout; an unknown name lists the valid ones.

    options: of its builder below.
    """
    if name not in FULL_SIZE:
        raise unknown_name("host of known full size", name, list(FULL_SIZE))
    build: Callable[..., AbstractContextManager[FullSize]] = FULL_SIZE[name]
    if name in patching.names():
        manifest = patching.load(name)
        checkout = repo or patching.default_checkout(manifest)
        if not patching.is_present(checkout):
            raise MotionPromptError(f"no checkout of {manifest.title} in {checkout}; get one with: mp-patch {name}")
        build = partial(build, checkout)
    elif repo is not None:
        raise MotionPromptError(f"{name} is a library, not a checkout; leave --repo out")
    with ExitStack() as stack:
        with weights.placed():
            full = stack.enter_context(build(weights=weights, **options))
        if not weights.fake:
            full.host.to(weights.device, weights.dtype)  # buffers too
            awaken(*backbones.adapter_for(full.host).modules())
        yield full


@contextmanager
def videocrafter2(checkout: Path, weights: Weights = FAKE) -> Iterator[FullSize]:
    """320x512, 16 frames (the host's scripts/run_text2video.sh)."""
    from mp_hooks.testing.videocrafter import VideoCrafterCase

    case = _placed(weights, VideoCrafterCase(checkout))
    with case.host_imports(), weights.mode() as mode:
        model = _latent_diffusion(case.host_config())
        with mode:
            latents, text = torch.empty(1, 4, 16, 40, 64), [torch.empty(1, 77, 1024) for _ in range(2)]
        conditional, unconditional = ({"c_crossattn": [rows], "fps": torch.tensor([28])} for rows in text)
        options = {"unconditional_conditioning": unconditional, "unconditional_guidance_scale": 12.0}
        yield _lvdm(case, model, mode, latents, conditional, options)


@contextmanager
def dynamicrafter(checkout: Path, weights: Weights = FAKE, version: str = "1024") -> Iterator[FullSize]:
    """16 frames of 576x1024, of 320x512 or of 256x256 by the model's `version` (the host's scripts/run.sh)."""
    from omegaconf import OmegaConf

    from mp_hooks.testing.dynamicrafter import DynamiCrafterCase

    case = _placed(weights, DynamiCrafterCase(checkout, version))
    size = {"1024": (72, 128), "512": (40, 64), "256": (32, 32)}[version]
    with case.host_imports(), weights.mode() as mode:
        model = _latent_diffusion(OmegaConf.load(checkout / "configs" / f"inference_{version}_v1.0.yaml"))
        with mode:
            latents, picture = (torch.empty(1, 4, 16, *size) for _ in range(2))
            rows = [torch.empty(1, 77 + 16 * 16, 1024) for _ in range(2)]  # of the picture, 16 a frame
        conditional, unconditional = ({"c_crossattn": [row], "c_concat": [picture]} for row in rows)
        options = {
            "unconditional_conditioning": unconditional,
            "unconditional_guidance_scale": 7.5,
            "fs": torch.tensor([10]),
            "guidance_rescale": 0.7,
        }
        yield _lvdm(case, model, mode, latents, conditional, options)


def _latent_diffusion(config: Any) -> nn.Module:
    for stage in ("cond_stage_config", "img_cond_stage_config"):
        if stage in config.model.params:
            config.model.params[stage].params.version = None  # no download
    return importlib.import_module("utils.utils").instantiate_from_config(config.model).eval()


def _lvdm(
    case: LVDMCase,
    model: nn.Module,
    mode: AbstractContextManager[Any],
    latents: Tensor,
    conditioning: dict[str, Any],
    options: dict[str, Any],
) -> FullSize:
    case.frames, case.size = latents.shape[2], tuple(latents.shape[3:])
    sampler = importlib.import_module("lvdm.models.samplers.ddim").DDIMSampler(model)
    sampler.make_schedule(STEPS, ddim_eta=1.0, verbose=False)
    index = STEPS - 1 - STEPS // 5  # the host counts down
    timestep = torch.tensor([int(sampler.ddim_timesteps[index])])
    call = [sampler, latents, conditioning, timestep, index]
    return FullSize(model, sampling(case, model), call, options, tuple(latents.shape), mode)


@contextmanager
def animatediff(weights: Weights = FAKE) -> Iterator[FullSize]:
    """Stable Diffusion 1.5 with AnimateDiff's second motion modules, 512x512, 16 frames."""
    from mp_hooks.testing.diffusers import AnimateDiffCase

    diffusers = require("diffusers", extra="diffusers")
    with weights.mode() as mode:
        pipe = diffusers.AnimateDiffPipeline(
            unet=diffusers.UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=True).eval(),
            scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
            motion_adapter=None,
            **_stable_diffusion(diffusers),
        )
        pipe._guidance_scale, pipe._clip_skip = 7.5, None
        with mode:
            latents, text = torch.empty(2, 4, 16, 64, 64), torch.empty(2 * 16, 77, 768)
        sample = sampling(AnimateDiffCase(), pipe, num_frames=16, height=512, width=512)
        yield _pipeline(pipe, sample, mode, latents, text)


@contextmanager
def animatediff_scripts(checkout: Path, weights: Weights = FAKE, clips: int = 1) -> Iterator[FullSize]:
    """guoyww's own code with the third motion modules (its configs/inference/inference-v3.yaml), 512x512, 16 frames."""
    from mp_hooks.testing.animatediff import AnimateDiffCase

    diffusers = require("diffusers", extra="animatediff")
    case = _placed(weights, AnimateDiffCase(checkout))
    with case.host_imports(), weights.mode() as mode:
        config = case.host_config("inference-v3")
        unet = importlib.import_module("animatediff.models.unet").UNet3DConditionModel(
            sample_size=64, cross_attention_dim=768, **config["unet_additional_kwargs"]
        )
        pipe = importlib.import_module("animatediff.pipelines.pipeline_animation").AnimationPipeline(
            unet=unet.eval(),
            scheduler=diffusers.DDIMScheduler(**config["noise_scheduler_kwargs"]),
            **_stable_diffusion(diffusers),
        )
        with mode:
            latents, text = torch.empty(2 * clips, 4, 16, 64, 64), torch.empty(2 * clips, 77, 768)
        sample = sampling(case, pipe, clips, video_length=16, height=512, width=512)
        arguments = {"guidance_scale": 7.5, "num_videos_per_prompt": 1}
        yield _pipeline(pipe, sample, mode, latents, text, arguments=arguments, prompts=[PROMPT] * clips)


@contextmanager
def lavie(checkout: Path, weights: Weights = FAKE) -> Iterator[FullSize]:
    """The base model, 320x512, 16 frames (the host's base/configs/sample.yaml)."""
    from mp_hooks.testing.lavie import SCHEDULE, LaVieCase

    diffusers = require("diffusers", extra="lavie")
    case = _placed(weights, LaVieCase(checkout))
    with case.host_imports(), weights.mode() as mode:
        unet = importlib.import_module("models.unet").UNet3DConditionModel(sample_size=64, cross_attention_dim=768)
        pipe = importlib.import_module("pipeline_videogen").VideoGenPipeline(
            unet=unet.eval(),
            scheduler=diffusers.DDPMScheduler(**SCHEDULE, clip_sample=False),
            **_stable_diffusion(diffusers),
        )
        with mode:
            latents, text = torch.empty(2, 4, 16, 40, 64), torch.empty(2, 77, 768)
        sample = sampling(case, pipe, video_length=16, height=320, width=512)
        yield _pipeline(pipe, sample, mode, latents, text, arguments={"guidance_scale": 7.5})


@contextmanager
def mini(steps: int = 25, weights: Weights = FAKE) -> Iterator[FullSize]:
    """The embedded model, 128x128, 16 frames."""
    from mp_hooks.lab.mini import model

    with weights.mode() as mode:
        form = model.FORM
        pipe = model.build_pipeline(form)
        pipe._guidance_scale, pipe._clip_skip = model.GUIDANCE_SCALE, None
        with mode:
            latents = torch.empty(2, form.latent_channels, form.frames, form.latent_size, form.latent_size)
            text = torch.empty(2 * form.frames, model.MAX_TOKENS, model.TEXT_WIDTH)
        yield _pipeline(
            pipe, lambda steps: model.sample([PROMPT], [SEED], steps, pipe=pipe), mode, latents, text, steps=steps
        )


@contextmanager
def wan(weights: Weights = FAKE) -> Iterator[FullSize]:
    """Wan 2.1's 1.3B model, 480x832, 81 frames, with UMT5-XXL."""
    from mp_hooks.testing.diffusers import WanCase, t5_tokenizer

    diffusers = require("diffusers", extra="diffusers")
    require("ftfy", extra="diffusers")
    with weights.mode() as mode:
        pipe = diffusers.WanPipeline(
            tokenizer=t5_tokenizer(length=512),
            text_encoder=_t5("UMT5", vocabulary=256_384),
            vae=diffusers.AutoencoderKLWan().eval(),
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=diffusers.WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30).eval(),
        )
        sample = sampling(WanCase(), pipe, num_frames=81, height=480, width=832, max_sequence_length=512)
        pipe._guidance_scale = 5.0
        with mode:
            latents, text = torch.empty(1, 16, 21, 60, 104), torch.empty(1, 512, 4096)

        def begin() -> None:
            pipe.encode_prompt(PROMPT, max_sequence_length=512)

        more = {"arguments": {"max_sequence_length": 512}, "frames": 81, "begin": begin, "calls": 2}
        yield _transformer(pipe, sample, mode, latents, text, {}, latents=tuple(latents.shape), **more)


@contextmanager
def cogvideox(weights: Weights = FAKE) -> Iterator[FullSize]:
    """CogVideoX's 2B model, 480x720, 49 frames, with T5-XXL."""
    from mp_hooks.testing.diffusers import CogVideoXCase, t5_tokenizer

    diffusers = require("diffusers", extra="diffusers")
    with weights.mode() as mode:
        pipe = diffusers.CogVideoXPipeline(
            tokenizer=t5_tokenizer(length=226),
            text_encoder=_t5("T5", vocabulary=32_128),
            vae=diffusers.AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * 4,
                up_block_types=("CogVideoXUpBlock3D",) * 4,
                block_out_channels=(128, 256, 256, 512),
            ).eval(),
            transformer=diffusers.CogVideoXTransformer3DModel().eval(),
            scheduler=diffusers.CogVideoXDDIMScheduler(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
            ),
        )
        sample = sampling(CogVideoXCase(), pipe, num_frames=49, height=480, width=720, max_sequence_length=226)
        pipe._guidance_scale = 6.0
        with mode:
            latents, text = torch.empty(2, 13, 16, 60, 90), torch.empty(2, 226, 4096)
        arguments = {"guidance_scale": 6.0, "max_sequence_length": 226, "num_frames": 49}
        more = {"latents": (1, 16, 13, 60, 90), "arguments": arguments, "frames": 49}
        yield _transformer(pipe, sample, mode, latents, text, {}, **more)


@contextmanager
def ltx(weights: Weights = FAKE) -> Iterator[FullSize]:
    """LTX-Video 0.9, 512x704, 161 frames, with T5-XXL."""
    from mp_hooks.testing.diffusers import LTXCase, t5_tokenizer

    diffusers = require("diffusers", extra="diffusers")
    with weights.mode() as mode:
        pipe = diffusers.LTXPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=diffusers.AutoencoderKLLTXVideo().eval(),
            text_encoder=_t5("T5", vocabulary=32_128),
            tokenizer=t5_tokenizer(length=128),
            transformer=diffusers.LTXVideoTransformer3DModel().eval(),
        )
        sample = sampling(LTXCase(), pipe, num_frames=161, height=512, width=704, max_sequence_length=128)
        pipe._guidance_scale = 3.0
        with mode:
            latents, text = torch.empty(2, 21 * 16 * 22, 128), torch.empty(2, 128, 4096)
            options = {"encoder_attention_mask": torch.ones(2, 128), "rope_interpolation_scale": (8 / 25, 32, 32)}
        size = {"num_frames": 21, "height": 16, "width": 22}
        more = {"latents": (1, 128, 21, 16, 22), "arguments": {"max_sequence_length": 128}, "frames": 161}
        yield _transformer(pipe, sample, mode, latents, text, options | size, **more)


def _transformer(
    pipe: Any,
    sample: Callable[..., Tensor],
    mode: AbstractContextManager[Any],
    states: Tensor,
    text: Tensor,
    options: dict[str, Any],
    **more: Any,
) -> FullSize:
    """`states` and `text` as the denoiser takes them, with further options."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(STEPS)
    timestep = pipe.scheduler.timesteps[STEPS // 5].expand(len(states))
    given = {"hidden_states": states, "encoder_hidden_states": text, "timestep": timestep, "return_dict": False}
    return FullSize(pipe, sample, [], given | options, mode=mode, **more)


def _t5(kind: str, vocabulary: int) -> nn.Module:
    """The encoder of T5-XXL or UMT5-XXL."""
    import transformers

    config = getattr(transformers, kind + "Config")(
        vocab_size=vocabulary,
        d_model=4096,
        d_kv=64,
        d_ff=10_240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    return getattr(transformers, kind + "EncoderModel")(config).eval()


def _placed(weights: Weights, case: Case) -> Case:
    case.device = weights.device
    return case


def sampling(case: HostCase, host: Any, clips: int = 1, **settings: Any) -> Callable[..., Tensor]:
    """What samples `host` in a number of steps, as its tiny `case` does, in these settings and those it is given."""

    def sample(steps: int, **more: Any) -> Tensor:
        prompts = [PROMPT] * clips
        if isinstance(case, LVDMCase):
            case.steps = steps
            return case.sample(host, prompts, SEED)
        extra = {"num_inference_steps": steps, **settings, **more}
        return case.sample(host, prompts, SEED, **extra)  # type: ignore[call-arg]

    return sample


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


def _pipeline(
    pipe: Any,
    sample: Callable[..., Tensor],
    mode: AbstractContextManager[Any],
    latents: Tensor,
    text: Tensor,
    steps: int = STEPS,
    **more: Any,
) -> FullSize:
    """`latents` and `text` are those of both branches."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(steps)
    call = [latents, pipe.scheduler.timesteps[steps // 5]]
    shape = (len(latents) // 2, *latents.shape[1:])
    return FullSize(pipe, sample, call, {"encoder_hidden_states": text}, shape, mode, steps=steps, **more)


FULL_SIZE = {
    "videocrafter2": videocrafter2,
    "diffusers-animatediff": animatediff,
    "lavie": lavie,
    "dynamicrafter": dynamicrafter,
    "animatediff": animatediff_scripts,
    "diffusers-wan": wan,
    "diffusers-cogvideox": cogvideox,
    "diffusers-ltx": ltx,
    "mini": mini,
}

# in which the hosts' scripts, or users of their pipelines, run them
DTYPES = {
    **dict.fromkeys(CASES, torch.float16),
    **dict.fromkeys(["videocrafter2", "dynamicrafter", "animatediff", "mini"], torch.float32),
    **dict.fromkeys(["diffusers-wan", "diffusers-cogvideox", "diffusers-ltx"], torch.bfloat16),
}
