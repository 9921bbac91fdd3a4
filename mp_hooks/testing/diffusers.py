"""Tiny random diffusers pipelines of the real classes, built without any download."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks import backbones
from mp_hooks.compat import swapped
from mp_hooks.testing.case import PROMPTS, HostCase, MissingPackage, require
from mp_hooks.testing.tokenizer import build_tokenizer

WORDS = sorted({*" ".join(PROMPTS).split(), "authentic", "something", "else"})


THROUGHOUT: dict[str, Any] = {
    "tokens": 8,
    "start": 0.0,
    "stop": 1.0,
    "iterations": 1,
}  # where text does little to a tiny pipeline


def require_pipeline(diffusers: ModuleType, name: str) -> None:
    """MissingPackage where this diffusers is older than the pipeline."""
    if not hasattr(diffusers, name):
        raise MissingPackage(f"diffusers {diffusers.__version__} has no {name}; pip install -U diffusers")


def clip_text_encoder(tokenizer: Any, width: int = 32, projected: bool = False) -> nn.Module:
    """A two-layer CLIP text model for this tokenizer; `projected`: with the projection of the second one of SDXL."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def image_autoencoder(diffusers: ModuleType) -> nn.Module:
    """Stable Diffusion's kind, with one halving."""
    return diffusers.AutoencoderKL(
        block_out_channels=[16, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
    ).eval()


def awaken(*modules: nn.Module) -> None:
    """Give layers that start at zero small random weights; through zeros no gradient comes."""
    for module in modules:
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)


def heed_text(transformer: nn.Module, factor: float = 10.0) -> None:
    """Let attention, through which text acts, weigh more beside what a random network makes of its latents."""
    for name, parameter in transformer.named_parameters():
        if "to_out" in name:
            parameter.data.mul_(factor)


def t5_tokenizer(length: int = 16) -> Any:
    """T5's conventions on the test's own words: padding 0, end of text 1, no start token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def t5_text_encoder(tokenizer: Any, kind: str = "T5", width: int = 32) -> nn.Module:
    """A two-layer encoder for this tokenizer, of the kind T5 or UMT5."""
    import transformers

    config = getattr(transformers, kind + "Config")(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4
    )
    return getattr(transformers, kind + "EncoderModel")(config).eval()


def picture_encoder(width: int = 8) -> dict[str, Any]:
    """CLIP's, and the processor in front of it."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    size = {"height": 8, "width": 8}
    processor = CLIPImageProcessor(crop_size=size, size={"shortest_edge": 8})
    return {"image_encoder": CLIPVisionModelWithProjection(config).eval(), "image_processor": processor}


def pictures(count: int, width: int, height: int) -> list[Any]:
    """Random pictures, the same ones every time."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


class DiffusersCase(HostCase):
    """A pipeline; `options` are passed to its call, beside those of `settings` that it takes.

    pipeline: the class's name, the first of the adapter's unless given. Pictures are given to those that ask for any.
    """

    config = replace(HostCase.config, learning_rate=0.5)
    settings: ClassVar[dict[str, Any]]
    alone: ClassVar[tuple[str, ...]] = ()  # pipelines that take one prompt a call
    guidance: ClassVar[dict[str, dict[str, Any]]] = {}  # the kit's configuration, where text does less to a pipeline
    clips: ClassVar[tuple[str, ...]] = ("video", "control_video", "conditioning_frames")  # arguments that take one

    def __init__(self, pipeline: str | None = None, **options: Any) -> None:
        self.options = options
        self.pipeline = pipeline or getattr(backbones.adapter_class(self.name), "pipelines", ("",))[0]
        if self.pipeline in self.alone:
            self.prompts = PROMPTS[:1]
        self.config = replace(self.config, **self.guidance.get(self.pipeline, {}))

    def build(self, diffusers: ModuleType) -> Any:
        """The pipeline with random weights from the global generator."""
        require_pipeline(diffusers, self.pipeline)
        return getattr(diffusers, self.pipeline)(**self.parts(diffusers))

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        """What the pipeline is made of."""
        raise NotImplementedError

    def inputs(self, taken: Sequence[str]) -> dict[str, Any]:
        """Pictures for the arguments that the pipeline takes."""
        frames, size = self.settings["num_frames"], (self.settings["width"], self.settings["height"])
        if "image" in taken:
            return {"image": pictures(1, *size)[0]}
        return {name: pictures(frames, *size) for name in self.clips if name in taken}

    def latents(self, host: Any, frames: Tensor) -> Tensor:
        """What the pipeline returns, as [b, c, t, h, w]."""
        return frames

    def clean(self, host: Any, result: Any) -> Tensor:
        """z0_hat [b, c, t, h, w] in what the scheduler's step returned."""
        return self.latents(host, result.pred_original_sample)

    @contextmanager
    def open(self) -> Iterator[Any]:
        diffusers = require("diffusers", extra="diffusers")
        require("transformers", extra="diffusers")
        torch.manual_seed(0)
        pipe = self.build(diffusers)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(self.device)
        yield pipe

    def sample(self, host: Any, prompts: list[str], seed: int, **extra: Any) -> Tensor:
        torch.manual_seed(seed)
        taken = inspect.signature(type(host).__call__).parameters
        settings = {"num_inference_steps": 4, "output_type": "latent", **self.settings, **self.inputs(list(taken))}
        settings = {name: value for name, value in settings.items() if name in taken}
        prompt = prompts[0] if isinstance(prompts, list) and len(prompts) == 1 else prompts
        return self.latents(host, host(prompt=prompt, **{**settings, **self.options, **extra}).frames)

    def everything(self, host: Any) -> list[nn.Module]:
        return [part for part in host.components.values() if isinstance(part, nn.Module)]

    @contextmanager
    def in_float64(self, host: Any) -> Iterator[None]:
        """Also what pipelines make in float32 by name, or mix with their own latents."""
        lerp = torch.lerp

        def of_one_type(first: Tensor, second: Tensor, weight: Any) -> Tensor:
            return lerp(first.double(), second.double(), weight)

        def wide(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def called(*args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
                return function(*args, dtype=torch.float64 if dtype is torch.float32 else dtype, **kwargs)

            return called

        with (
            swapped(torch, "lerp", of_one_type),
            swapped(torch, "arange", wide(torch.arange)),
            swapped(torch, "linspace", wide(torch.linspace)),
            swapped(torch.linalg, "vector_norm", wide(torch.linalg.vector_norm)),
            super().in_float64(host),
        ):
            yield

    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        predictions: list[Tensor] = []
        step = host.scheduler.step

        def noted(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            predictions.append(self.clean(host, result))
            return result if return_dict else (result.prev_sample,)

        with swapped(host.scheduler, "step", noted):
            self.sample(host, prompts, seed)
        return predictions


class AnimateDiffCase(DiffusersCase):
    """AnimateDiffPipeline; `scheduler` names the diffusers class."""

    name = "diffusers-animatediff"
    alone: ClassVar = (
        *("AnimateDiffControlNetPipeline", "AnimateDiffVideoToVideoPipeline"),
        "AnimateDiffVideoToVideoControlNetPipeline",
    )
    guidance: ClassVar = {
        "AnimateDiffSDXLPipeline": {"learning_rate": 0.4, **THROUGHOUT},
        "AnimateDiffSparseControlNetPipeline": {"learning_rate": 0.03, **THROUGHOUT},
        "PIAPipeline": {"learning_rate": 0.03, **THROUGHOUT},
    }
    config = replace(HostCase.config, learning_rate=0.2)
    settings: ClassVar = {"num_frames": 4, "height": 16, "width": 16}

    def __init__(self, scheduler: str = "DDIMScheduler", prediction: str = "epsilon", **options: Any) -> None:
        super().__init__(**options)
        self.scheduler, self.prediction = scheduler, prediction

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = build_tokenizer(WORDS, length=16)
        unet = diffusers.UNetMotionModel(
            **self.further(),
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            layers_per_block=1,
            norm_num_groups=8,
            num_attention_heads=2,
            motion_num_attention_heads=2,
        )
        vae = image_autoencoder(diffusers)
        settings = {"beta_schedule": "linear", "clip_sample": False, "prediction_type": self.prediction}
        scheduler = getattr(diffusers, self.scheduler).from_config(settings)
        awaken(unet)
        adapter = diffusers.MotionAdapter(
            block_out_channels=(32, 32), motion_layers_per_block=1, motion_norm_num_groups=8
        )
        parts = {
            "vae": vae,
            "text_encoder": clip_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "unet": unet.eval(),
            "motion_adapter": adapter,
            "scheduler": scheduler,
        }
        if self.pipeline == "AnimateDiffSDXLPipeline":
            parts |= {"text_encoder_2": clip_text_encoder(tokenizer, projected=True), "tokenizer_2": tokenizer}
        if "ControlNet" in self.pipeline:
            parts["controlnet"] = self.controlnet(diffusers)
        return parts

    def further(self) -> dict[str, Any]:
        """The UNet's settings that are this pipeline's."""
        if self.pipeline == "AnimateDiffSDXLPipeline":
            return {
                "cross_attention_dim": 64,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 32,
            }
        return {"cross_attention_dim": 32, "in_channels": 9 if self.pipeline == "PIAPipeline" else 4}

    def controlnet(self, diffusers: ModuleType) -> nn.Module:
        sparse = self.pipeline == "AnimateDiffSparseControlNetPipeline"
        blocks = ("CrossAttnDownBlockMotion", "DownBlockMotion") if sparse else ("CrossAttnDownBlock2D", "DownBlock2D")
        kind = diffusers.SparseControlNetModel if sparse else diffusers.ControlNetModel
        controlnet = kind(
            block_out_channels=(32, 32),
            down_block_types=blocks,
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            conditioning_embedding_out_channels=(8, 8),
            **({"conditioning_channels": 3, "use_simplified_condition_embedding": False} if sparse else {}),
        )
        awaken(controlnet)
        return controlnet.eval()

    def inputs(self, taken: Sequence[str]) -> dict[str, Any]:
        indices = {"controlnet_frame_indices": list(range(self.settings["num_frames"]))}
        return super().inputs(taken) | (indices if "controlnet_frame_indices" in taken else {})

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return host.decode_latents(clean)


class TextToVideoSDCase(DiffusersCase):
    """TextToVideoSDPipeline."""

    name = "diffusers-text-to-video-sd"
    alone: ClassVar = ("VideoToVideoSDPipeline",)
    guidance: ClassVar = {"VideoToVideoSDPipeline": {"learning_rate": 0.02, **THROUGHOUT}}
    config = replace(HostCase.config, learning_rate=0.2)
    settings: ClassVar = {"num_frames": 4, "height": 16, "width": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = build_tokenizer(WORDS, length=16)
        unet = diffusers.UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
        )
        awaken(unet)
        scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
        return {
            "vae": image_autoencoder(diffusers),
            "text_encoder": clip_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "unet": unet.eval(),
            "scheduler": scheduler,
        }

    def clean(self, host: Any, result: Any) -> Tensor:
        return result.pred_original_sample.unflatten(0, (-1, self.settings["num_frames"])).transpose(1, 2)

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return host.decode_latents(clean)


class AnimateDiffPAGCase(AnimateDiffCase):
    """AnimateDiffPAGPipeline."""

    name = "diffusers-animatediff-pag"
    config = replace(AnimateDiffCase.config, learning_rate=1.0)

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        return super().parts(diffusers) | {"pag_applied_layers": ["mid_block.*attn1", "down_blocks.0.*attn1"]}


class I2VGenXLCase(TextToVideoSDCase):
    """I2VGenXLPipeline with one picture and one prompt."""

    name = "diffusers-i2vgen-xl"
    guidance: ClassVar = {"I2VGenXLPipeline": {"learning_rate": 0.1, **THROUGHOUT}}
    settings: ClassVar = {**TextToVideoSDCase.settings, "clip_skip": None}
    alone: ClassVar = ("I2VGenXLPipeline",)

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        unet = diffusers.I2VGenXLUNet(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
            num_attention_heads=2,
        )
        awaken(unet)
        encoder = picture_encoder(width=32)
        seen = {"image_encoder": encoder["image_encoder"], "feature_extractor": encoder["image_processor"]}
        return super().parts(diffusers) | {"unet": unet.eval(), **seen}


class CogVideoXCase(DiffusersCase):
    """CogVideoXPipeline with three latent frames, which decode to nine."""

    name = "diffusers-cogvideox"
    settings: ClassVar = {"num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer()
        transformer = self.transformer(diffusers)
        vae = diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
        awaken(transformer)
        scheduler = diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        return {
            "tokenizer": tokenizer,
            "text_encoder": t5_text_encoder(tokenizer),
            "vae": vae.eval(),
            "transformer": transformer.eval(),
            "scheduler": scheduler,
        }

    alone: ClassVar = ("CogVideoXImageToVideoPipeline", "CogVideoXFunControlPipeline", "ConsisIDPipeline")
    guidance: ClassVar = {
        "CogVideoXImageToVideoPipeline": {"learning_rate": 0.1, **THROUGHOUT},
        "CogVideoXFunControlPipeline": {"learning_rate": 0.1, **THROUGHOUT},
        "ConsisIDPipeline": {"learning_rate": 0.1, **THROUGHOUT},
    }

    def transformer(self, diffusers: ModuleType) -> nn.Module:
        settings = {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "in_channels": 8 if self.pipeline in self.alone else 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 32,
            "num_layers": 1,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "max_text_seq_length": 16,
        }
        if self.pipeline != "ConsisIDPipeline":
            return diffusers.CogVideoXTransformer3DModel(**settings)
        return diffusers.ConsisIDTransformer3DModel(
            **settings,
            cross_attn_interval=1,
            is_train_face=True,
            cross_attn_dim_head=1,
            cross_attn_num_heads=1,
            LFE_id_dim=2,
            LFE_vit_dim=2,
            LFE_dim_head=8,
            LFE_num_heads=2,
            LFE_num_id_token=1,
            LFE_num_querie=1,
            LFE_output_dim=21,
            LFE_ff_mult=1,
            LFE_num_scale=1,
        )

    def inputs(self, taken: Sequence[str]) -> dict[str, Any]:
        face = {"id_vit_hidden": [torch.ones(1, 2, 2)], "id_cond": torch.ones(1, 2)} if "id_cond" in taken else {}
        return super().inputs(taken) | face

    def latents(self, host: Any, frames: Tensor) -> Tensor:
        return frames.transpose(1, 2)

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        return host.decode_latents(clean.transpose(1, 2))


class WanCase(DiffusersCase):
    """WanPipeline with three latent frames, which decode to nine."""

    name = "diffusers-wan"
    settings: ClassVar = {"num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        require("ftfy", extra="diffusers")
        tokenizer = t5_tokenizer()
        transformer = self.transformer(diffusers)
        vae = diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.5, 2.0, 1.0],
        )
        awaken(transformer)
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        parts = {
            "tokenizer": tokenizer,
            "text_encoder": t5_text_encoder(tokenizer, "UMT5"),
            "vae": vae.eval(),
            "scheduler": scheduler,
            "transformer": transformer.eval(),
        }
        if self.boundary is not None:
            parts |= {"transformer_2": self.transformer(diffusers).eval(), "boundary_ratio": self.boundary}
            awaken(parts["transformer_2"])
        if self.pipeline == "HeliosPipeline":
            parts["scheduler"] = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1])
        return parts | (picture_encoder() if self.pipeline in self.sees_the_picture else {})

    # what relatives differ in: the transformer's class, the channels of what it is given, the picture's embedding
    classes: ClassVar = {
        "WanVACEPipeline": "WanVACETransformer3DModel",
        "ChronoEditPipeline": "ChronoEditTransformer3DModel",
        "SkyReelsV2Pipeline": "SkyReelsV2Transformer3DModel",
        "SkyReelsV2ImageToVideoPipeline": "SkyReelsV2Transformer3DModel",
        "HeliosPipeline": "HeliosTransformer3DModel",
    }
    alone: ClassVar = ("WanVACEPipeline", "LucyEditPipeline")
    channels: ClassVar = {"WanImageToVideoPipeline": 12, "LucyEditPipeline": 8}
    sees_the_picture: ClassVar = ("ChronoEditPipeline", "SkyReelsV2ImageToVideoPipeline")

    def __init__(self, boundary: float | None = None, **options: Any) -> None:
        """boundary: of the first of two transformers."""
        super().__init__(**options)
        self.boundary = boundary

    def inputs(self, taken: Sequence[str]) -> dict[str, Any]:
        section = {"num_latent_frames_per_chunk": 3}  # of Helios, which can do without a picture
        return section if self.pipeline == "HeliosPipeline" else super().inputs(taken)

    def transformer(self, diffusers: ModuleType) -> nn.Module:
        name = self.pipeline
        further: dict[str, Any] = {"in_channels": self.channels.get(name, 4)}
        if name == "WanVACEPipeline":
            further["vace_layers"], further["vace_in_channels"] = [0], 72
        if name == "HeliosPipeline":
            further["rope_dim"] = (4, 4, 4)
        if name in self.sees_the_picture:
            further = {"in_channels": 12, "image_dim": 8}
        return getattr(diffusers, self.classes.get(name, "WanTransformer3DModel"))(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            **further,
        )

    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        predictions: list[Tensor] = []
        convert = host.scheduler.convert_model_output

        def noted(*args: Any, **kwargs: Any) -> Tensor:
            predictions.append(convert(*args, **kwargs))
            return predictions[-1]

        with swapped(host.scheduler, "convert_model_output", noted):
            self.sample(host, prompts, seed)
        return predictions

    @contextmanager
    def in_float64(self, host: Any) -> Iterator[None]:
        """With Euler's steps, because UniPC's second one mixes precisions (diffusers 0.42.1)."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        own = host.scheduler
        if self.pipeline == "HeliosPipeline":
            with super().in_float64(host):
                yield
            return
        host.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        try:
            with super().in_float64(host):
                yield
        finally:
            host.scheduler = own

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(getattr(host.vae.config, name)).view(1, -1, 1, 1, 1).to(clean)
            for name in ("latents_mean", "latents_std")
        )
        return host.vae.decode(clean * deviation + mean).sample


class WanModularCase(WanCase):
    """WanModularPipeline, made of its own blocks."""

    name = "diffusers-wan-modular"

    def build(self, diffusers: ModuleType) -> Any:
        require_pipeline(diffusers, "WanModularPipeline")
        pipe = diffusers.WanBlocks().init_pipeline()
        pipe.update_components(**self.parts(diffusers), guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0))
        return pipe

    def sample(self, host: Any, prompts: list[str], seed: int, **extra: Any) -> Tensor:
        torch.manual_seed(seed)
        settings = {"num_inference_steps": 4, **self.settings, **self.options, **extra}
        return host(prompt=prompts, output="latents", **settings)


class FlowMatchingCase(DiffusersCase):
    """A pipeline with FlowMatchEulerDiscreteScheduler."""

    def packed(self, host: Any, latents: Tensor) -> Tensor:
        """What the scheduler steps, as [b, c, t, h, w]."""
        return self.latents(host, latents)

    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        """The scheduler tells none: a copy of it takes one Euler step over the whole remaining sigma."""
        predictions: list[Tensor] = []
        step = host.scheduler.step

        def noted(output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
            whole = copy.copy(host.scheduler)
            whole.sigmas = whole.sigmas.clone()
            whole.sigmas[whole.index_for_timestep(timestep) + 1] = float(bool(whole.config.get("invert_sigmas")))
            predictions.append(self.packed(host, type(whole).step(whole, output, timestep, sample)[0]))
            return step(output, timestep, sample, **kwargs)

        with swapped(host.scheduler, "step", noted):
            self.sample(host, prompts, seed)
        return predictions

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        config = host.vae.config
        scaled = clean / (config.get("scaling_factor") or 1.0)
        if config.get("latents_mean") is not None:
            mean, deviation = (torch.tensor(config[name]).to(clean) for name in ("latents_mean", "latents_std"))
            scaled = scaled * deviation.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)
        return host.vae.decode(scaled).sample


class LTXCase(FlowMatchingCase):
    """LTXPipeline with three latent frames, which decode to seventeen."""

    name = "diffusers-ltx"
    alone: ClassVar = ("LTXImageToVideoPipeline", "LTXConditionPipeline")
    settings: ClassVar = {"num_frames": 17, "height": 64, "width": 64, "max_sequence_length": 16}

    def parts(self, diffusers: ModuleType) -> dict[str, Any]:
        tokenizer = t5_tokenizer()
        transformer = diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        )
        vae = diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        )
        awaken(transformer)
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 2.0)
        return {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
            "vae": vae.eval(),
            "text_encoder": t5_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "transformer": transformer.eval(),
        }

    def latents(self, host: Any, frames: Tensor) -> Tensor:
        return frames if frames.ndim == 5 else host._unpack_latents(frames, 3, 2, 2)

    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        mean, deviation = (part.view(1, -1, 1, 1, 1) for part in (host.vae.latents_mean, host.vae.latents_std))
        return host.vae.decode(clean * deviation + mean).sample


class LTXConditionCase(LTXCase):
    """LTXConditionPipeline: a picture at the first frame, some of whose noise is left."""

    name = "diffusers-ltx-condition"
    guidance: ClassVar = {"LTXConditionPipeline": {"learning_rate": 0.1, **THROUGHOUT}}

    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        """Every token's own sigma is its own time step's."""
        predictions: list[Tensor] = []
        step = host.scheduler.step

        def noted(output: Tensor, timestep: Any, sample: Tensor, per_token_timesteps: Tensor, **kwargs: Any) -> Any:
            sigmas = per_token_timesteps.unsqueeze(-1) / host.scheduler.config.num_train_timesteps
            predictions.append(self.latents(host, sample + sigmas * output))
            return step(output, timestep, sample, per_token_timesteps=per_token_timesteps, **kwargs)

        with swapped(host.scheduler, "step", noted):
            self.sample(host, prompts, seed)
        return predictions
