"""Shims: in place when needed, and gone without a trace."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
import torchvision.io
from lightning_fabric.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin
from omegaconf import OmegaConf

from mp_hooks.compat import SHIMS, shims
from mp_hooks.errors import MotionPromptError
from mp_hooks.patching import manifest
from mp_hooks.video import video_info

PLACES = [(torch.nn.Module, "cuda"), (_DeviceDtypeModuleMixin, "cuda"), (torch.Tensor, "cuda"), (torch.Tensor, "to")]


def stored() -> list[object]:
    return [vars(owner).get(name, "absent") for owner, name in PLACES]


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_cuda_calls_stay_on_the_cpu() -> None:
    before = stored()
    with shims(["cuda_calls"], "cpu") as used:
        assert used == ["cuda_calls"]
        tensor = torch.ones(2)
        assert tensor.cuda().device.type == "cpu"
        assert tensor.to("cuda:0").device.type == "cpu"
        assert tensor.to(device=torch.device("cuda"), dtype=torch.float16).dtype == torch.float16
        assert torch.nn.Linear(1, 1).cuda(0).weight.device.type == "cpu"
    assert stored() == before


def test_a_shim_that_is_not_needed_is_not_used() -> None:
    before = stored()
    with shims(["cuda_calls", "lvdm_xformers"], None) as used:
        assert used == []
        assert stored() == before


def test_write_video_writes_what_it_is_given(tmp_path: Path) -> None:
    before = vars(torchvision.io).get("write_video")
    frames = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
    with shims(["write_video"]):
        torchvision.io.write_video(str(tmp_path / "clip.mp4"), frames, fps=8, video_codec="h264", options={"crf": "10"})
    info = video_info(tmp_path / "clip.mp4")
    assert (info.frames, info.height, info.width) == (5, 32, 48)
    assert vars(torchvision.io).get("write_video") is before


def test_early_diffusers_and_transformers_are_gone_without_a_trace() -> None:
    diffusers = pytest.importorskip("diffusers", minversion="0.30")
    transformers = pytest.importorskip("transformers", minversion="5")
    attention = importlib.import_module("diffusers.models.attention")
    places = [
        (attention, "CrossAttention"),
        (diffusers.ModelMixin, "_get_model_file"),
        (diffusers.utils, "DIFFUSERS_CACHE"),
        (diffusers.AutoencoderKL, "load_state_dict"),
        (transformers.CLIPTextModel, "load_state_dict"),
        (transformers.CLIPTextModel, "__getattr__"),
    ]

    def stored() -> list[object]:
        return [vars(owner).get(name, "absent") for owner, name in places]

    before, modules = stored(), set(sys.modules)
    with shims(manifest.load("animatediff").script.shims):
        assert all(ours is not theirs for ours, theirs in zip(stored(), before, strict=True))
        assert "diffusers.modeling_utils" in sys.modules
    assert stored() == before
    assert not {"diffusers.modeling_utils", "diffusers.pipeline_utils"} & (set(sys.modules) - modules)


class Hostile:
    def __reduce__(self) -> tuple:
        return os.getpid, ()


@pytest.mark.skipif(not hasattr(torch.serialization, "safe_globals"), reason="this torch loads whole pickles")
def test_checkpoints_may_hold_omegaconf_but_no_code(tmp_path: Path) -> None:
    harmless, hostile = tmp_path / "harmless.ckpt", tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {"w": torch.ones(1)}, "config": OmegaConf.create({"a": {"b": [1, 2.0, "x"]}})}, harmless)
    torch.save({"state_dict": Hostile()}, hostile)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(harmless, weights_only=True)
    with shims(["omegaconf_checkpoints"]):
        loaded = torch.load(harmless, weights_only=True)
        assert loaded["config"].a.b[1] == 2.0
        with pytest.raises(Exception, match=r"[Ww]eights"):
            torch.load(hostile, weights_only=True)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(harmless, weights_only=True)


def test_unknown_shims_are_named() -> None:
    with pytest.raises(MotionPromptError, match="cuda_calls"), shims(["magic"]):
        pass


def test_every_shim_a_manifest_names_exists_and_says_what_broke() -> None:
    with shims([]):
        for name in manifest.names():
            for wanted in manifest.load(name).script.shims:
                assert SHIMS[wanted].broke
