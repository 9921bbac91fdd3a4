"""What tiny random VideoCrafter and DynamiCrafter share: real code, random weights, seconds on a CPU."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks.compat import shims
from mp_hooks.patching import manifest
from mp_hooks.testing.case import Command, HostCase, importable, require

CLIP = "mp-tiny-clip"  # of our own, in the file of that name: open_clip knows none this small


class LVDMCase(HostCase):
    """A LatentDiffusion model from one of the host's own configurations, made narrow."""

    steps, frames, size = 4, 4, (8, 8)  # of the latents
    script: str

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    @abstractmethod
    def tiny_config(self) -> Any:
        """The host's own configuration with narrow layers."""

    @abstractmethod
    def write_inputs(self, folder: Path) -> dict[str, Any]:
        """Write prompts and pictures into `folder`; the script's options that name them."""

    @contextmanager
    def host_imports(self) -> Iterator[None]:
        """The host's modules can be imported inside; afterwards they are forgotten, as other hosts use their names."""
        require("open_clip", extra="videocrafter")
        with importable(self.checkout), shims(manifest.load(self.name).script.shims, self.device):
            yield

    @contextmanager
    def open(self) -> Iterator[nn.Module]:
        with self.host_imports():
            yield build(self.tiny_config()).to(self.device)

    def command(self, folder: Path) -> Command:
        """The host's script on a configuration and a checkpoint of its own kinds."""
        from omegaconf import OmegaConf

        with self.host_imports():
            config = self.tiny_config()
            torch.save({"state_dict": build(config).state_dict()}, folder / "tiny.ckpt")
            OmegaConf.save(config, folder / "tiny.yaml")
        options = {
            "--config": folder / "tiny.yaml",
            "--ckpt_path": folder / "tiny.ckpt",
            "--savedir": folder / "videos",
            "--height": 64,
            "--width": 64,
            "--ddim_steps": self.steps,
            **self.write_inputs(folder),
        }
        words = [str(word) for option in options.items() for word in option if word is not None]
        return Command(["bash", *self.script.split()], words, self.checkout, folder / "videos")

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

    def own_predictions(self, host: nn.Module, prompts: list[str], seed: int) -> list[Tensor]:
        predictions: list[Tensor] = []
        self.sample(host, prompts, seed, callback=predictions.append)
        return predictions

    @abstractmethod
    def sample(self, host: nn.Module, prompts: list[str], seed: int, callback: Any = None) -> Tensor:
        """As HostCase says; `callback` is handed z0_hat after every step."""

    def own_decode(self, host: nn.Module, clean: Tensor) -> Tensor:
        return host.decode_first_stage(clean)


def narrow(config: Any, clip: str = CLIP, width: int = 64) -> Any:
    """A host's configuration with few levels, blocks and channels and a CLIP of ours, its text of `width`, in place."""
    params = config.model.params
    params.unet_config.params.update(
        model_channels=32,
        channel_mult=[1, 2, 2],
        attention_resolutions=[4, 2, 1],
        num_res_blocks=1,
        num_head_channels=16,
        context_dim=width,
    )
    params.first_stage_config.params.ddconfig.update(ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1)
    for stage in ("cond_stage_config", "img_cond_stage_config", "cond_img_config"):
        if stage in params:
            kind = params[stage].target.rpartition(".")[2]
            params[stage].target = "mp_hooks.testing.lvdm.tiny_encoder"
            params[stage].params.update(kind=kind, arch=clip, version=None)
    return config


def tiny_encoder(kind: str, **params: Any) -> nn.Module:
    """The host's own text or image encoder around a CLIP of ours, wherever its configuration names this function."""
    import open_clip

    open_clip.add_model_config(Path(__file__).parent)
    return getattr(importlib.import_module("lvdm.modules.encoders.condition"), kind)(**params)


def build(config: Any, seed: int = 0) -> nn.Module:
    """The host's model with random weights; layers that start at zero are given some, or they would be dead."""
    instantiate = importlib.import_module("utils.utils").instantiate_from_config
    torch.manual_seed(seed)
    model = instantiate(config.model).eval()
    for parameter in model.model.diffusion_model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model
