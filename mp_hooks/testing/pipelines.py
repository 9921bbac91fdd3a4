"""More tiny random diffusers pipelines, of families that came after the first five."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks.compat import swapped
from mp_hooks.testing.diffusers import (
    THROUGHOUT,
    WORDS,
    DiffusersCase,
    FlowMatchingCase,
    awaken,
    clip_text_encoder,
    heed_text,
    image_autoencoder,
    picture_encoder,
    t5_text_encoder,
    t5_tokenizer,
)
from mp_hooks.testing.tokenizer import build_tokenizer

CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chat_tokenizer(
    length: int = 48, special: Sequence[str] = ("<|im_start|>", "<|im_end|>"), side: str = "right"
) -> Any:
    """A language model's conventions on the test's own words: a chat template, nothing added to a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *special, "user", "system", "assistant", "image", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        padding_side=side,
        chat_template=CHAT,
    )


def hunyuan_autoencoder(diffusers: ModuleType) -> nn.Module:
    """HunyuanVideo's kind, of four latent channels."""
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def wan_autoencoder(diffusers: ModuleType, channels: int = 4) -> nn.Module:
    """Wan's kind."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels,
        latents_std=[1.5] * channels,
    ).eval()


def siglip(width: int = 16) -> dict[str, Any]:
    """SigLIP's picture encoder, and the processor in front of it."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    processor = SiglipImageProcessor(size={"height": 16, "width": 16})
    return {"image_encoder": SiglipVisionModel(config).eval(), "feature_extractor": processor}


def llava(text: Any) -> nn.Module:
    """Llama with eyes."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, pad_token_id=0, image_token_index=5)
    return LlavaForConditionalGeneration(config).eval()


class HunyuanVideoCase(FlowMatchingCase):
    """HunyuanVideoPipeline with three latent frames, which decode to nine."""

    name = "diffusers-hunyuan-video"
    config = replace(FlowMatchingCase.config, learning_rate=0.1, **THROUGHOUT)
    alone: ClassVar = (
        *("HunyuanVideoImageToVideoPipeline", "HunyuanSkyreelsImageToVideoPipeline"),
        "HunyuanVideoFramepackPipeline",
    )
    settings: ClassVar = {
        "num_frames": 9,
        "height": 32,
        "width": 32,
        "max_sequence_length": 16,
        "latent_window_size": 3,
        "prompt_template": {"template": "a something of {}<|eot_id|>", "crop_start": 3},
    }

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        from transformers import LlamaConfig, LlamaModel

        tokenizer, tokenizer_2 = chat_tokenizer(special=["<|eot_id|>"]), build_tokenizer(WORDS, length=77)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            pad_token_id=0,
        )
        transformer = self.transformer(diffusers)
        awaken(transformer)
        heed_text(transformer)
        parts = {
            "text_encoder": LlamaModel(config).eval(),
            "tokenizer": tokenizer,
            "transformer": transformer.eval(),
            "vae": hunyuan_autoencoder(diffusers),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
            "text_encoder_2": clip_text_encoder(tokenizer_2, width=8),
            "tokenizer_2": tokenizer_2,
        }
        if self.pipeline == "HunyuanVideoImageToVideoPipeline":
            parts |= {"text_encoder": llava(config), "image_processor": picture_encoder()["image_processor"]}
        return parts | (siglip() if self.pipeline == "HunyuanVideoFramepackPipeline" else {})

    def inputs(self, taken: Sequence[str]) -> dict[str, Any]:
        template = {"template": "{}", "crop_start": 0, "image_emb_len": 4, "image_emb_start": 2, "image_emb_end": 6}
        picture = self.pipeline == "HunyuanVideoImageToVideoPipeline"
        return super().inputs(taken) | ({"prompt_template": template} if picture else {})

    def transformer(self, diffusers: ModuleType) -> nn.Module:
        packed = self.pipeline == "HunyuanVideoFramepackPipeline"
        further: dict[str, Any] = {"guidance_embeds": True, "image_condition_type": None}
        if self.pipeline == "HunyuanVideoImageToVideoPipeline":
            further = {"guidance_embeds": False, "image_condition_type": "latent_concat"}
        if packed:
            further |= {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True, "patch_size": 2}
        kind = diffusers.HunyuanVideoFramepackTransformer3DModel if packed else diffusers.HunyuanVideoTransformer3DModel
        channels = {"HunyuanVideoImageToVideoPipeline": 9, "HunyuanSkyreelsImageToVideoPipeline": 8}
        return kind(
            **{"patch_size": 1, **further},
            in_channels=channels.get(self.pipeline, 4),
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size_t=1,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        )

    def latents(self, host: Any, frames: Any) -> Tensor:
        return frames[-1] if isinstance(frames, list) else frames


class HunyuanVideo15Case(FlowMatchingCase):
    """HunyuanVideo15Pipeline with five latent frames, which decode to nine."""

    name = "diffusers-hunyuan-video15"
    config = replace(FlowMatchingCase.config, learning_rate=0.1, **THROUGHOUT)
    alone: ClassVar = ("HunyuanVideo15ImageToVideoPipeline",)
    settings: ClassVar = {"num_frames": 9, "height": 32, "width": 32}

    def __init__(self, guider: str = "ClassifierFreeGuidance", guiding: dict[str, Any] | None = None, **options: Any):
        """guider: the diffusers class, guiding: its settings."""
        super().__init__(**options)
        self.guider, self.guiding = guider, guiding or {"guidance_scale": 4.0}

    def build(self, diffusers: ModuleType) -> Any:
        pipe = super().build(diffusers)
        pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length, pipe.system_message = 6, 24, "something"
        pipe.target_size, pipe.vision_num_semantic_tokens = 32, 4
        return pipe

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

        tokenizer, tokenizer_2 = chat_tokenizer(), ByT5Tokenizer()
        config = Qwen2_5_VLTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            pad_token_id=0,
        )
        picture = self.pipeline == "HunyuanVideo15ImageToVideoPipeline"
        transformer = diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            text_embed_2_dim=32,
            image_embed_dim=16,
            rope_axes_dim=(2, 2, 4),
            target_size=32,
            task_type="i2v" if picture else "t2v",
        )
        vae = diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        )
        awaken(transformer)
        heed_text(transformer)
        parts = {
            "text_encoder": Qwen2_5_VLTextModel(config).eval(),
            "tokenizer": tokenizer,
            "transformer": transformer.eval(),
            "vae": vae.eval(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
            "text_encoder_2": t5_text_encoder(tokenizer_2),
            "tokenizer_2": tokenizer_2,
            "guider": getattr(diffusers, self.guider)(**self.guiding),
        }
        return parts | (siglip() if picture else {})

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return torch.cat([super(HunyuanVideo15Case, self).own_decode(host, one) for one in clean.split(1)])


def gemma_text_encoder(tokenizer: Any) -> nn.Module:
    """The encoder of T5-Gemma 2, with its picture tower."""
    from transformers import SiglipVisionConfig, T5Gemma2Encoder, T5Gemma2EncoderConfig, T5Gemma2TextConfig

    text = T5Gemma2TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
        dropout_rate=0.0,
    )
    vision = SiglipVisionConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    return T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=vision)).eval()


class MotifVideoCase(FlowMatchingCase):
    """MotifVideoPipeline with three latent frames, which decode to nine."""

    name = "diffusers-motif-video"
    config = replace(FlowMatchingCase.config, learning_rate=0.1, **THROUGHOUT)
    alone: ClassVar = ("MotifVideoImage2VideoPipeline",)
    settings: ClassVar = {"num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer()
        picture = self.pipeline == "MotifVideoImage2VideoPipeline"
        transformer = diffusers.MotifVideoTransformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=32,
            rope_axes_dim=(4, 4, 4),
            image_embed_dim=8 if picture else None,
        )
        awaken(transformer)
        return {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
            "vae": wan_autoencoder(diffusers),
            "text_encoder": gemma_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "transformer": transformer.eval(),
            "guider": diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
            "feature_extractor": siglip()["feature_extractor"] if picture else None,
        }


class MochiCase(FlowMatchingCase):
    """MochiPipeline with three latent frames, which decode to thirteen."""

    name = "diffusers-mochi"
    config = replace(FlowMatchingCase.config, learning_rate=0.1)
    settings: ClassVar = {"num_frames": 13, "height": 32, "width": 32, "max_sequence_length": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer()
        transformer = diffusers.MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=32,
            time_embed_dim=4,
            max_sequence_length=16,
        )
        vae = diffusers.AutoencoderKLMochi(
            latent_channels=12,
            out_channels=3,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        )
        awaken(transformer)
        return {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            "vae": vae.eval(),
            "text_encoder": t5_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "transformer": transformer.eval(),
        }


class AllegroCase(DiffusersCase):
    """AllegroPipeline with two latent frames, which decode to eight."""

    name = "diffusers-allegro"
    config = replace(DiffusersCase.config, learning_rate=0.1, **THROUGHOUT)
    settings: ClassVar = {
        **{"num_frames": 8, "height": 64, "width": 64, "max_sequence_length": 16},
        "clean_caption": False,
    }

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer()
        transformer = diffusers.AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            cross_attention_dim=24,
            sample_width=8,
            sample_height=8,
            sample_frames=8,
            caption_channels=32,
        )
        vae = diffusers.AutoencoderKLAllegro(
            down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
        vae.enable_tiling()  # it has no other way
        vae.kernel, vae.stride = (8, 64, 64), (4, 32, 32)
        awaken(transformer)
        return {
            "tokenizer": tokenizer,
            "text_encoder": t5_text_encoder(tokenizer),
            "vae": vae.eval(),
            "transformer": transformer.eval(),
            "scheduler": diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
        }

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return torch.cat([host.decode_latents(one) for one in clean.split(1)])


class LatteCase(DiffusersCase):
    """LattePipeline."""

    name = "diffusers-latte"
    config = replace(DiffusersCase.config, learning_rate=1.0, **THROUGHOUT)
    settings: ClassVar = {"video_length": 4, "num_frames": 4, "height": 16, "width": 16, "clean_caption": False}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer(length=120)
        transformer = diffusers.LatteTransformer3DModel(
            sample_size=8,
            video_length=4,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
        )
        awaken(transformer)
        heed_text(transformer)
        return {
            "tokenizer": tokenizer,
            "text_encoder": t5_text_encoder(tokenizer),
            "vae": image_autoencoder(diffusers),
            "transformer": transformer.eval(),
            "scheduler": diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
        }

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return host.decode_latents(clean, clean.shape[2])


class SanaVideoCase(FlowMatchingCase):
    """SanaVideoPipeline with Wan's VAE and three latent frames, which decode to nine."""

    name = "diffusers-sana-video"
    not_in_float64 = "Sana's transformer gives NaN in float64 (diffusers 0.42)"
    alone: ClassVar = ("SanaImageToVideoPipeline",)
    settings: ClassVar = {
        **{"frames": 9, "num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 16},
        **{"use_resolution_binning": False, "complex_human_instruction": ["something else", "a boat"]},
    }

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        from transformers import Gemma2Config, Gemma2Model

        tokenizer = chat_tokenizer()
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            head_dim=16,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=2,
            pad_token_id=0,
        )
        transformer = diffusers.SanaVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=16,
            sample_size=8,
            patch_size=(1, 2, 2),
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )
        awaken(transformer)
        return {
            "tokenizer": tokenizer,
            "text_encoder": Gemma2Model(config).eval(),
            "vae": wan_autoencoder(diffusers),
            "transformer": transformer.eval(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        }


class EasyAnimateCase(FlowMatchingCase):
    """EasyAnimatePipeline with two latent frames, which decode to five."""

    name = "diffusers-easyanimate"
    config = replace(FlowMatchingCase.config, learning_rate=0.1, **THROUGHOUT)
    settings: ClassVar = {"num_frames": 5, "height": 64, "width": 64, "negative_prompt": ["else", "else"]}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = chat_tokenizer(length=256)
        transformer = diffusers.EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=9 if self.pipeline == "EasyAnimateInpaintPipeline" else 4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=1,
            sample_width=16,
            sample_height=16,
            patch_size=2,
            resize_inpaint_mask_directly=True,
        )
        vae = diffusers.AutoencoderKLMagvit(
            down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
            up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            spatial_group_norm=False,
        )
        awaken(transformer)
        heed_text(transformer)
        return {
            "vae": vae.eval(),
            "text_encoder": qwen_text_encoder(tokenizer, "Qwen2VL"),
            "tokenizer": tokenizer,
            "transformer": transformer.eval(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        }

    def inputs(self, taken: Sequence[str]) -> dict[str, Any]:
        return {}


def qwen_text_encoder(tokenizer: Any, kind: str = "Qwen2_5_VL") -> nn.Module:
    """Qwen's language model of pictures and text, which gives all of its layers."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [2, 2, 4], "rope_type": "default", "type": "default"},
            "pad_token_id": 0,
        },
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        if kind == "Qwen2_5_VL"
        else {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


class Kandinsky5Case(FlowMatchingCase):
    """Kandinsky5T2VPipeline with three latent frames, which decode to nine."""

    name = "diffusers-kandinsky5"
    settings: ClassVar = {"num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 16}

    def build(self, diffusers: ModuleType) -> Any:
        pipe = super().build(diffusers)
        pipe.prompt_template = "<|im_start|>system something<|im_end|><|im_start|>user {}<|im_end|>"
        pipe.prompt_template_encode_start_idx = 6
        return pipe

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer, tokenizer_2 = chat_tokenizer(), build_tokenizer(WORDS, length=77)
        transformer = diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=32,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(1, 1, 2),
            visual_cond=False,
            attention_type="regular",
        )
        awaken(transformer)
        return {
            "transformer": transformer.eval(),
            "vae": hunyuan_autoencoder(diffusers),
            "text_encoder": qwen_text_encoder(tokenizer),
            "tokenizer": Processor(tokenizer),
            "text_encoder_2": clip_text_encoder(tokenizer_2, width=16),
            "tokenizer_2": tokenizer_2,
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        }

    def latents(self, host: Any, frames: Tensor) -> Tensor:
        return frames.permute(0, 4, 1, 2, 3)


class Processor:
    """A processor of text and pictures, of which only text is asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: None = None, videos: None = None, **settings: Any) -> Any:
        return self.tokenizer(text, **settings)

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


def cosmos_transformer(diffusers: ModuleType, channels: int = 4, text: int = 32) -> nn.Module:
    """Cosmos's, of a few channels."""
    return diffusers.CosmosTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=text,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
    ).eval()


class AllIsSafe:
    """In place of Cosmos's guardrail, which is larger than a test."""

    def to(self, *_args: Any, **_kwargs: Any) -> AllIsSafe:
        return self

    def check_text_safety(self, _prompt: str) -> bool:
        return True


class CosmosCase(FlowMatchingCase):
    """CosmosTextToWorldPipeline with three latent frames, which decode to nine."""

    name = "diffusers-cosmos"
    settings: ClassVar = {"num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer()
        vae = diffusers.AutoencoderKLCosmos(
            latent_channels=4,
            encoder_block_out_channels=(8, 8, 8, 8),
            decode_block_out_channels=(8, 8, 8, 8),
            attention_resolutions=(8,),
            resolution=64,
            num_layers=2,
            patch_size=4,
            scaling_factor=1.0,
            spatial_compression_ratio=4,
            temporal_compression_ratio=4,
            latents_mean=None,
            latents_std=None,
        )
        transformer = cosmos_transformer(diffusers)
        awaken(transformer)
        return {
            "text_encoder": t5_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "transformer": transformer,
            "vae": vae.eval(),
            "scheduler": diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5),
            "safety_checker": AllIsSafe(),
        }

    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        """The pipeline hands them to the scheduler."""
        predictions: list[Tensor] = []
        step = host.scheduler.step

        def noted(*args: Any, pred_original_sample: Tensor | None = None, **kwargs: Any) -> Any:
            if pred_original_sample is not None:
                predictions.append(pred_original_sample)
            return step(*args, pred_original_sample=pred_original_sample, **kwargs)

        with swapped(host.scheduler, "step", noted):
            self.sample(host, prompts, seed)
        return predictions

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return host.vae.decode(clean / host.scheduler.config.sigma_data).sample


class Cosmos2Case(CosmosCase):
    """Cosmos2VideoToWorldPipeline with a picture and three latent frames, which decode to nine."""

    name = "diffusers-cosmos2"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts = self.prompts[:1]

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        transformer = cosmos_transformer(diffusers, channels=5)
        awaken(transformer)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
        scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min")
        return super().parts(diffusers) | {
            **{"transformer": transformer, "vae": wan_autoencoder(diffusers), "scheduler": scheduler},
        }

    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        return FlowMatchingCase.own_predictions(self, host, prompts, seed)

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return FlowMatchingCase.own_decode(self, host, clean)


class Cosmos25Case(Cosmos2Case):
    """Cosmos2_5_PredictBasePipeline with a picture."""

    name = "diffusers-cosmos2.5"
    settings: ClassVar = {"num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 24}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = chat_tokenizer()
        transformer = cosmos_transformer(diffusers, channels=5, text=64)
        awaken(transformer)
        return super().parts(diffusers) | {
            "text_encoder": qwen_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "transformer": transformer,
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        }
