"""Video pipelines of diffusers that no adapter answers for, each with its reason, which is the error of using one."""

from __future__ import annotations

from mp_hooks.errors import MotionPromptError

NO_TEXT = "it reads no text"
DIFFERENT_NOISE = "its frames have noise levels of their own, kept in schedulers that the pipeline does not show"
SOUND = "its text feeds picture and sound through connectors, and up to three more calls correct z0_hat"

UNGUIDED = {
    "StableVideoDiffusionPipeline": f"{NO_TEXT}: a picture is all that conditions it",
    "LTXLatentUpsamplePipeline": f"{NO_TEXT}: it enlarges finished latents",
    "LTX2LatentUpsamplePipeline": f"{NO_TEXT}: it enlarges finished latents",
    "LTX2VideoDiffusionDecodePipeline": f"{NO_TEXT}: it decodes finished latents",
    "Kandinsky6SRPipeline": "it enlarges a finished clip, whose motion is settled",
    "TextToVideoZeroPipeline": "it warps one picture's latents by a motion that is given, and samples none",
    "TextToVideoZeroSDXLPipeline": "it warps one picture's latents by a motion that is given, and samples none",
    "AnyFlowPipeline": "it predicts the way from one noise level to another, from which no z0_hat follows",
    "AnyFlowFARPipeline": "it predicts the way from one noise level to another, from which no z0_hat follows",
    "SkyReelsV2DiffusionForcingPipeline": DIFFERENT_NOISE,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": DIFFERENT_NOISE,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": DIFFERENT_NOISE,
    "CosmosVideoToWorldPipeline": "its two branches see different noise on the frames that are given",
    "Cosmos2_5_TransferPipeline": "its control network reads the text too, and its chunks go on from each other",
    "Cosmos3OmniPipeline": "one transformer encodes its text and samples, so that text rows cannot be put in alone",
    "Kandinsky5I2VPipeline": "its gradient is up to 10 % off that of finite differences, and why is not known yet",
    "Kandinsky6TI2VAPipeline": "its text feeds picture and sound, which are sampled together",
    "EasyAnimateControlPipeline": "its call of its own encode_prompt fails in diffusers 0.42 (text_encoder_index)",
    "LTX2Pipeline": SOUND,
    "LTX2ImageToVideoPipeline": SOUND,
    "LTX2ConditionPipeline": SOUND,
    "LTX2InContextPipeline": SOUND,
    "LTX2HDRPipeline": SOUND,
    "LTX2DFRPipeline": SOUND,
    "LTX2DFRTemporalRefinePipeline": "it adds frames to a finished clip, whose motion is settled",
    "LTXI2VLongMultiPromptPipeline": "windows of the clip have prompts of their own, and overlap",
    "SanaWMPipeline": "its camera path settles the motion, and a second model refines the clip",
    "HeliosPyramidPipeline": "it samples in a pyramid of sizes, and adds noise between them",
    "WanAnimatePipeline": "a driving video settles the motion",
}


def refuse(*names: str) -> None:
    """Raises MotionPromptError with the reason where one of these classes is not guided."""
    for name in names:
        if name in UNGUIDED:
            raise MotionPromptError(f"MotionPrompt cannot guide {name}: {UNGUIDED[name]}")
