"""Tiny random LaVie: the host's own pipeline and UNet, random weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mp_hooks.backbones.lavie import LATENT_SCALE
from mp_hooks.compat import shims, swapped
from mp_hooks.mini.model import build_tokenizer
from mp_hooks.testing.diffusers import WORDS, DiffusersCase, awaken, clip_text_encoder, image_autoencoder

SHIMS = ["diffusers_pipeline_utils", "clip_feature_extractor"]


@contextmanager
def importable(checkout: Path) -> Iterator[None]:
    """The host's modules can be imported inside; afterwards they are forgotten, as their names are common."""
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(checkout / "base" / "pipelines"), str(checkout / "base")]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("models", "pipeline_videogen", "download"):
                del sys.modules[name]


class LaVieCase(DiffusersCase):
    """VideoGenPipeline; `scheduler` names the diffusers class, `options` are passed to the call."""

    settings: ClassVar = {"video_length": 4, "height": 16, "width": 16}

    def __init__(self, checkout: Path, scheduler: str = "DDPMScheduler", **options: Any) -> None:
        super().__init__(**options)
        self.checkout, self.scheduler = checkout, scheduler

    @contextmanager
    def open(self) -> Iterator[Any]:
        pytest.importorskip("rotary_embedding_torch", reason="LaVie needs pip install rotary_embedding_torch")
        with importable(self.checkout), shims(SHIMS, "cpu"), super().open() as pipe:
            yield pipe

    def build(self, diffusers: ModuleType) -> Any:
        tokenizer = build_tokenizer(WORDS, length=16)
        unet = importlib.import_module("models.unet").UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=1,
        )
        awaken(unet)
        scheduler = getattr(diffusers, self.scheduler)(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", steps_offset=1
        )
        if "clip_sample" in scheduler.config:
            scheduler.register_to_config(clip_sample=False)
        pipeline = importlib.import_module("pipeline_videogen").VideoGenPipeline
        vae, text_encoder = image_autoencoder(diffusers), clip_text_encoder(tokenizer)
        return pipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler)

    def sample(self, host: Any, prompts: list[str], seed: int) -> Tensor:
        """The latents that the host is about to decode."""
        torch.manual_seed(seed)
        with swapped(host, "decode_latents", lambda latents: latents):
            return host(prompts, num_inference_steps=4, **{**self.settings, **self.options}).video

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        frames = [host.vae.decode(frame / LATENT_SCALE).sample for frame in clean.unbind(2)]
        return torch.stack(frames, 2)
