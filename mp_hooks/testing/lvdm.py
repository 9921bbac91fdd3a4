"""Tiny random VideoCrafter and DynamiCrafter: real code, random weights, seconds on a CPU.

python -m mp_hooks.testing.lvdm CHECKOUT OUT      writes OUT/tiny.yaml and OUT/tiny.ckpt for the host's script
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.compat import shims
from mp_hooks.files import replacing
from mp_hooks.patching import manifest
from mp_hooks.testing.case import Command, HostCase, require

TEXT = Path(__file__).with_name("mp-tiny-clip.json")  # ours; open_clip has to be told of it
KNOWN_TEXT, KNOWN_WIDTH = "ViT-B-32", 512  # the smallest that open_clip knows by name, for the host's own script


def tiny_config(checkout: Path, text: str, width: int) -> Any:
    """The host's own VideoCrafter2 configuration with narrow layers, 15 M parameters without the text encoder."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(checkout / "configs" / "inference_t2v_512_v2.0.yaml")
    params = config.model.params
    params.unet_config.params.update(model_channels=32, num_head_channels=16, context_dim=width)
    params.first_stage_config.params.ddconfig.ch = 32
    params.cond_stage_config.params.arch = text
    return config


def build(config: Any, seed: int = 0) -> nn.Module:
    """The host's model with random weights; layers that start at zero are given some, or they would be dead."""
    instantiate = importlib.import_module("utils.utils").instantiate_from_config
    torch.manual_seed(seed)
    model = instantiate(config.model).eval()
    for parameter in model.model.diffusion_model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


@contextmanager
def importable(checkout: Path) -> Iterator[None]:
    """The host's modules can be imported inside; afterwards they are forgotten, as other hosts use the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("lvdm", "utils"):
                del sys.modules[name]


class LVDMCase(HostCase):
    """What both hosts share."""

    @contextmanager
    def in_float64(self, host: nn.Module) -> Iterator[None]:
        """The UNet casts its input to the precision it was built for."""
        unet = host.model.diffusion_model
        own = unet.dtype
        unet.dtype = torch.float64
        host.double()  # the noise schedule too
        try:
            with super().in_float64(host):
                yield
        finally:
            unet.dtype = own
            host.float()

    def own_decode(self, host: nn.Module, clean: Tensor) -> Tensor:
        return host.decode_first_stage(clean)


class VideoCrafterCase(LVDMCase):
    """Text-to-video through DDIMSampler, as the host's batch_ddim_sampling calls it."""

    name = "videocrafter2"

    def __init__(self, checkout: Path, steps: int = 4, frames: int = 4) -> None:
        self.checkout, self.steps, self.frames = checkout, steps, frames

    @contextmanager
    def open(self) -> Iterator[nn.Module]:
        open_clip = require("open_clip", extra="videocrafter")
        with importable(self.checkout), shims(manifest.load(self.name).script.shims, "cpu"):
            open_clip.add_model_config(TEXT)
            yield build(tiny_config(self.checkout, TEXT.stem, width=64))

    def sample(self, host: nn.Module, prompts: list[str], seed: int, callback: Any = None) -> Tensor:
        sampler = importlib.import_module("lvdm.models.samplers.ddim").DDIMSampler(host)
        torch.manual_seed(seed)
        fps = torch.tensor([28] * len(prompts))
        conditioning = {"c_crossattn": [host.get_learned_conditioning(prompts)], "fps": fps}
        unconditional = {"c_crossattn": [host.get_learned_conditioning([""] * len(prompts))], "fps": fps}
        latents, _ = sampler.sample(
            S=self.steps,
            batch_size=len(prompts),
            shape=(host.channels, self.frames, 8, 8),
            conditioning=conditioning,
            unconditional_conditioning=unconditional,
            unconditional_guidance_scale=12.0,
            eta=1.0,
            verbose=False,
            img_callback=callback,
            clean_cond=True,
        )
        return latents

    def command(self, folder: Path) -> Command:
        """scripts/run_text2video.sh."""
        config, weights = write_tiny(self.checkout, folder)
        prompts = folder / "prompts.txt"
        prompts.write_text("\n".join(self.prompts), encoding="utf-8")
        files = {"--config": config, "--ckpt_path": weights, "--prompt_file": prompts, "--savedir": folder / "videos"}
        sizes = {"--height": 64, "--width": 64, "--frames": 8, "--ddim_steps": 4}
        arguments = [str(word) for option in (files | sizes).items() for word in option]
        return Command(["bash", "scripts/run_text2video.sh", *arguments], self.checkout, folder / "videos")

    def own_predictions(self, host: nn.Module, prompts: list[str], seed: int) -> list[Tensor]:
        predictions: list[Tensor] = []
        self.sample(host, prompts, seed, callback=lambda clean, _step: predictions.append(clean))
        return predictions


class DynamiCrafterCase(LVDMCase):
    """Image-to-video from its 512 configuration, as the host's image_guided_synthesis calls it.

    v-prediction, dynamic rescale, guidance_rescale and decoding frame by frame; `cfg_img` turns on the sampler with a
    scale of its own for the image.
    """

    name = "dynamicrafter"
    steps, frames = 4, 4

    def __init__(self, checkout: Path, cfg_img: float | None = None) -> None:
        self.checkout, self.cfg_img = checkout, cfg_img

    @contextmanager
    def open(self) -> Iterator[nn.Module]:
        open_clip = require("open_clip", extra="videocrafter")
        with importable(self.checkout), shims(manifest.load(self.name).script.shims, "cpu"):
            from omegaconf import OmegaConf

            open_clip.add_model_config(TEXT)
            config = OmegaConf.load(self.checkout / "configs" / "inference_512_v1.0.yaml")
            params = config.model.params
            params.unet_config.params.update(
                model_channels=32, num_head_channels=16, context_dim=64, temporal_length=self.frames
            )
            params.unet_config.params.use_checkpoint = False  # as the host's script sets it
            params.first_stage_config.params.ddconfig.ch = 32
            params.cond_stage_config.params.update(arch=TEXT.stem, version=None)
            params.img_cond_stage_config.params.update(arch=TEXT.stem, version=None)
            params.image_proj_stage_config.params.update(
                dim=64, depth=1, dim_head=16, heads=4, embedding_dim=64, output_dim=64, video_length=self.frames
            )
            yield build(config)

    def sample(self, host: nn.Module, prompts: list[str], seed: int, callback: Any = None) -> Tensor:
        name = "ddim" if self.cfg_img is None else "ddim_multiplecond"
        sampler = importlib.import_module(f"lvdm.models.samplers.{name}").DDIMSampler(host)
        torch.manual_seed(seed)
        image = torch.rand(len(prompts), 3, 64, 64) * 2 - 1
        first = torch.randn(len(prompts), host.channels, 1, 8, 8).expand(-1, -1, self.frames, -1, -1)

        def conditioning(words: list[str], picture: Tensor) -> dict[str, list[Tensor]]:
            tokens = host.image_proj_model(host.embedder(picture))
            return {"c_crossattn": [torch.cat([host.get_learned_conditioning(words), tokens], 1)], "c_concat": [first]}

        nothing = [""] * len(prompts)
        image_only = None if self.cfg_img is None else conditioning(nothing, image)
        latents, _ = sampler.sample(
            S=self.steps,
            batch_size=len(prompts),
            shape=(host.channels, self.frames, 8, 8),
            unconditional_conditioning=conditioning(nothing, torch.zeros_like(image)),
            conditioning=conditioning(prompts, image),
            unconditional_guidance_scale=7.5,
            unconditional_conditioning_img_nonetext=image_only,
            cfg_img=self.cfg_img,
            eta=1.0,
            fs=torch.tensor([24] * len(prompts)),
            timestep_spacing="uniform_trailing",
            guidance_rescale=0.7,
            verbose=False,
            img_callback=callback and (lambda clean, step: callback(clean / self._rescale(sampler, step))),
        )
        return latents

    def _rescale(self, sampler: Any, step: int) -> float:
        """What the host multiplies its pred_x0 with."""
        return float(sampler.ddim_scale_arr_prev[self.steps - 1 - step])

    def own_predictions(self, host: nn.Module, prompts: list[str], seed: int) -> list[Tensor]:
        predictions: list[Tensor] = []
        self.sample(host, prompts, seed, callback=predictions.append)
        return predictions


def write_tiny(checkout: Path, out: Path) -> tuple[Path, Path]:
    """Write tiny.yaml and tiny.ckpt for the host's script; returns their paths."""
    from omegaconf import OmegaConf

    with importable(checkout), shims(manifest.load("videocrafter2").script.shims, "cpu"):
        config = tiny_config(checkout, KNOWN_TEXT, KNOWN_WIDTH)
        with replacing(out / "tiny.ckpt") as temporary:
            torch.save({"state_dict": build(config).state_dict()}, temporary)
        with replacing(out / "tiny.yaml") as temporary:
            OmegaConf.save(config, temporary)
    return out / "tiny.yaml", out / "tiny.ckpt"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random VideoCrafter for its own script.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    print(*write_tiny(args.checkout.resolve(), args.out))


if __name__ == "__main__":
    main()
