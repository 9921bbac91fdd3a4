"""Tiny random hosts, and the conformance kit: what every adapter is held to, ours and a porter's.

from mp_hooks.testing import ConformanceSuite, HostCase

class MyCase(HostCase): ...           # a tiny instance of the host, and how to sample it

class TestMyHost(ConformanceSuite):   # pytest collects it
    case = MyCase()
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mp_hooks import patching
from mp_hooks.errors import unknown_name
from mp_hooks.testing.case import Command, HostCase

# Tiny instances by the adapter's name, as "module:class"; those of hosts with a manifest take a checkout.
CASES = {
    "videocrafter2": "mp_hooks.testing.videocrafter:VideoCrafterCase",
    "dynamicrafter": "mp_hooks.testing.dynamicrafter:DynamiCrafterCase",
    "lavie": "mp_hooks.testing.lavie:LaVieCase",
    "animatediff": "mp_hooks.testing.animatediff:AnimateDiffCase",
    "diffusers-animatediff": "mp_hooks.testing.diffusers:AnimateDiffCase",
    "diffusers-animatediff-pag": "mp_hooks.testing.diffusers:AnimateDiffPAGCase",
    "diffusers-i2vgen-xl": "mp_hooks.testing.diffusers:I2VGenXLCase",
    "diffusers-text-to-video-sd": "mp_hooks.testing.diffusers:TextToVideoSDCase",
    "diffusers-cogvideox": "mp_hooks.testing.diffusers:CogVideoXCase",
    "diffusers-wan": "mp_hooks.testing.diffusers:WanCase",
    "diffusers-wan-modular": "mp_hooks.testing.diffusers:WanModularCase",
    "diffusers-ltx": "mp_hooks.testing.diffusers:LTXCase",
    "diffusers-ltx-condition": "mp_hooks.testing.diffusers:LTXConditionCase",
    "diffusers-hunyuan-video": "mp_hooks.testing.pipelines:HunyuanVideoCase",
    "diffusers-hunyuan-video15": "mp_hooks.testing.pipelines:HunyuanVideo15Case",
    "diffusers-motif-video": "mp_hooks.testing.pipelines:MotifVideoCase",
    "diffusers-mochi": "mp_hooks.testing.pipelines:MochiCase",
    "diffusers-allegro": "mp_hooks.testing.pipelines:AllegroCase",
    "diffusers-latte": "mp_hooks.testing.pipelines:LatteCase",
    "diffusers-sana-video": "mp_hooks.testing.pipelines:SanaVideoCase",
    "diffusers-easyanimate": "mp_hooks.testing.pipelines:EasyAnimateCase",
    "diffusers-kandinsky5": "mp_hooks.testing.pipelines:Kandinsky5Case",
    "diffusers-cosmos": "mp_hooks.testing.pipelines:CosmosCase",
    "diffusers-cosmos2": "mp_hooks.testing.pipelines:Cosmos2Case",
    "diffusers-cosmos2.5": "mp_hooks.testing.pipelines:Cosmos25Case",
}

__all__ = ["CASES", "Command", "ConformanceSuite", "HostCase", "tiny"]


def tiny(name: str, checkout: Path | None = None, **options: Any) -> HostCase:
    """The tiny instance of host `name`; unknown names list the valid.

    checkout: the code of a host that has a manifest, that in third_party/ unless given. options: of its case.
    """
    if name not in CASES:
        raise unknown_name("host", name, list(CASES))
    module, _, attribute = CASES[name].partition(":")
    case = getattr(importlib.import_module(module), attribute)
    if name in patching.names():
        return case(checkout or patching.default_checkout(patching.load(name)), **options)
    return case(**options)


def __getattr__(name: str) -> Any:
    if name == "ConformanceSuite":  # needs pytest, which `motionprompt doctor` does without
        return importlib.import_module("mp_hooks.testing.conformance").ConformanceSuite
    raise AttributeError(f"module 'mp_hooks.testing' has no attribute '{name}'")
