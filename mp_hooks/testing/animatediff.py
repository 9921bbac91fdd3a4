"""Tiny random AnimateDiff: the host's own pipeline, UNet, motion modules and SparseCtrl, random weights."""

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
from mp_hooks.testing.videocrafter import write_pictures


class AnimateDiffCase(DiffusersCase):
    """AnimationPipeline; `pictures` is how many frames SparseCtrl is given, `options` are passed to the call."""

    name = "animatediff"
    settings: ClassVar = {"video_length": 4, "height": 16, "width": 16}

    def __init__(self, checkout: Path, pictures: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.checkout, self.pictures = checkout, pictures

    @contextmanager
    def host_imports(self) -> Iterator[None]:
        """The host's modules can be imported inside."""
        require("imageio", extra="animatediff")
        require("diffusers", extra="animatediff")
        with importable(self.checkout), shims(manifest.load(self.name).script.shims, self.device):
            yield

    @contextmanager
    def open(self) -> Iterator[Any]:
        with self.host_imports(), super().open() as pipe:
            yield pipe

    def build(self, diffusers: ModuleType) -> Any:
        tokenizer = build_tokenizer(WORDS, length=16)
        unet = self.unet()
        controlnet = self.controlnet(unet) if self.pictures else None
        pipeline = importlib.import_module("animatediff.pipelines.pipeline_animation").AnimationPipeline
        return pipeline(
            vae=image_autoencoder(diffusers),
            text_encoder=clip_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=diffusers.DDIMScheduler(**self.host_config("inference-v3")["noise_scheduler_kwargs"]),
        )

    def host_config(self, name: str) -> Any:
        """One of the host's own configurations of a model."""
        from omegaconf import OmegaConf

        return OmegaConf.to_container(OmegaConf.load(self.checkout / "configs" / "inference" / f"{name}.yaml"))

    def unet(self) -> nn.Module:
        """The host's own. Its motion modules' 32 groups set the widths.

        In 32 groups of its own, single pixels of the lowest level would be normalised to signs, which rounding turns.
        """
        unet = importlib.import_module("animatediff.models.unet").UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            **self.host_config("inference-v3")["unet_additional_kwargs"],
        )
        awaken(unet)
        return unet.eval()

    def everything(self, host: Any) -> list[nn.Module]:
        return [*super().everything(host), *([host.controlnet] if self.pictures else [])]

    def controlnet(self, unet: nn.Module) -> nn.Module:
        """The host's own SparseCtrl, made from `unet` as its script makes it."""
        unet.config.num_attention_heads = 8
        unet.config.projection_class_embeddings_input_dim = None
        controlnet = importlib.import_module("animatediff.models.sparse_controlnet").SparseControlNetModel.from_unet(
            unet, **self.host_config("sparsectrl/latent_condition")
        )
        awaken(controlnet)
        return controlnet.eval()

    def command(self, folder: Path) -> Command:
        """scripts.animate with a model for each prompt, the second one with a MotionLoRA and SparseCtrl."""
        from omegaconf import OmegaConf

        diffusers = require("diffusers", extra="animatediff")
        stable_diffusion = folder / "stable-diffusion"
        for part in ("tokenizer", "unet"):
            (stable_diffusion / part).mkdir(parents=True)
        with self.host_imports():
            from transformers import CLIPTokenizer

            torch.manual_seed(0)
            unet = self.unet()
            controlnet = self.controlnet(unet)
            write_tokenizer(stable_diffusion / "tokenizer", WORDS, length=77)
            tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion / "tokenizer", local_files_only=True)
            clip_text_encoder(tokenizer).save_pretrained(stable_diffusion / "text_encoder")
            image_autoencoder(diffusers).save_pretrained(stable_diffusion / "vae")
            unet.save_config(stable_diffusion / "unet")
        weights = unet.state_dict()
        motion = {name: weight for name, weight in weights.items() if "motion_modules." in name}
        flat = {name: weight for name, weight in weights.items() if name not in motion}
        torch.save(flat, stable_diffusion / "unet" / "diffusion_pytorch_model.bin")
        torch.save({"state_dict": motion}, folder / "motion.ckpt")
        torch.save({"state_dict": motion_lora(motion)}, folder / "lora.ckpt")
        torch.save({"controlnet": controlnet.state_dict()}, folder / "sparsectrl.ckpt")
        picture = next(write_pictures(folder / "pictures", 1).iterdir())
        configs = self.checkout / "configs" / "inference"
        model = {
            "inference_config": str(configs / "inference-v3.yaml"),
            "motion_module": str(folder / "motion.ckpt"),
            "steps": 4,
            "guidance_scale": 7.5,
            "n_prompt": [""],
            "seed": 7,
            **self.options,
        }
        controlled = {
            **model,
            "motion_module_lora_configs": [{"path": str(folder / "lora.ckpt"), "alpha": 1.0}],
            "controlnet_config": str(configs / "sparsectrl" / "latent_condition.yaml"),
            "controlnet_path": str(folder / "sparsectrl.ckpt"),
            "controlnet_images": [str(picture)],
        }
        first, second = self.prompts
        OmegaConf.save([{**model, "prompt": [first]}, {**controlled, "prompt": [second]}], folder / "tiny.yaml")
        options = {
            "--config": folder / "tiny.yaml",
            "--pretrained-model-path": stable_diffusion,
            "--L": 8,
            "--W": 32,
            "--H": 32,
        }
        words = [str(word) for option in options.items() for word in option]
        script = ["python", "-m", "scripts.animate"]
        return Command(script, words, self.checkout, self.checkout / "samples", dated=True)

    def sample(self, host: Any, prompts: list[str], seed: int, **extra: Any) -> Tensor:
        """The latents that the host is about to decode."""
        torch.manual_seed(seed)
        given = {}
        if self.pictures:
            pictures = torch.randn(1, 4, self.pictures, 8, 8)
            given = {"controlnet_images": pictures, "controlnet_image_index": list(range(self.pictures))}
        with swapped(host, "decode_latents", lambda latents: latents):
            settings = {"num_inference_steps": 4, "output_type": "latent", **self.settings, **self.options, **given}
            return host(prompts, **{**settings, **extra}).videos

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        frames = [host.vae.decode(frame / LATENT_SCALE).sample for frame in clean.unbind(2)]
        return torch.stack(frames, 2)


def motion_lora(motion: dict[str, Tensor], rank: int = 2) -> dict[str, Tensor]:
    """A random MotionLoRA for these weights of motion modules, in the form in which they are published."""
    lora = {}
    for name, weight in motion.items():
        block, _, projection = name.rpartition("attention_blocks.")
        number, _, projection = projection.partition(".")
        if block and projection in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"):
            start = f"{block}attention_blocks.{number}.processor.{projection.split('.')[0]}_lora"
            lora[f"{start}.down.weight"] = torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5
            lora[f"{start}.up.weight"] = torch.randn(weight.shape[0], rank) / rank**0.5
    return lora
