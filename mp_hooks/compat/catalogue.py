"""The shims themselves. Each says which version broke what; facts from running the pinned hosts."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from mp_hooks.compat.registry import shim, swapped


def _on_cpu(device: str | None) -> bool:
    return device == "cpu"


@shim("cuda_calls", "the host calls .cuda() and .to('cuda') whatever the machine", needed=_on_cpu)
@contextmanager
def cuda_calls() -> Iterator[None]:
    """`.cuda()` and `Tensor.to("cuda")` leave things on the CPU."""
    from lightning_fabric.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin

    tensor_to = torch.Tensor.to

    def stay(self: Any, *_args: Any, **_kwargs: Any) -> Any:
        return self

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor_to(self, *map(_cpu, args), **{key: _cpu(value) for key, value in kwargs.items()})

    with ExitStack() as stack:
        for owner in (torch.nn.Module, _DeviceDtypeModuleMixin, torch.Tensor):
            stack.enter_context(swapped(owner, "cuda", stay))
        stack.enter_context(swapped(torch.Tensor, "to", to))
        yield


def _cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, (str, torch.device)) and str(value).startswith("cuda") else value


@shim("cuda_hidden", "the host takes CUDA wherever there is any", needed=_on_cpu)
@contextmanager
def cuda_hidden() -> Iterator[None]:
    """torch finds no CUDA device."""
    with swapped(torch.cuda, "is_available", lambda: False):
        yield


def _xformers_is_no_use(_device: str | None) -> bool:
    return importlib.util.find_spec("xformers") is None or not torch.cuda.is_available()


@shim("without_xformers", "the host insists on xformers, which is not installed or has no CUDA", _xformers_is_no_use)
@contextmanager
def without_xformers() -> Iterator[None]:
    """Asking a diffusers pipeline for xformers' attention leaves it the attention it has."""
    import diffusers

    with swapped(diffusers.DiffusionPipeline, "enable_xformers_memory_efficient_attention", lambda *_args: None):
        yield


@shim("lvdm_xformers", "xformers imports without CUDA and then raises in attention", needed=_on_cpu)
@contextmanager
def lvdm_xformers() -> Iterator[None]:
    """LVDM builds its attention without xformers; must be in place before the model is built."""
    with swapped(importlib.import_module("lvdm.modules.attention"), "XFORMERS_IS_AVAILBLE", False):
        yield


def _write_video_fails(_device: str | None) -> bool:
    import torchvision.io

    if not hasattr(torchvision.io, "write_video"):
        return True
    try:
        import av
    except ModuleNotFoundError:
        return False  # ours needs it too

    try:
        av.VideoFrame(2, 2).pict_type = "NONE"  # type: ignore[assignment]  # as torchvision does
    except TypeError:
        return True
    return False


@shim(
    "write_video",
    "torchvision 0.27 and later have no io.write_video, and earlier ones fail on today's PyAV",
    needed=_write_video_fails,
)
@contextmanager
def write_video() -> Iterator[None]:
    """torchvision.io.write_video(path, uint8 [t, h, w, 3], fps, ...) on top of our own writer."""
    import torchvision.io

    from mp_hooks import video

    def write(filename: str, video_array: Any, fps: float, **_codec: Any) -> None:
        frames = torch.as_tensor(video_array, dtype=torch.uint8).permute(0, 3, 1, 2)
        video.write_video(filename, frames, float(fps))

    with swapped(torchvision.io, "write_video", write):
        yield


def _loads_weights_only(_device: str | None) -> bool:
    return importlib.util.find_spec("omegaconf") is not None and hasattr(torch.serialization, "safe_globals")


@shim(
    "omegaconf_checkpoints",
    "torch 2.6 loads weights only, and training checkpoints may hold their OmegaConf configuration",
    needed=_loads_weights_only,
)
@contextmanager
def omegaconf_checkpoints() -> Iterator[None]:
    """OmegaConf's plain containers may be unpickled beside weights; arbitrary code still may not."""
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    harmless = [DictConfig, ListConfig, ContainerMetadata, Metadata, AnyNode, typing.Any, defaultdict, dict, list, int]
    with torch.serialization.safe_globals(harmless):
        yield


def _open_clip_is_batch_first(_device: str | None) -> bool:
    if importlib.util.find_spec("open_clip") is None:
        return False
    from open_clip.transformer import ResidualAttentionBlock

    return "batch_first" in inspect.signature(ResidualAttentionBlock.__init__).parameters


@shim(
    "open_clip_batch_first",
    "open_clip 2.24 and later attend over [b, l, d], and LVDM hands their blocks [l, b, d] (VideoCrafter#90)",
    needed=_open_clip_is_batch_first,
)
@contextmanager
def open_clip_batch_first() -> Iterator[None]:
    """Text blocks that open_clip creates inside take sequence-first input again."""
    import open_clip

    create = open_clip.create_model_and_transforms

    def create_sequence_first(*args: Any, **kwargs: Any) -> Any:
        created = create(*args, **kwargs)
        for module in created[0].transformer.modules():
            if isinstance(module, torch.nn.MultiheadAttention):
                module.batch_first = False
        return created

    with swapped(open_clip, "create_model_and_transforms", create_sequence_first):
        yield


# Where diffusers 0.11 had them, and where today's has them.
_MOVED = {
    "diffusers.modeling_utils": "diffusers.models.modeling_utils",
    "diffusers.pipeline_utils": "diffusers.pipelines.pipeline_utils",
    "diffusers.models.unet_2d_condition": "diffusers.models.unets.unet_2d_condition",
}


def _missing_modules() -> list[str]:
    return [name for name in _MOVED if importlib.util.find_spec(name) is None]


@shim(
    "diffusers_modules",
    "diffusers moved modules: modeling_utils in 0.12, pipeline_utils by 0.25, models.unet_2d_condition by 0.30",
    needed=lambda _device: bool(_missing_modules()),
)
@contextmanager
def diffusers_modules() -> Iterator[None]:
    """The modules can be imported by their old names."""
    missing = _missing_modules()
    sys.modules.update({name: importlib.import_module(_MOVED[name]) for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _lacks_cross_attention(_device: str | None) -> bool:
    from diffusers.models import attention

    return not hasattr(getattr(attention, "CrossAttention", None), "reshape_heads_to_batch_dim")


@shim(
    "diffusers_cross_attention",
    "diffusers 0.12 took the methods of CrossAttention that AnimateDiff's motion modules call, and 0.15 its name",
    needed=_lacks_cross_attention,
)
@contextmanager
def diffusers_cross_attention() -> Iterator[None]:
    """models.attention.CrossAttention is today's Attention with these methods, over [b * heads, l, d]."""
    from diffusers.models import attention
    from diffusers.models.attention_processor import Attention

    class CrossAttention(Attention):
        _use_memory_efficient_attention_xformers = False
        _slice_size = None

        def reshape_heads_to_batch_dim(self, tensor: torch.Tensor) -> torch.Tensor:
            return self.head_to_batch_dim(tensor)

        def reshape_batch_dim_to_heads(self, tensor: torch.Tensor) -> torch.Tensor:
            return self.batch_to_head_dim(tensor)

        def _attention(self, query: Any, key: Any, value: Any, attention_mask: Any = None) -> torch.Tensor:
            attend = torch.nn.functional.scaled_dot_product_attention
            return self.reshape_batch_dim_to_heads(attend(query, key, value, attention_mask, scale=self.scale))

    with swapped(attention, "CrossAttention", CrossAttention):
        yield


def _lacks_model_files(_device: str | None) -> bool:
    import diffusers

    return not hasattr(diffusers.ModelMixin, "_get_model_file")


@shim(
    "diffusers_model_files",
    "diffusers 0.12 took ModelMixin._get_model_file, and 0.25 has no utils.DIFFUSERS_CACHE (AnimateDiff's UNet)",
    needed=_lacks_model_files,
)
@contextmanager
def diffusers_model_files() -> Iterator[None]:
    """Both are there again."""
    import diffusers
    from diffusers.utils import hub_utils

    def get_model_file(_cls: type, folder: str, resume_download: Any, use_auth_token: Any, **options: Any) -> str:
        return hub_utils._get_model_file(folder, token=use_auth_token, **options)

    with (
        swapped(diffusers.ModelMixin, "_get_model_file", classmethod(get_model_file)),
        swapped(diffusers.utils, "DIFFUSERS_CACHE", None),
    ):
        yield


def _diffusers_xformers_fail(_device: str | None) -> bool:
    if importlib.util.find_spec("xformers") is None:
        return False
    return not torch.cuda.is_available() or _lacks_cross_attention(None)


@shim(
    "diffusers_without_xformers",
    "AnimateDiff takes xformers wherever it is installed: without CUDA it raises, as with diffusers 0.12 and later",
    needed=_diffusers_xformers_fail,
)
@contextmanager
def diffusers_without_xformers() -> Iterator[None]:
    """diffusers finds no xformers."""
    from diffusers.utils import import_utils

    with swapped(import_utils, "_xformers_available", False):
        yield


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _vae_names_are_new(_device: str | None) -> bool:
    from diffusers.models import attention

    return not hasattr(attention, "AttentionBlock")


@shim(
    "vae_attention_names",
    "diffusers took AttentionBlock by 0.25; AnimateDiff converts DreamBooth checkpoints to the names it had",
    needed=_vae_names_are_new,
)
@contextmanager
def vae_attention_names() -> Iterator[None]:
    """AutoencoderKL takes weights under their old names too."""
    from diffusers import AutoencoderKL

    load, names = AutoencoderKL.load_state_dict, re.compile(rf"\.({'|'.join(_OLD_ATTENTION)})\.")

    def load_renamed(self: Any, weights: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        renamed = {names.sub(lambda old: f".{_OLD_ATTENTION[old[1]]}.", name): weights[name] for name in weights}
        return load(self, renamed, *args, **kwargs)

    with swapped(AutoencoderKL, "load_state_dict", load_renamed):
        yield


def _clip_text_is_flat(_device: str | None) -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


@shim(
    "clip_text_model",
    "transformers 5 has no text_model inside CLIPTextModel, and 4.31 no position_ids among its weights "
    "(DreamBooth checkpoints, text-encoder LoRAs; AnimateDiff#159)",
    needed=_clip_text_is_flat,
)
@contextmanager
def clip_text_model() -> Iterator[None]:
    """CLIPTextModel takes weights under their old names too, and is its own text_model."""
    from transformers import CLIPTextModel

    load, attribute = CLIPTextModel.load_state_dict, CLIPTextModel.__getattr__

    def load_renamed(self: Any, weights: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        kept = [name for name in weights if not name.endswith("position_ids")]
        return load(self, {name.removeprefix("text_model."): weights[name] for name in kept}, *args, **kwargs)

    def itself(self: Any, name: str) -> Any:
        return self if name == "text_model" else attribute(self, name)

    with swapped(CLIPTextModel, "load_state_dict", load_renamed), swapped(CLIPTextModel, "__getattr__", itself):
        yield


def _transformers_lacks_feature_extractor(_device: str | None) -> bool:
    import transformers

    return not hasattr(transformers, "CLIPFeatureExtractor")


@shim(
    "clip_feature_extractor",
    "transformers 5 has no CLIPFeatureExtractor",
    needed=_transformers_lacks_feature_extractor,
)
@contextmanager
def clip_feature_extractor() -> Iterator[None]:
    """transformers.CLIPFeatureExtractor is CLIPImageProcessor, which replaced it."""
    from transformers import CLIPImageProcessor  # this import may replace the module itself

    with swapped(sys.modules["transformers"], "CLIPFeatureExtractor", CLIPImageProcessor):
        yield
