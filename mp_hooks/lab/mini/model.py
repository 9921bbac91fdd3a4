"""The mini model: an ordinary AnimateDiffPipeline of a few million parameters, its construction and its sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.lab.mini.clips import FRAMES, SIZE, VOCABULARY
from mp_hooks.testing.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

PACKAGED = Path(__file__).parent / "model"
DISCRIMINATOR = Path(__file__).parent / "flow_discriminator"  # flow discriminator trained on clips of this world
GUIDANCE = Path(__file__).parent / "guidance.yaml"
TEXT_WIDTH = 96
MAX_TOKENS = 24
GUIDANCE_SCALE = 4.0
CALL = {"num_inference_steps": 25, "guidance_scale": GUIDANCE_SCALE}  # of any of AnimateDiff's pipelines


def frames_of(size: int) -> int:
    """Frames of a clip of this side: one for every 8 pixels."""
    return FRAMES * size // SIZE


@dataclass(frozen=True)
class Form:
    """How large a mini model is: its clips, which are square, and its networks. The defaults are the packaged one's."""

    size: int = SIZE
    latent_channels: int = 16
    vae_channels: tuple[int, ...] = (16, 32, 64, 64)  # each level but the first halves the side
    unet_channels: tuple[int, ...] = (48, 96, 112)
    text_levels: int = 2  # of the UNet, from the coarsest, that attend to the text

    @property
    def frames(self) -> int:
        return frames_of(self.size)

    @property
    def latent_size(self) -> int:
        return self.size >> (len(self.vae_channels) - 1)


FORM = Form()


def build_pipeline(form: Form = FORM) -> AnimateDiffPipeline:
    """An untrained mini model with random weights (drawn from torch's global generator)."""
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, UNetMotionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer(VOCABULARY, MAX_TOKENS)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(form.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(form.vae_channels),
        block_out_channels=form.vae_channels,
        layers_per_block=1,
        latent_channels=form.latent_channels,
        norm_num_groups=8,
        sample_size=form.size,
        # Training folds the latents' mean and deviation into the 1x1 convolutions around them.
        scaling_factor=1.0,
        force_upcast=False,
    )
    finer = len(form.unet_channels) - form.text_levels
    unet = UNetMotionModel(
        sample_size=form.latent_size,
        in_channels=form.latent_channels,
        out_channels=form.latent_channels,
        # Text attention at coarse levels only: elsewhere it costs as much as the rest and adds little.
        down_block_types=("DownBlockMotion",) * finer + ("CrossAttnDownBlockMotion",) * form.text_levels,
        up_block_types=("CrossAttnUpBlockMotion",) * form.text_levels + ("UpBlockMotion",) * finer,
        block_out_channels=form.unet_channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
        use_motion_mid_block=True,
    )
    scheduler = DDIMScheduler(  # AnimateDiff's own, but for the prediction
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="linspace",
        prediction_type="v_prediction",
    )
    return AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=None,
        scheduler=scheduler,
    )


def load_pipeline(folder: str | Path = PACKAGED) -> AnimateDiffPipeline:
    """Load the mini model in float32 on the CPU, by default the packaged one; touches no network.

    Raises MotionPromptError when the folder holds no model or diffusers is missing.
    """
    try:
        from diffusers import AnimateDiffPipeline
    except ImportError as error:
        raise MotionPromptError("the mini model needs diffusers: pip install 'mp_hooks[diffusers]'") from error

    if not (Path(folder) / "model_index.json").is_file():
        raise MotionPromptError(f"{folder} holds no mini model; train one with scripts/train_mini.sh --out DIR")
    pipe = AnimateDiffPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def pipeline_on(device: str, folder: str) -> AnimateDiffPipeline:
    """`load_pipeline` once a process, on a device."""
    return load_pipeline(folder).to(device)


def shape_of(pipe: AnimateDiffPipeline) -> tuple[int, int]:
    """Frames and side in pixels of the clips that a mini model was trained on."""
    size = pipe.vae.config.sample_size
    return frames_of(size), size


def guidance(config: MotionPromptConfig | None = None) -> MotionPromptConfig:
    """The configuration for guiding the mini model: its own if none is given, and its own discriminator."""
    config = config or load_config(GUIDANCE)
    return config if config.discriminator else replace(config, discriminator=str(DISCRIMINATOR))


def sample(
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 25,
    guidance_scale: float = GUIDANCE_SCALE,
    pipe: AnimateDiffPipeline | None = None,
    batch: int = 8,
) -> Tensor:
    """Sample one clip a prompt through the ordinary pipeline call: videos [b, 3, t, h, w] in [-1, 1].

    seeds gives each clip its own generator, so a clip depends on its prompt and seed, not on its neighbours.
    """
    if len(prompts) != len(seeds):
        raise MotionPromptError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
    pipe = load_pipeline() if pipe is None else pipe
    num_frames, size = shape_of(pipe)
    videos = []
    for start in range(0, len(prompts), batch):
        frames = pipe(
            prompt=list(prompts[start : start + batch]),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]],
            num_frames=num_frames,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="pt",
        ).frames
        videos.append(frames.transpose(1, 2).float() * 2 - 1)
    return torch.cat(videos)
