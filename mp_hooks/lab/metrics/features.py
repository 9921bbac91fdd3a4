"""VBench's consistency of subject and background: image features of the frames compared along the clip.

Preprocessing and formula are those of VBench (arXiv 2311.17982): DINO ViT-B/16 for the subject, CLIP ViT-B/32 for the
background. Both need weights, from a file or from the hub; no other network takes their place.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError

HUB = "hub"  # in place of a file of weights: download them
DINO, CLIP = "vit_base_patch16_224.dino", "ViT-B-32-quickgelu"  # in timm, in open_clip
SIDE, PATCH = 224, 16
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Encoder:
    """Features of frames, uint8 [t, 3, h, w] -> [t, d]: `prepare` makes the images that `network` is given."""

    network: nn.Module
    prepare: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        return torch.cat([self.network(image[None]) for image in self.prepare(frames.float())])


def consistency(features: Tensor) -> float:
    """Mean cosine similarity of each frame to the one before and to the first, negative ones as 0: [t, d] -> [0, 1]."""
    if len(features) < 2:
        raise MotionPromptError(f"consistency is measured between frames; this clip has {len(features)}")
    later = features[1:]
    previous, first = (F.cosine_similarity(other, later).clamp(min=0) for other in (features[:-1], features[:1]))
    return ((previous + first) / 2).mean().item()


def load_dino(weights: str | Path) -> Encoder:
    """DINO's class token for each frame, the shorter side resized to 224.

    `weights` is a file (dino_vitbase16_pretrain.pth or timm's) or "hub". On frames that are not square, timm's
    interpolation of the position embeddings stands in for DINO's own, a little different one.
    """
    from torchvision.transforms.functional import normalize, resize

    try:
        import timm
    except ImportError as error:
        raise MotionPromptError("subject consistency needs timm: pip install 'mp_hooks[metrics]'") from error

    model = _hub(
        lambda pretrained: timm.create_model(DINO, pretrained=pretrained, num_classes=0, dynamic_img_size=True), weights
    )
    if str(weights) != HUB:
        _load(model, _state(Path(weights)), weights, "DINO ViT-B/16 (dino_vitbase16_pretrain.pth)")

    def prepare(frames: Tensor) -> Tensor:
        images = normalize(resize(frames, SIDE, antialias=False) / 255, *IMAGENET)
        height, width = (side // PATCH * PATCH for side in images.shape[-2:])  # what DINO's strides reach
        return images[..., :height, :width]

    return Encoder(model.eval().requires_grad_(False), prepare)


def load_clip(weights: str | Path) -> Encoder:
    """CLIP's image feature for each frame, resized and cropped to 224x224.

    `weights` is a file (OpenAI's ViT-B-32.pt, or a state dict) or "hub".
    """
    from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

    try:
        import open_clip
    except ImportError as error:
        raise MotionPromptError("background consistency needs open_clip: pip install 'mp_hooks[metrics]'") from error

    model = _hub(
        lambda pretrained: open_clip.create_model(CLIP, pretrained="openai" if pretrained else None).visual, weights
    )
    if str(weights) != HUB:
        state = {k.removeprefix("visual."): v for k, v in _state(Path(weights)).items() if k.startswith("visual.")}
        _load(model, state, weights, "CLIP ViT-B/32 (OpenAI's ViT-B-32.pt)")

    def prepare(frames: Tensor) -> Tensor:
        images = resize(frames, SIDE, interpolation=InterpolationMode.BICUBIC, antialias=False)
        return normalize(center_crop(images, SIDE) / 255, *CLIP_STATISTICS)

    return Encoder(model.float().eval().requires_grad_(False), prepare)


def _hub(build: Callable[[bool], nn.Module], weights: str | Path) -> nn.Module:
    pretrained = str(weights) == HUB
    try:
        return build(pretrained)
    except Exception as error:
        if not pretrained:
            raise
        # each hub client has errors of its own
        raise MotionPromptError(f"the hub's weights cannot be had ({type(error).__name__}); give a file") from error


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MotionPromptError(f"no weights at {path}; give an existing file, or 'hub' to download them")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError):
            return torch.jit.load(path, map_location="cpu").state_dict()  # OpenAI publishes TorchScript
    except Exception as error:
        raise MotionPromptError(f"{path} is no state dict of tensors; give another file") from error


def _load(model: nn.Module, state: dict[str, Tensor], path: str | Path, wanted: str) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise MotionPromptError(f"{path} does not hold the weights of {wanted}; give another file") from error
