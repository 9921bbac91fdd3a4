"""Tiny random VideoCrafter 1 and 2."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.testing.lvdm import CLIP, LVDMCase, narrow


class VideoCrafterCase(LVDMCase):
    """Text-to-video, as the host's batch_ddim_sampling does it; `version` is that of its configuration file."""

    name = "videocrafter2"
    script = "scripts/run_text2video.sh"

    def __init__(self, checkout: Path, version: str = "t2v_512_v2.0") -> None:
        super().__init__(checkout)
        self.version = version

    def host_config(self) -> Any:
        """The host's own configuration."""
        from omegaconf import OmegaConf

        return OmegaConf.load(self.checkout / "configs" / f"inference_{self.version}.yaml")

    def tiny_config(self) -> Any:
        return narrow(self.host_config())

    def write_inputs(self, folder: Path) -> dict[str, Any]:
        (folder / "prompts.txt").write_text("\n".join(self.prompts), encoding="utf-8")
        return {"--prompt_file": folder / "prompts.txt", "--frames": 2 * self.frames}

    def rows(self, host: nn.Module, prompts: list[str], picture: Tensor) -> Tensor:
        """What the UNet attends to, [b, l, d]; `picture` [b, 3, h, w] is for the image-to-video model."""
        return host.get_learned_conditioning(prompts)

    def sample(self, host: nn.Module, prompts: list[str], seed: int, callback: Any = None) -> Tensor:
        sampler = importlib.import_module("lvdm.models.samplers.ddim").DDIMSampler(host)
        torch.manual_seed(seed)
        picture = (torch.rand(len(prompts), 3, 64, 64) * 2 - 1).to(self.device)
        fps = torch.tensor([28] * len(prompts), device=self.device)
        nothing = self.rows(host, [""] * len(prompts), torch.zeros_like(picture))
        latents, _ = sampler.sample(
            S=self.steps,
            batch_size=len(prompts),
            shape=(host.channels, self.frames, *self.size),
            conditioning={"c_crossattn": [self.rows(host, prompts, picture)], "fps": fps},
            unconditional_conditioning={"c_crossattn": [nothing], "fps": fps},
            unconditional_guidance_scale=12.0,
            eta=1.0,
            verbose=False,
            img_callback=callback and (lambda clean, _step: callback(clean)),
            clean_cond=True,
        )
        return latents


class VideoCrafterImageCase(VideoCrafterCase):
    """Image-to-video: the picture's tokens follow the text's. The widths of its image encoder are the host's own."""

    script = "scripts/run_image2video.sh"

    def __init__(self, checkout: Path) -> None:
        super().__init__(checkout, "i2v_512_v1.0")

    def tiny_config(self) -> Any:
        return narrow(self.host_config(), clip=f"{CLIP}-wide", width=1024)

    def write_inputs(self, folder: Path) -> dict[str, Any]:
        pictures = write_pictures(folder / "pictures", len(self.prompts))
        return {**super().write_inputs(folder), "--cond_input": pictures}

    def rows(self, host: nn.Module, prompts: list[str], picture: Tensor) -> Tensor:
        return torch.cat([super().rows(host, prompts, picture), host.get_image_embeds(picture)], dim=1)


def write_pictures(folder: Path, count: int) -> Path:
    """`count` small pictures of noise in a new folder; returns the folder."""
    from torchvision.io import write_png

    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
        write_png(picture, str(folder / f"{number}.png"))
    return folder
