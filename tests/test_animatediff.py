"""AnimateDiff: what its users load into the pipeline and ask of it, on the host's real code and tiny random weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mp_hooks.backbones import attached
from mp_hooks.guidance import MotionPrompt
from mp_hooks.testing import tiny
from mp_hooks.testing.animatediff import motion_lora
from mp_hooks.testing.conformance import Recorder

pytestmark = pytest.mark.upstream("animatediff")
CASE = tiny("animatediff")


@pytest.fixture
def host() -> Iterator[Any]:
    with CASE.open() as pipe:
        yield pipe


def load(host: Any, **what: Any) -> None:
    """The host's own loading of weights into a pipeline."""
    importlib.import_module("animatediff.utils.util").load_weights(host, **what)


# --- a checkpoint in Stable Diffusion's own names, which DreamBooth models come in

HEADS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "down_blocks.": "down.",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "group_norm": "norm",
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},  # in early diffusers
}


def unet_name(name: str) -> str:
    """Of a UNet with one layer a level."""
    for head, original in HEADS.items():
        if name.startswith(head + "."):
            return original + name.removeprefix(head)
    side, *rest = name.split(".")
    level, part, number, *tail = rest if side != "mid_block" else ["0", *rest]
    block, attention = 2 * int(level), int(part == "attentions")
    if part == "resnets":
        tail[0] = RESNET[tail[0]]
    if side == "mid_block":
        start = f"middle_block.{1 if attention else 2 * int(number)}"
    elif part == "downsamplers":
        start, tail = f"input_blocks.{block + 2}.0", ["op", *tail[1:]]
    elif part == "upsamplers":
        start = f"output_blocks.{block + 1}.{1 if level == '0' else 2}"  # the first level has no attention
    elif side == "down_blocks":
        start = f"input_blocks.{block + int(number) + 1}.{attention}"
    else:
        start = f"output_blocks.{block + int(number)}.{attention}"
    return ".".join([start, *tail])


def vae_name(name: str, levels: int) -> str:
    for ours, original in VAE.items():
        name = name.replace(ours, original)
    side, _, rest = name.partition("up_blocks.")
    return name if not rest else f"{side}up.{levels - 1 - int(rest[0])}{rest[1:]}"


def dreambooth(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> dict[str, Tensor]:
    weights = {
        f"model.diffusion_model.{unet_name(name)}": weight
        for name, weight in unet.state_dict().items()
        if "motion_modules." not in name
    }
    for name, weight in vae.state_dict().items():
        convolution = ".attentions." in name and weight.ndim == 2
        original = vae_name(name, len(vae.config.block_out_channels))
        weights[f"first_stage_model.{original}"] = weight[:, :, None, None] if convolution else weight
    for name, weight in text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    return weights


def test_a_dreambooth_checkpoint_is_loaded_and_guided(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It brings a text encoder of its own, which the host makes from CLIP's published configuration."""
    torch.manual_seed(1)
    import diffusers

    other = CASE.build(diffusers)
    torch.save(dreambooth(other.unet, other.vae, other.text_encoder), tmp_path / "dreambooth.ckpt")
    other.text_encoder.save_pretrained(tmp_path / "openai" / "clip-vit-large-patch14")
    monkeypatch.chdir(tmp_path)
    before = host.text_encoder
    load(host, dreambooth_model_path="dreambooth.ckpt")
    assert host.text_encoder is not before
    for part in ("unet", "vae", "text_encoder"):
        loaded, wanted = getattr(host, part).state_dict(), getattr(other, part).state_dict()
        for name in (name for name in wanted if "motion_modules." not in name):
            assert torch.equal(loaded[name], wanted[name]), name
    method = Recorder(CASE.config)
    with attached(host, method):
        assert CASE.sample(host, CASE.prompts[:1], seed=7).isfinite().all()
    assert (method.runs[0].tokens != method.runs[0].initial).any()


def test_loras_change_the_weights_they_name(host: Any, tmp_path: Path) -> None:
    """In text encoder, UNet and motion modules."""
    layers = {
        "lora_te_text_model_encoder_layers_0_self_attn_k_proj": (host.text_encoder, "layers.0.self_attn.k_proj"),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (host.unet, "mid_block.*attn1.to_q"),
    }
    layers = {
        name: next(layer for found, layer in model.named_modules() if fnmatch(found, f"*{ending}"))
        for name, (model, ending) in layers.items()
    }
    weights = {}
    for name, layer in layers.items():
        weights[f"{name}.lora_down.weight"] = torch.randn(2, layer.in_features)
        weights[f"{name}.lora_up.weight"] = torch.randn(layer.out_features, 2)
    save_file(weights, tmp_path / "lora.safetensors")
    motion = {name: weight.clone() for name, weight in host.unet.state_dict().items() if "motion_modules." in name}
    lora = motion_lora(motion)
    torch.save({"state_dict": lora}, tmp_path / "motion.ckpt")
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    load(
        host,
        lora_model_path=str(tmp_path / "lora.safetensors"),
        lora_alpha=0.5,
        motion_module_lora_configs=[{"path": str(tmp_path / "motion.ckpt"), "alpha": 1.0}],
    )
    for name, layer in layers.items():
        update = weights[f"{name}.lora_up.weight"] @ weights[f"{name}.lora_down.weight"]
        torch.testing.assert_close(layer.weight, before[name] + 0.5 * update)
    after = host.unet.state_dict()
    changed = {name for name, weight in motion.items() if not torch.equal(after[name], weight)}
    assert len(changed) == len(lora) // 2 > 0


def test_every_copy_of_a_prompt_has_its_own_tokens(host: Any) -> None:
    several = tiny("animatediff", num_videos_per_prompt=2, negative_prompt="something else")
    method = Recorder(CASE.config)
    with attached(host, method):
        videos = several.sample(host, CASE.prompts[:1], seed=7)
    (run,) = method.runs
    assert len(videos) == 2
    assert run.prompts == CASE.prompts[:1] * 2
    moved = (run.tokens - run.initial).flatten(1)
    assert (moved.norm(dim=1) > 0).all()
    assert not torch.equal(moved[0], moved[1])


def test_a_pipeline_is_used_over_many_prompts(host: Any) -> None:
    """Each begins afresh; without guidance, and with a prompt that fills the context."""
    alone = tiny("animatediff", guidance_scale=1.0)
    method = MotionPrompt(CASE.config)
    with attached(host, method), pytest.warns(UserWarning, match="last 1 tokens make room"):
        first = alone.sample(host, CASE.prompts[:1], seed=7)
        assert alone.sample(host, ["forest " * 90], seed=8).isfinite().all()
        torch.testing.assert_close(
            alone.sample(host, CASE.prompts[:1], seed=7), first, rtol=1e-3, atol=1e-3 * float(first.abs().max())
        )
