"""Tiny random DynamiCrafter."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.testing.lvdm import LVDMCase, narrow
from mp_hooks.testing.videocrafter import write_pictures


class DynamiCrafterCase(LVDMCase):
    """Image-to-video, as the host's image_guided_synthesis does it, from its 256, 512 or 1024 configuration.

    512 and 1024 have v-prediction, dynamic rescale, guidance_rescale and decoding frame by frame. cfg_img: a scale for
    the image too, and the sampler that takes one. ends: "loop" or "interp", where first and last frame are given.
    """

    name = "dynamicrafter"

    def __init__(
        self, checkout: Path, version: str = "512", cfg_img: float | None = None, ends: str | None = None
    ) -> None:
        super().__init__(checkout)
        self.version, self.cfg_img, self.ends = version, cfg_img, ends
        self.script = f"scripts/run.sh {version}"

    def tiny_config(self) -> Any:
        from omegaconf import OmegaConf

        config = narrow(OmegaConf.load(self.checkout / "configs" / f"inference_{self.version}_v1.0.yaml"))
        params = config.model.params
        params.unet_config.params.update(temporal_length=self.frames, use_checkpoint=False)  # as the host's script
        params.image_proj_stage_config.params.update(
            dim=64, depth=1, dim_head=16, heads=4, embedding_dim=64, output_dim=64, video_length=self.frames
        )
        return config

    def write_inputs(self, folder: Path) -> dict[str, Any]:
        inputs = write_pictures(folder / "inputs", len(self.prompts) * (2 if self.ends == "interp" else 1))
        (inputs / "prompts.txt").write_text("\n".join(self.prompts), encoding="utf-8")
        options: dict[str, Any] = {"--prompt_dir": inputs, "--video_length": self.frames}
        if self.cfg_img is not None:
            options |= {"--multiple_cond_cfg": None, "--cfg_img": self.cfg_img}
        if self.ends is not None:
            options[f"--{self.ends}"] = None
        return options

    def sample(self, host: nn.Module, prompts: list[str], seed: int, callback: Any = None) -> Tensor:
        name = "ddim" if self.cfg_img is None else "ddim_multiplecond"
        sampler = importlib.import_module(f"lvdm.models.samplers.{name}").DDIMSampler(host)
        torch.manual_seed(seed)
        image = (torch.rand(len(prompts), 3, 64, 64) * 2 - 1).to(self.device)
        given = torch.randn(len(prompts), host.channels, 1, *self.size).repeat(1, 1, self.frames, 1, 1).to(self.device)
        if self.ends is not None:
            given[:, :, 1:-1] = 0

        def conditioning(words: list[str], picture: Tensor) -> dict[str, list[Tensor]]:
            tokens = host.image_proj_model(host.embedder(picture))
            return {"c_crossattn": [torch.cat([host.get_learned_conditioning(words), tokens], 1)], "c_concat": [given]}

        nothing = [""] * len(prompts)
        image_only = None if self.cfg_img is None else conditioning(nothing, image)
        spacing, rescale = ("uniform", 0.0) if self.version == "256" else ("uniform_trailing", 0.7)
        latents, _ = sampler.sample(
            S=self.steps,
            batch_size=len(prompts),
            shape=(host.channels, self.frames, *self.size),
            unconditional_conditioning=conditioning(nothing, torch.zeros_like(image)),
            conditioning=conditioning(prompts, image),
            unconditional_guidance_scale=7.5,
            unconditional_conditioning_img_nonetext=image_only,
            cfg_img=self.cfg_img,
            eta=1.0,
            fs=torch.tensor([host.model.diffusion_model.default_fs] * len(prompts), device=self.device),
            timestep_spacing=spacing,
            guidance_rescale=rescale,
            verbose=False,
            img_callback=callback and (lambda clean, step: callback(clean / self.rescale(host, sampler, step))),
        )
        return latents

    def rescale(self, host: nn.Module, sampler: Any, step: int) -> float:
        """What the host multiplies its pred_x0 with."""
        return float(sampler.ddim_scale_arr_prev[self.steps - 1 - step]) if host.use_dynamic_rescale else 1.0
