"""Tiny random LaVie: the host's own pipeline and UNet, random weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.backbones.inflated.pipeline import LATENT_SCALE
from mp_hooks.compat import shims, swapped
from mp_hooks.patching import manifest
from mp_hooks.testing.case import Command, importable, require
from mp_hooks.testing.diffusers import WORDS, DiffusersCase, awaken, clip_text_encoder, image_autoencoder
from mp_hooks.testing.tokenizer import build_tokenizer, write_tokenizer

METHODS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "EulerDiscreteScheduler": "eulerdiscrete"}
SCHEDULE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 1}


class LaVieCase(DiffusersCase):
    """VideoGenPipeline; `scheduler` names the diffusers class, `options` are passed to the call."""

    name = "lavie"
    settings: ClassVar = {"video_length": 4, "height": 16, "width": 16}

    def __init__(self, checkout: Path, scheduler: str = "DDPMScheduler", **options: Any) -> None:
        super().__init__(**options)
        self.checkout, self.scheduler = checkout, scheduler

    @contextmanager
    def host_imports(self) -> Iterator[None]:
        """The host's modules can be imported inside."""
        require("rotary_embedding_torch", extra="lavie")
        base = self.checkout / "base"
        with importable(base / "pipelines", base), shims(manifest.load(self.name).script.shims, self.device):
            yield

    @contextmanager
    def open(self) -> Iterator[Any]:
        with self.host_imports(), super().open() as pipe:
            yield pipe

    def build(self, diffusers: ModuleType) -> Any:
        tokenizer = build_tokenizer(WORDS, length=16)
        unet = self.unet()
        scheduler = getattr(diffusers, self.scheduler)(**SCHEDULE)
        if "clip_sample" in scheduler.config:
            scheduler.register_to_config(clip_sample=False)
        pipeline = importlib.import_module("pipeline_videogen").VideoGenPipeline
        vae, text_encoder = image_autoencoder(diffusers), clip_text_encoder(tokenizer)
        return pipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler)

    def unet(self) -> nn.Module:
        """The host's own, four levels of 32 channels."""
        unet = importlib.import_module("models.unet").UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=1,
        )
        awaken(unet)
        return unet

    def command(self, folder: Path) -> Command:
        """pipelines/sample.sh on its own kinds of files, float16 as it is."""
        from omegaconf import OmegaConf

        diffusers = require("diffusers", extra="lavie")
        require("imageio_ffmpeg", extra="lavie")  # without it imageio takes no quality
        stable_diffusion = folder / "pretrained" / "stable-diffusion-v1-4"
        for part in ("tokenizer", "unet"):
            (stable_diffusion / part).mkdir(parents=True)
        with self.host_imports():
            from transformers import CLIPTokenizer

            torch.manual_seed(0)
            unet = self.unet()
            write_tokenizer(stable_diffusion / "tokenizer", WORDS, length=77)
            tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion / "tokenizer", local_files_only=True)
            clip_text_encoder(tokenizer).save_pretrained(stable_diffusion / "text_encoder")
            image_autoencoder(diffusers).save_pretrained(stable_diffusion / "vae")
            diffusers.PNDMScheduler(**SCHEDULE, skip_prk_steps=True).save_pretrained(stable_diffusion / "scheduler")
            unet.save_config(stable_diffusion / "unet")
        weights = unet.state_dict()
        torch.save({"ema": weights}, folder / "lavie_base.pt")
        # Stable Diffusion's file holds no temporal layers.
        flat = {key: weight for key, weight in weights.items() if "_temp" not in key}
        torch.save(flat, stable_diffusion / "unet" / "diffusion_pytorch_model.bin")
        config = OmegaConf.load(self.checkout / "base" / "configs" / "sample.yaml")
        config.update(
            ckpt_path=str(folder / "lavie_base.pt"),
            pretrained_path=str(folder / "pretrained"),
            output_folder=f"{folder / 'videos'}/",  # the host puts the prompt right behind it
            video_length=8,
            image_size=[32, 32],
            seed=7,
            sample_method=METHODS[self.scheduler],
            num_sampling_steps=4,
            text_prompt=self.prompts,
            **self.options,
        )
        OmegaConf.save(config, folder / "tiny.yaml")
        options = ["--config", str(folder / "tiny.yaml")]
        return Command(["bash", "pipelines/sample.sh"], options, self.checkout / "base", folder / "videos")

    def sample(self, host: Any, prompts: list[str], seed: int, **extra: Any) -> Tensor:
        """The latents that the host is about to decode."""
        torch.manual_seed(seed)
        settings = {"num_inference_steps": 4, **self.settings, **self.options, **extra}
        with swapped(host, "decode_latents", lambda latents: latents):
            return host(prompts, **settings).video

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        frames = [host.vae.decode(frame / LATENT_SCALE).sample for frame in clean.unbind(2)]
        return torch.stack(frames, 2)
