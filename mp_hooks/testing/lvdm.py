"""Tiny random VideoCrafter: real code, random weights, seconds on a CPU.

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
from mp_hooks.testing.conformance import HostCase

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


class VideoCrafterCase(HostCase):
    """Text-to-video through DDIMSampler, as the host's batch_ddim_sampling calls it."""

    def __init__(self, checkout: Path, steps: int = 4, frames: int = 4) -> None:
        self.checkout, self.steps, self.frames = checkout, steps, frames

    @contextmanager
    def open(self) -> Iterator[nn.Module]:
        with importable(self.checkout), shims(manifest.load("videocrafter2").script.shims, "cpu"):
            import open_clip

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

    def own_predictions(self, host: nn.Module, prompts: list[str], seed: int) -> list[Tensor]:
        predictions: list[Tensor] = []
        self.sample(host, prompts, seed, callback=lambda clean, _step: predictions.append(clean))
        return predictions

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
