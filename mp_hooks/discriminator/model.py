"""The flow discriminator: how real does an optical flow field look?

phi(f) = sigmoid(logit) is the probability that f is the flow of real video: a projection of the two flow
channels to a ViT's three, the ViT, and a 3-layer MLP head (MotionPrompt, arXiv 2411.15540). Convolutions may take the
ViT's place.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.files import replacing

LARGEST = 1024  # any size a discriminator may have
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
NORMALISATIONS = ["fixed", "magnitude"]
LEAST_SLOPE = 0.5  # change of the prepared field over the frame's side below which it counts as rigid
SCRATCH, TIMM = ["small", "conv"], "timm:"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What it takes to rebuild a discriminator and to feed it the flow it was trained on."""

    backbone: str = "small"  # a ViT; "conv", or "timm:NAME" for one of timm's models
    image_size: int = 64  # side of the square the backbone sees
    patch_size: int = 8  # these five shape "small" only, width and dropout "conv" too
    width: int = 96
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1
    normalise: str = "magnitude"  # "fixed": divide by scale; "magnitude": by the field's own RMS
    scale: float = 0.02  # RMS of real flow, as a fraction of the frame's side
    floor: float = 0.001  # fields below this RMS count as still: noise is not blown up
    slope: bool = False  # the backbone sees the logarithm of the field's slope too
    flow: str = "pyramid"  # the estimator it was trained with
    flow_size: int = 128  # side of the square frames it saw
    frame_rate: float = 8.0  # frames a second of the clips it saw
    max_interval: int = 3  # its frame pairs lay 1..max_interval such frames apart

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.type == "str":
                sound = isinstance(value, str)
            elif option.type == "bool":
                sound = isinstance(value, bool)
            else:
                least, kind = (1, int) if option.type == "int" else (0, (int, float))
                sound = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= LARGEST
            if not sound:
                raise MotionPromptError(f"{option.name} of a discriminator cannot be {value!r:.40}")
        if self.normalise not in NORMALISATIONS:
            raise unknown_name("flow normalisation", self.normalise, NORMALISATIONS)
        if self.backbone == "small" and self.image_size % self.patch_size:
            raise MotionPromptError(
                f"image size {self.image_size} is not a multiple of the patch size {self.patch_size}; change one"
            )
        if self.backbone not in SCRATCH and not self.backbone.startswith(TIMM):
            raise unknown_name("discriminator backbone", self.backbone, [*SCRATCH, f"{TIMM}NAME"])


class FlowDiscriminator(nn.Module):
    """A backbone and a head over flow fields; crop, resize and normalisation happen inside, so any frame size will do.

    `pretrained` fills a timm backbone: True takes timm's own weights from the hub, a path reads a local
    file; False leaves it random (weights follow, or training from scratch).
    """

    def __init__(self, config: DiscriminatorConfig, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Conv2d(3 if config.slope else 2, 3, kernel_size=1)
        width = config.width
        if config.backbone == "small":
            self.backbone = SmallViT(config)
        elif config.backbone == "conv":
            self.backbone = SmallConv(config)
        else:
            self.backbone, width = _timm_backbone(config, pretrained)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 1)
        )

    def forward(self, flow: Tensor) -> Tensor:
        """Logits [b] of phi for flow [b, 2, h, w] in pixels of its own grid; differentiable in flow.

        Of a field that is not square the centre square is looked at, since training saw squares only.
        Computes in the parameters' type, whatever autocast says, except in training.
        """
        if flow.ndim != 4 or flow.shape[1] != 2:
            raise ValueError(f"flow must be [b, 2, h, w], not {list(flow.shape)}")
        with nullcontext() if self.training else torch.autocast(flow.device.type, enabled=False):
            field = self.prepare(flow.to(self.project.weight.dtype))
            if self.config.slope:
                field = torch.cat([field, log_slope(field)], dim=1)
            return self.head(self.backbone(self.project(field))).squeeze(1)

    def prepare(self, flow: Tensor) -> Tensor:
        """Flow [b, 2, h, w] in pixels -> the normalised field [b, 2, s, s] the backbone sees; s = image_size.

        Displacements become fractions of the frame's side, so the same motion at two resolutions gives the
        same field. "magnitude" then divides by sqrt(rms^2 + floor^2): how far things move tells a clip's
        origin (AUC 0.76) but not whether the motion is believable.
        """
        field = resize_flow(centre_square(flow), self.config.image_size) / self.config.image_size
        if self.config.normalise == "fixed":
            return field / self.config.scale
        return in_units_of_rms(field, self.config.floor)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float32) into `folder`, creating it."""
        folder = Path(folder)
        header = {"model": type(self).__name__, **asdict(self.config)}
        with replacing(folder / CONFIG_FILE) as path:
            path.write_text(json.dumps(header, indent=2) + "\n")
        state = {name: value.detach().float().cpu().contiguous() for name, value in self.state_dict().items()}
        with replacing(folder / WEIGHTS_FILE) as path:
            save_file(state, path)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FlowDiscriminator:
        """Load what `save_pretrained` wrote, from a folder or a hub's OWNER/NAME: eval mode, frozen, float32, CPU.

        Reads safetensors only. Raises MotionPromptError for a missing folder or file, a pickle, a file of
        another kind, and weights that do not fit the configuration.
        """
        folder = _downloaded(str(folder)) if _is_hub_name(folder) else Path(folder)
        config, state = _read_config(folder), _read_weights(folder)
        if config.backbone == "small" and SmallViT.least_size(config) > sum(value.numel() for value in state.values()):
            raise MotionPromptError(f"{folder / CONFIG_FILE} asks for more weights than {WEIGHTS_FILE} holds")
        try:
            model = cls(config)
        except (ValueError, AssertionError, RuntimeError) as error:
            raise MotionPromptError(f"{folder / CONFIG_FILE} describes no discriminator: {error}") from error
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if found != expected:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise MotionPromptError(
                f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE} ({len(wrong)} tensors differ, "
                f"first '{wrong[0]}'); give both files of one training run"
            )
        model.load_state_dict(state)
        return model.float().eval().requires_grad_(False)


class SmallViT(nn.Module):
    """A ViT small enough to train from scratch and to ship: images [b, 3, s, s] -> class token [b, width]."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width, patches = config.width, (config.image_size // config.patch_size) ** 2
        self.patches = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, width) / math.sqrt(width))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 2 * width, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False)

    @staticmethod
    def least_size(config: DiscriminatorConfig) -> int:
        """Weights that it has at least: its layers' matrices, and the positions."""
        return config.depth * 8 * config.width**2 + (config.image_size // config.patch_size) ** 2 * config.width

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.encoder(tokens + self.positions)[:, 0]


class SmallConv(nn.Sequential):
    """Three convolutions, averaged over the image: images [b, 3, s, s] -> [b, width].

    It knows a motion wherever it is, and learns that from far fewer clips than a ViT.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        half = max(1, config.width // 2)
        super().__init__(
            *(nn.Conv2d(3, half, 5, 2, padding=2), nn.GELU()),
            *(nn.Conv2d(half, config.width, 3, 2, padding=1), nn.GELU()),
            *(nn.Conv2d(config.width, config.width, 3, 2, padding=1), nn.GELU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout)),
        )


def in_units_of_rms(field: Tensor, floor: float = DiscriminatorConfig.floor) -> Tensor:
    """field / sqrt(rms^2 + floor^2) of fields [b, 2, s, s] in fractions of the frame's side."""
    power = field.square().mean(dim=(1, 2, 3), keepdim=True)
    return field / (power + floor**2).sqrt()


def log_slope(field: Tensor) -> Tensor:
    """log |d field / d place| of each pixel, place in sides of the frame: [b, 2, s, s] -> [b, 1, s, s].

    Between its edges the flow of real video is nearly rigid; a mean of slopes, the total variation, tells of the edges.
    """
    side = field.shape[-1]
    right, down = F.pad(field.diff(dim=3), (0, 1)), F.pad(field.diff(dim=2), (0, 0, 0, 1))
    power = (right.square() + down.square()).sum(1, keepdim=True) * side**2
    return (power + LEAST_SLOPE**2).log() / 2


def centre_square(images: Tensor) -> Tensor:
    """The largest centred square of [..., h, w]."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def resize_flow(flow: Tensor, size: int) -> Tensor:
    """Square flow [b, 2, s, s] on a grid of size x size, antialiased, displacements in the new grid's pixels."""
    resized = F.interpolate(flow, size=(size, size), mode="bilinear", antialias=True)
    return resized * (size / flow.shape[-1])


def _timm_backbone(config: DiscriminatorConfig, pretrained: bool | str | Path) -> tuple[nn.Module, int]:
    name = config.backbone.removeprefix(TIMM)
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MotionPromptError(
            f"backbone '{config.backbone}' needs timm: pip install timm, or choose the backbone 'small'"
        ) from error
    local = {"file": str(pretrained)} if isinstance(pretrained, (str, Path)) else None
    if local and not Path(local["file"]).is_file():
        raise MotionPromptError(f"backbone weights {pretrained} not found; give the file timm's weights were saved in")
    if not timm.is_model(name):
        raise MotionPromptError(f"timm has no model '{name}'; timm.list_models('vit*') lists its ViTs")
    try:
        backbone = timm.create_model(
            name,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=local,
            num_classes=0,
            **({"img_size": config.image_size} if "vit" in name else {}),
        )
    except Exception as error:  # timm and the hub raise many kinds; each means that the weights cannot be had
        raise MotionPromptError(
            f"cannot load '{name}' ({str(error).splitlines()[0][:120]}); "
            "give a local file with --backbone-weights, or --backbone small"
        ) from error
    return backbone, backbone.num_features


def _is_hub_name(folder: str | Path) -> bool:
    """OWNER/NAME that is no folder here."""
    return bool(HUB_NAME.fullmatch(str(folder))) and not Path(folder).exists()


def _downloaded(name: str) -> Path:
    """The folder a discriminator on the hub was downloaded to: its configuration and safetensors, nothing else."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MotionPromptError(
            f"there is no folder {name}, and to take it from the hub needs huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # the hub raises many kinds; each means that the discriminator cannot be had
        raise MotionPromptError(
            f"there is no folder {name}, and the hub does not give it ({type(error).__name__}); check the name"
        ) from error


def _read_config(folder: Path) -> DiscriminatorConfig:
    if folder.is_file():
        kind = "a pickle, which is never read" if folder.suffix in PICKLES else "a file"
        raise MotionPromptError(f"{folder} is {kind}; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise MotionPromptError(
            f"no discriminator in {folder}: {CONFIG_FILE} is missing; "
            "train one with 'motionprompt discriminator train' or leave the option out for the packaged one"
        )
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MotionPromptError(f"{path} is not JSON ({error}); restore it from the training output") from error
    if not isinstance(values, dict) or values.pop("model", None) != FlowDiscriminator.__name__:
        raise MotionPromptError(f"{path} is not a flow discriminator's; give a folder written by 'discriminator train'")
    known = {field.name for field in fields(DiscriminatorConfig)}
    if unknown := sorted(values.keys() - known):
        names = ", ".join(map(repr, unknown))
        raise MotionPromptError(f"{path} holds unknown settings ({names:.200}); update mp_hooks to read it")
    return DiscriminatorConfig(**values)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        hint = f"{pickles[0]} is a pickle, which is never read; " if pickles else ""
        raise MotionPromptError(f"{path} is missing; {hint}save the discriminator with save_pretrained")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MotionPromptError(
            f"{path} is not a safetensors file ({error}); pickles and others are not read: save it with save_pretrained"
        ) from error
