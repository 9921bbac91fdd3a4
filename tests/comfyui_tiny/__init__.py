"""For tests alone, inside ComfyUI: tiny random checkpoints as it recognises them, their loaders, and a gradient check.

The files get the names that the example workflows ask for. The core loaders take the checkpoints with a denoiser as
they are; text encoders and Wan's VAE, whose sizes are fixed there, are loaded by ComfyUI's own classes in small sizes.
"""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.ldm.lightricks.model
import comfy.ldm.lightricks.vae.causal_video_autoencoder
import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ops
import comfy.sd
import comfy.text_encoders.t5
import comfy.utils
import folder_paths
import nodes
import sentencepiece
import torch
from safetensors.torch import save_file

from mp_hooks.backbones.comfyui.model import KEY
from mp_hooks.guidance import Run, Step
from mp_hooks.guidance.schedule import Pairs

T5 = dict(d_ff=32, d_kv=16, num_heads=2, num_layers=2, dense_act_fn="gelu_pytorch_tanh", is_gated_act=True)
UMT5 = {**T5, "d_model": 4096, "vocab_size": 96, "model_type": "umt5"}  # Wan's denoiser takes no other width
T5XXL = {**T5, "d_model": 32, "vocab_size": 32128, "model_type": "t5"}
WAN_VAE = partial(comfy.ldm.wan.vae.WanVAE, dim=8)
LTX = {
    "transformer": {
        "num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 32,
    },
    "vae": {
        "dims": 3, "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform",
        "encoder_blocks": [["compress_all", {}]] * 3,
        "decoder_blocks": [["compress_all", {}]] * 3 + [["res_x", {"num_layers": 1}]],
    },
}  # fmt: skip


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random ones, of a size at which signals neither die nor grow."""
    torch.manual_seed(0)
    found = {}
    for name, value in module.state_dict().items():
        fan = value[0].numel() if value.ndim > 1 else 1
        scale = 1.0 if "embedding" in name or "shared" in name or "modulation" in name or "table" in name else fan**-0.5
        found[name] = torch.randn(value.shape) * scale if value.ndim > 1 else torch.ones(value.shape)
        if name.endswith(("head.head.weight", "proj_out.weight")):  # what is predicted, beside noise of size 1
            found[name] *= 0.1
        if name.endswith("final_layer_norm.weight"):  # or a few tokens would not show among the padding
            found[name] *= 8
        if name.endswith("bias"):
            found[name] = torch.randn(value.shape) * 0.1
    return found


def words() -> torch.Tensor:
    """A SentencePiece model of a few letters and words, as Wan's text encoder carries one."""
    model = io.BytesIO()
    text = ["a tiger walks in the forest", "a boat on the sea", "authentic motion of many things", "blurry, static"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 50), model_writer=model, vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def text_encoder(config: dict) -> dict[str, torch.Tensor]:
    found = weights(comfy.text_encoders.t5.T5(config, torch.float32, "cpu", comfy.ops.manual_cast))
    found["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(1, 4096)  # by which T5-XXL is known
    return found


def write(folder: str, name: str, state: dict[str, torch.Tensor], metadata: dict | None = None) -> None:
    path = Path(folder_paths.get_folder_paths(folder)[0], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)


operations = {"device": "cpu", "dtype": torch.float32, "operations": comfy.ops.manual_cast}
wan = comfy.ldm.wan.model.WanModel(dim=128, ffn_dim=64, num_heads=1, num_layers=2, cross_attn_norm=True, **operations)
write("diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors", weights(wan))
write("text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", {**text_encoder(UMT5), "spiece_model": words()})
write("vae", "wan_2.1_vae.safetensors", weights(WAN_VAE(z_dim=16, temperal_downsample=[False, True, True])))
ltx = comfy.ldm.lightricks.model.LTXVModel(num_layers=2, **LTX["transformer"], **operations)
ltx_vae = comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE(config=LTX["vae"])
write(
    "checkpoints",
    "ltx-video-2b-v0.9.5.safetensors",
    {f"model.diffusion_model.{name}": value for name, value in weights(ltx).items()}
    | {f"vae.{name}": value for name, value in weights(ltx_vae).items()},
    {"config": json.dumps(LTX)},
)
write("text_encoders", "t5xxl_fp16.safetensors", text_encoder(T5XXL))
lora = {"lora_down": torch.randn(4, 128), "lora_up": torch.randn(128, 4)}
write(
    "loras", "tiny.safetensors", {f"diffusion_model.blocks.0.self_attn.q.{kind}.weight": w for kind, w in lora.items()}
)


class TinyCLIPLoader(nodes.CLIPLoader):
    def load_clip(self, clip_name: str, type: str, device: str = "default") -> tuple:
        sizes = {"umt5xxl_model_config": UMT5, "t5xxl_model_config": T5XXL}
        path = folder_paths.get_full_path_or_raise("text_encoders", clip_name)
        kind = getattr(comfy.sd.CLIPType, type.upper())
        state = comfy.utils.load_torch_file(path)
        return (comfy.sd.load_text_encoder_state_dicts([state], clip_type=kind, model_options=sizes),)


class TinyVAELoader(nodes.VAELoader):
    def load_vae(self, vae_name: str) -> tuple:
        smaller = lambda dim, **sizes: WAN_VAE(**sizes)  # noqa: E731
        with patch.object(comfy.ldm.wan.vae, "WanVAE", smaller):
            return super().load_vae(vae_name)


class DifferencesRun(Run):
    """Takes every step with the host's own conditioning, and notes slopes by autograd and by finite differences."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method.slopes = []

    def conditioning(self, step: Step) -> torch.Tensor:
        optimizer, pairs = self.optimizer, Pairs(torch.tensor([[0, step.frames - 1]]), torch.zeros(1))
        start = self.tokens.clone().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            _, motion, pull = optimizer.gradient(step, start, pairs, scale=1.0)
        gradient = motion + pull
        direction = WIDTH * gradient / gradient.norm()
        with torch.random.fork_rng(devices=[]):
            up, down = (float(optimizer.loss(step, start + sign * direction, pairs).total) for sign in (1, -1))
        self.method.slopes.append((float((gradient * direction).sum()), (up - down) / 2))
        return step.conditioning


WIDTH = 3e-3  # wide enough for float32, and narrow enough for a random network


class TinyDifferences:
    """The guided model, whose samplings from now on are those of `DifferencesRun`."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "change"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    def change(self, model: Any) -> tuple:
        method = model.get_attachment(KEY).method
        method.run_type = DifferencesRun
        with torch.inference_mode(False):
            for net in (method.objective.flow, method.objective.discriminator):
                net.double()
        return (model,)


class TinySlopes:
    """What they noted."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "samples": ("LATENT",)}}

    def tell(self, model: Any, samples: Any) -> dict:
        return {"ui": {"slopes": model.get_attachment(KEY).method.slopes}}


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (TinyCLIPLoader, TinyVAELoader, TinyDifferences, TinySlopes)}
