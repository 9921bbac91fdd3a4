"""Adapters by name, each in a file that is imported only when its host is at hand."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mp_hooks.backbones.diffusers.unguided import refuse
from mp_hooks.errors import MotionPromptError, unknown_name

if TYPE_CHECKING:
    from mp_hooks.backbones.base import Adapter
    from mp_hooks.backbones.resume import Samplings
    from mp_hooks.config import MotionPromptConfig
    from mp_hooks.guidance import MotionPrompt

# name -> "module:class"; order matters where one host could be taken for another
BACKBONES = {
    "videocrafter2": "mp_hooks.backbones.lvdm.videocrafter:VideoCrafter",
    "dynamicrafter": "mp_hooks.backbones.lvdm.dynamicrafter:DynamiCrafter",
    "lavie": "mp_hooks.backbones.inflated.lavie:LaVie",
    "animatediff": "mp_hooks.backbones.inflated.animatediff:AnimateDiff",
    "diffusers-animatediff": "mp_hooks.backbones.diffusers.animatediff:AnimateDiff",
    "diffusers-animatediff-pag": "mp_hooks.backbones.diffusers.pag:AnimateDiffPAG",
    "diffusers-i2vgen-xl": "mp_hooks.backbones.diffusers.text_to_video_sd:I2VGenXL",
    "diffusers-text-to-video-sd": "mp_hooks.backbones.diffusers.text_to_video_sd:TextToVideoSD",
    "diffusers-cogvideox": "mp_hooks.backbones.diffusers.cogvideox:CogVideoX",
    "diffusers-wan": "mp_hooks.backbones.diffusers.wan:Wan",
    "diffusers-wan-modular": "mp_hooks.backbones.diffusers.modular:WanModular",
    "diffusers-ltx": "mp_hooks.backbones.diffusers.ltx:LTX",
    "diffusers-ltx-condition": "mp_hooks.backbones.diffusers.ltx_condition:LTXCondition",
    "diffusers-hunyuan-video": "mp_hooks.backbones.diffusers.hunyuan:HunyuanVideo",
    "diffusers-hunyuan-video15": "mp_hooks.backbones.diffusers.guided:HunyuanVideo15",
    "diffusers-motif-video": "mp_hooks.backbones.diffusers.guided:MotifVideo",
    "diffusers-mochi": "mp_hooks.backbones.diffusers.t5:Mochi",
    "diffusers-allegro": "mp_hooks.backbones.diffusers.t5:Allegro",
    "diffusers-latte": "mp_hooks.backbones.diffusers.t5:Latte",
    "diffusers-sana-video": "mp_hooks.backbones.diffusers.chat:SanaVideo",
    "diffusers-easyanimate": "mp_hooks.backbones.diffusers.chat:EasyAnimate",
    "diffusers-kandinsky5": "mp_hooks.backbones.diffusers.kandinsky:Kandinsky5",
    "diffusers-cosmos": "mp_hooks.backbones.diffusers.cosmos:Cosmos",
    "diffusers-cosmos2": "mp_hooks.backbones.diffusers.cosmos:Cosmos2",
    "diffusers-cosmos2.5": "mp_hooks.backbones.diffusers.cosmos:Cosmos25",
}

ADAPTER = "_motionprompt_adapter"  # where a patched host keeps its adapter, so that both are collected together


def supported_hosts() -> dict[str, str]:
    """Every adapter's name and the full name of the class it is for; docs/porting.md tells how to add one."""
    return {name: adapter_class(name).host_class() for name in BACKBONES}


def adapter_class(name: str) -> type[Adapter]:
    """The adapter registered under `name`; an unknown name lists the valid ones."""
    if name not in BACKBONES:
        raise unknown_name("backbone", name, list(BACKBONES))
    module, _, attribute = BACKBONES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def adapter_for(host: Any) -> Adapter:
    """A fresh adapter for a model or pipeline; raises MotionPromptError when none knows it."""
    for name in BACKBONES:
        candidate = adapter_class(name)
        if candidate.recognises(host):
            return candidate(host)
    refuse(*(base.__name__ for base in type(host).__mro__ if base.__module__.startswith("diffusers.")))
    raise MotionPromptError(
        f"no adapter knows {type(host).__module__}.{type(host).__qualname__}; there are adapters for: "
        f"{', '.join(BACKBONES)} (docs/porting.md tells how to write one)"
    )


def apply_patch(host: Any, config: MotionPromptConfig | None = None) -> None:
    """Guide every sampling of `host` (a model or pipeline) from now on. Applying again replaces the first patch.

    Raises MotionPromptError where the host is unknown or a site is missing, or discriminator or flow cannot be loaded.
    """
    from mp_hooks.config import MotionPromptConfig
    from mp_hooks.guidance import MotionPrompt

    adapter_for(host)  # an unknown host is told before weights are loaded
    attach(host, MotionPrompt(config or MotionPromptConfig()))


def attach(host: Any, method: MotionPrompt, samplings: Samplings | None = None) -> None:
    """`apply_patch` with a method that is loaded already; `samplings` keeps what is finished, and hands it back."""
    remove_patch(host)
    adapter = adapter_for(host)
    adapter.samplings = samplings
    adapter.apply(method)
    vars(host)[ADAPTER] = adapter


@contextmanager
def attached(host: Any, method: MotionPrompt) -> Iterator[None]:
    """`attach` for the length of a with block."""
    attach(host, method)
    try:
        yield
    finally:
        remove_patch(host)


def patched_adapter(host: Any) -> Adapter | None:
    """The adapter of a patched host; a shallow copy of one shows that of its original, and has none."""
    adapter = vars(host).get(ADAPTER)
    return adapter if adapter is not None and adapter.host is host else None


def detach(host: Any) -> MotionPrompt | None:
    """Undo `attach`; the method, None where there was none, is good for another host."""
    adapter = patched_adapter(host)
    vars(host).pop(ADAPTER, None)
    if adapter is None:
        return None
    adapter.remove()
    return adapter.method


def remove_patch(host: Any) -> None:
    """Put the very originals back; a host that is not patched is left alone."""
    method = detach(host)
    if method is not None:
        method.close()


def is_patched(host: Any) -> bool:
    """Whether `host` samples with MotionPrompt."""
    return patched_adapter(host) is not None


def describe_patch(host: Any) -> str:
    """What of `host` MotionPrompt has hooked, in one line."""
    adapter = vars(host).get(ADAPTER)
    return f"<{type(host).__name__} is not patched>" if adapter is None else repr(adapter)


@contextmanager
def motionprompt(host: Any, config: MotionPromptConfig | None = None) -> Iterator[None]:
    """`apply_patch` for the length of a with block. Inside another one, the outer settings come back afterwards."""
    outer = patched_adapter(host)
    vars(host).pop(ADAPTER, None)
    if outer is not None:
        outer.remove()
    try:
        apply_patch(host, config)
        yield
    finally:
        remove_patch(host)
        if outer is not None:
            outer.apply(outer.method)
            vars(host)[ADAPTER] = outer
