"""A saved diffusers pipeline, loaded as a `Generation` says."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.processes import local_device

DTYPES = ("auto", "float32", "float16", "bfloat16")
OFFLOADS = ("none", "model", "sequential")  # diffusers' enable_model_cpu_offload, enable_sequential_cpu_offload
SET_BY_CLIPS = ("prompt", "image", "video", "generator", "output_type", "return_dict")


@dataclass(frozen=True)
class Generation:
    """How clips are sampled.

    model: a folder that save_pretrained wrote, or a hub id. pipeline: a class of diffusers to load it as, the model's
    own if not given. dtype: "auto" is bfloat16 on a GPU, float32 elsewhere. device: this process's GPU, or the CPU, if
    not given. scheduler: a class of diffusers, which takes the model's settings. lora: a folder, file or hub id.
    arguments: of the pipeline's call, beside the prompt and its like. fps: of the files. allow_pickle: also weights
    that are not safetensors, which can run code.
    """

    model: str
    pipeline: str | None = None
    dtype: str = "auto"
    device: str | None = None
    offload: str = "none"
    allow_pickle: bool = False
    scheduler: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    fps: float = 8.0
    guidance: MotionPromptConfig | None = None

    def __post_init__(self) -> None:
        for name, value, valid in (("dtype", self.dtype, DTYPES), ("offload", self.offload, OFFLOADS)):
            if value not in valid:
                raise unknown_name(name, value, list(valid))
        if self.batch_size < 1 or not self.fps > 0:
            raise MotionPromptError(f"batch_size is {self.batch_size} and fps {self.fps}; both must be above 0")
        if ours := [name for name in SET_BY_CLIPS if name in self.arguments]:
            raise MotionPromptError(f"{ours[0]} is not an argument to give here; prompts, files and seeds decide it")

    def resolved_device(self) -> str:
        """Where the pipeline runs."""
        return self.device or local_device()

    def resolved_dtype(self) -> torch.dtype:
        """What the pipeline's weights are loaded as."""
        if self.dtype == "auto":
            return torch.float32 if torch.device(self.resolved_device()).type == "cpu" else torch.bfloat16
        return getattr(torch, self.dtype)

    def record(self) -> dict[str, Any]:
        """What decides the clips, as JSON values; device and offload do not."""
        settings = {**asdict(self), "dtype": str(self.resolved_dtype()).removeprefix("torch.")}
        return {name: value for name, value in settings.items() if name not in ("device", "offload", "allow_pickle")}


def load_pipeline(settings: Generation) -> Any:
    """The pipeline, on its device or offloaded from it.

    Raises MotionPromptError for a model, scheduler or LoRA that cannot be had, and an argument its call does not take.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MotionPromptError("diffusers is not installed; pip install 'mp_hooks[diffusers]'") from error
    name = settings.pipeline or "DiffusionPipeline"
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise MotionPromptError(f"diffusers {diffusers.__version__} has no pipeline {name}; check its name")
    with _told(settings.model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")  # older diffusers know no other name
        options = {} if settings.allow_pickle else {"use_safetensors": True}
        pipe = kind.from_pretrained(settings.model, torch_dtype=settings.resolved_dtype(), **options)
    taken = inspect.signature(type(pipe).__call__).parameters
    for argument in settings.arguments:
        if argument not in taken:
            raise unknown_name(f"argument of {type(pipe).__name__}", argument, [n for n in taken if n != "self"])
    if settings.scheduler:
        pipe.scheduler = _scheduler(diffusers, pipe, settings.scheduler)
    if settings.lora:
        if not hasattr(pipe, "load_lora_weights"):
            raise MotionPromptError(f"{type(pipe).__name__} takes no LoRA; leave it out")
        with _told(settings.lora):
            pipe.load_lora_weights(settings.lora, adapter_name="lora", **options)
        pipe.set_adapters("lora", settings.lora_scale)
    _place(pipe, settings)
    return pipe


@contextmanager
def _told(model: str) -> Iterator[None]:
    """Whatever keeps diffusers from loading `model` becomes one sentence."""
    try:
        yield
    except Exception as error:  # hub, files and formats raise many kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        why = first.rpartition(f"{model}: ")[2].partition(" (")[0][:200].rstrip(".")
        remedy = "give a folder that save_pretrained wrote, with weights in safetensors (or allow pickle)"
        if not Path(model).exists():
            why = f"it is no folder here, and of the hub: {why}"
            remedy = "check the name and the network, or download it and give its folder"
        raise MotionPromptError(f"cannot load {model}: {why}; {remedy}") from error


def _scheduler(diffusers: Any, pipe: Any, name: str) -> Any:
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        fitting = {type(pipe.scheduler).__name__, *(one.__name__ for one in pipe.scheduler.compatibles)}
        raise unknown_name("scheduler", name, list(fitting))
    return kind.from_config(pipe.scheduler.config)


def _place(pipe: Any, settings: Generation) -> None:
    device = torch.device(settings.resolved_device())
    if settings.offload == "none":
        pipe.to(device)
    elif device.type == "cpu":
        raise MotionPromptError(
            "offload moves weights between a GPU and the CPU, and this runs on the CPU; leave it out"
        )
    elif settings.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
