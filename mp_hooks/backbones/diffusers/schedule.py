"""Tweedie's formula for whatever a diffusers scheduler asks its denoiser to predict."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import full_precision


def clean_latents(scheduler: Any, latents: Tensor, output: Tensor, timestep: float) -> Tensor:
    """z0_hat from a denoiser's output (at least float32; shapes kept).

    `latents` are the denoiser's input: for schedulers that divide z_t by sqrt(1 + sigma^2) first (Euler), that input
    is a variance-preserving latent with abar = 1 / (1 + sigma^2), so that one formula serves all. Flow matching
    (z_t = (1 - sigma) z0 + sigma noise) predicts noise - z0. Raises MotionPromptError for an unknown prediction.
    """
    latents, output = (full_precision(value) for value in (latents, output))
    kind = scheduler.config.get("prediction_type", "flow_prediction")  # flow-matching schedulers have no such setting
    if kind == "flow_prediction":
        return latents - float(scheduler.sigmas[schedule_index(scheduler, timestep)]) * output
    if kind == "sample":
        return output
    alpha = alpha_bar(scheduler, timestep)
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if kind == "epsilon":
        return (latents - noise * output) / signal
    if kind == "v_prediction":
        return signal * latents - noise * output
    raise MotionPromptError(f"MotionPrompt does not know the prediction type '{kind}' of {type(scheduler).__name__}")


def alpha_bar(scheduler: Any, timestep: float) -> float:
    """abar at a timestep of the current schedule."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return float(scheduler.alphas_cumprod[int(timestep)])
    return 1 / (1 + float(sigmas[schedule_index(scheduler, timestep)]) ** 2)


def schedule_index(scheduler: Any, timestep: float) -> int:
    """Place of a timestep in the current schedule; a search, because FreeInit starts the schedule again."""
    return int((scheduler.timesteps - timestep).abs().argmin())
