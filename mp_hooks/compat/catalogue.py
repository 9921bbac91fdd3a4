"""The shims themselves. Each says which version broke what; facts from running the pinned hosts."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import typing
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch

from mp_hooks.compat import shim, swapped


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


def _lacks_write_video(_device: str | None) -> bool:
    import torchvision.io

    return not hasattr(torchvision.io, "write_video")


@shim("write_video", "torchvision 0.27 and later have no io.write_video", needed=_lacks_write_video)
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


def _diffusers_lacks_pipeline_utils(_device: str | None) -> bool:
    return importlib.util.find_spec("diffusers.pipeline_utils") is None


@shim(
    "diffusers_pipeline_utils",
    "diffusers 0.26 and later have no module pipeline_utils at the top",
    needed=_diffusers_lacks_pipeline_utils,
)
@contextmanager
def diffusers_pipeline_utils() -> Iterator[None]:
    """diffusers.pipeline_utils.DiffusionPipeline, where LaVie looks for it."""
    import diffusers

    module = ModuleType("diffusers.pipeline_utils")
    module.DiffusionPipeline = diffusers.DiffusionPipeline
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


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
