"""Where a diffusers scheduler stands, and Tweedie's formula for whatever it asks its denoiser to predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.guidance import full_precision

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
UNKNOWN_SETTINGS = {
    "thresholding": "dynamic thresholding, which is for pixels",
}
# Those that clamp their z0_hat where clip_sample is set; others have the setting and do not heed it.
CLIPPING = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"),
    *("HeunDiscreteScheduler", "LCMScheduler"),
)


def check_scheduler(scheduler: Any) -> None:
    """Raises MotionPromptError where what a scheduler does to z_t, or asks for, is not known here."""
    kind = _prediction(scheduler)
    if not _name(scheduler):
        raise unknown_name("scheduler", type(scheduler).__name__, list(LEVELS))
    if kind not in PREDICTIONS:
        raise MotionPromptError(
            f"MotionPrompt does not know the prediction type '{kind}' of {type(scheduler).__name__}; it knows "
            f"{', '.join(PREDICTIONS)}"
        )
    for setting, meaning in UNKNOWN_SETTINGS.items():
        if scheduler.config.get(setting):
            raise MotionPromptError(f"MotionPrompt does not know {meaning}; give the scheduler {setting}=False")


def clean_latents(scheduler: Any, latents: Tensor, output: Tensor, timestep: float) -> Tensor:
    """z0_hat from a denoiser's output (at least float32; shapes kept), at the call that the scheduler expects next.

    `latents` are the denoiser's input, signal * z0 + noise * eps; flow matching predicts eps - z0. Raises
    MotionPromptError for a scheduler that is not known.
    """
    check_scheduler(scheduler)
    latents, output = (full_precision(value) for value in (latents, output))
    if hasattr(scheduler, "precondition_outputs"):  # EDM's, whose input is scaled too
        sigma = scheduler.sigmas[_call(scheduler, timestep)].to(latents)
        return scheduler.precondition_outputs(latents / scheduler._get_conditioning_c_in(sigma), output, sigma)
    signal, noise = LEVELS[_name(scheduler)](scheduler, timestep)
    clean = {
        "epsilon": lambda: (latents - noise * output) / signal,
        "v_prediction": lambda: signal * latents - noise * output,
        "sample": lambda: output,
        "flow_prediction": lambda: latents + noise * output if _rises(scheduler) else latents - noise * output,
    }[_prediction(scheduler)]()
    config = scheduler.config
    if config.get("clip_sample") and _name(scheduler) in CLIPPING:
        return clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    return clean


def schedule_step(scheduler: Any, timestep: float) -> tuple[int, int]:
    """Which step the scheduler is about to take, from 0, and how many there are.

    One of second order calls its denoiser twice a step, and once in the last.
    """
    if hasattr(scheduler, "step_index"):
        order = scheduler.order
        return _call(scheduler, timestep) // order, -(-len(scheduler.timesteps) // order)
    timesteps = scheduler.timesteps.unique_consecutive()  # PNDM comes to its second one twice
    return _nearest(timesteps, timestep), len(timesteps)


def _name(scheduler: Any) -> str:
    """Its class in LEVELS, or its base's; empty where neither is there."""
    return next((base.__name__ for base in type(scheduler).__mro__ if base.__name__ in LEVELS), "")


def _prediction(scheduler: Any) -> str:
    return scheduler.config.get("prediction_type", "flow_prediction")  # flow-matching schedulers have no such setting


def _call(scheduler: Any, timestep: float) -> int:
    """Which of its calls the scheduler expects next, by its own count: neighbouring calls may share a timestep."""
    if scheduler.step_index is not None:
        return scheduler.step_index
    if scheduler.begin_index is not None:
        return scheduler.begin_index
    return scheduler.index_for_timestep(scheduler.timesteps[_nearest(scheduler.timesteps, timestep)])


def _nearest(timesteps: Tensor, timestep: float) -> int:
    return int((timesteps - timestep).abs().argmin())


# Signal and noise in the denoiser's input, at the call that the scheduler expects next.


def _of_timestep(scheduler: Any, timestep: float) -> tuple[float, float]:
    alpha = float(scheduler.alphas_cumprod[int(timestep)])
    return alpha**0.5, (1 - alpha) ** 0.5


def _of_input_scale(scheduler: Any, timestep: float) -> tuple[float, float]:
    """z0 + sigma eps, divided by sqrt(1 + sigma^2); between two steps the scheduler alone knows its sigma."""
    signal = float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), timestep))
    return signal, (1 - signal**2) ** 0.5


def _of_sigma(scheduler: Any, timestep: float) -> tuple[float, float]:
    if scheduler.config.get("use_flow_sigmas") or _prediction(scheduler) == "flow_prediction":
        return _of_flow(scheduler, timestep)
    sigma = float(scheduler.sigmas[_call(scheduler, timestep)])
    return 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5


def _of_flow(scheduler: Any, timestep: float) -> tuple[float, float]:
    sigma = float(scheduler.sigmas[_call(scheduler, timestep)])
    return (sigma, 1 - sigma) if _rises(scheduler) else (1 - sigma, sigma)


def _rises(scheduler: Any) -> bool:
    """Whether the schedule goes from 0 up to the clean end, and z0 - eps is predicted (Mochi)."""
    return bool(scheduler.config.get("invert_sigmas"))


def _of_edm(scheduler: Any, timestep: float) -> tuple[float, float]:
    raise NotImplementedError  # its own code makes z0_hat


# By class name: a scheduler's structure does not tell what it does to z_t.
LEVELS: dict[str, Callable[[Any, float], tuple[float, float]]] = {
    "DDIMScheduler": _of_timestep,
    "DDIMParallelScheduler": _of_timestep,
    "DDPMScheduler": _of_timestep,
    "DDPMParallelScheduler": _of_timestep,
    "PNDMScheduler": _of_timestep,
    "LCMScheduler": _of_timestep,
    "TCDScheduler": _of_timestep,
    "CogVideoXDDIMScheduler": _of_timestep,
    "CogVideoXDPMScheduler": _of_timestep,
    "EulerDiscreteScheduler": _of_input_scale,
    "EulerAncestralDiscreteScheduler": _of_input_scale,
    "LMSDiscreteScheduler": _of_input_scale,
    "HeunDiscreteScheduler": _of_input_scale,
    "KDPM2DiscreteScheduler": _of_input_scale,
    "KDPM2AncestralDiscreteScheduler": _of_input_scale,
    "DPMSolverSDEScheduler": _of_input_scale,
    "DPMSolverMultistepScheduler": _of_sigma,
    "DPMSolverSinglestepScheduler": _of_sigma,
    "DEISMultistepScheduler": _of_sigma,
    "UniPCMultistepScheduler": _of_sigma,
    "SASolverScheduler": _of_sigma,
    "FlowMatchEulerDiscreteScheduler": _of_flow,
    "FlowMatchHeunDiscreteScheduler": _of_flow,
    "FlowMatchLCMScheduler": _of_flow,
    "LTXEulerAncestralRFScheduler": _of_flow,
    "HeliosScheduler": _of_flow,
    "EDMEulerScheduler": _of_edm,
}
