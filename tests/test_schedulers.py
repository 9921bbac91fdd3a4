"""z0_hat and the step's index against every scheduler that is known, by its own words; others are refused."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mp_hooks import backbones
from mp_hooks.backbones.diffusers.schedule import LEVELS, check_scheduler, clean_latents, schedule_step
from mp_hooks.errors import MotionPromptError
from mp_hooks.testing import ConformanceSuite
from mp_hooks.testing.conformance import Recorder
from mp_hooks.testing.diffusers import AnimateDiffCase

diffusers = pytest.importorskip("diffusers")

SIZE = (2, 4, 3, 5, 5)
STEPS = 12
VIDEO = {"beta_schedule": "linear", "clip_sample": False}
KARRAS, SPACED = {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
V, SAMPLE = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
RUNGE_KUTTA = {"skip_prk_steps": False}  # PNDM's first three steps then take four calls each, counted as two steps
SOLVERS = ({}, V, SAMPLE, KARRAS, FLOW)

# by name: settings beside VIDEO's
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "DDIMScheduler": ({}, V, SAMPLE, {"clip_sample": True}, {**V, **SPACED, "rescale_betas_zero_snr": True}),
    "DDIMParallelScheduler": ({}, V, {"clip_sample": True}),
    "DDPMScheduler": ({}, V, SAMPLE, {"clip_sample": True, "clip_sample_range": 2.0}),
    "DDPMParallelScheduler": ({}, {"clip_sample": True}),
    "PNDMScheduler": ({"skip_prk_steps": True}, {"skip_prk_steps": True, **V}, RUNGE_KUTTA),
    "LCMScheduler": ({}, V, {"clip_sample": True}),
    "TCDScheduler": ({}, V, SAMPLE, {"clip_sample": True}),
    "CogVideoXDDIMScheduler": (V, {**V, "clip_sample": True, "rescale_betas_zero_snr": True, **SPACED}),
    "CogVideoXDPMScheduler": (V, {**V, "clip_sample": True}),
    "EulerDiscreteScheduler": ({}, V, SAMPLE, KARRAS, {**V, **KARRAS, "timestep_type": "continuous"}),
    "EulerAncestralDiscreteScheduler": ({}, V),
    "LMSDiscreteScheduler": ({}, V, SAMPLE, KARRAS),
    "HeunDiscreteScheduler": ({}, V, SAMPLE, KARRAS, {"clip_sample": True}),
    "KDPM2DiscreteScheduler": ({}, {**V, **KARRAS}),
    "KDPM2AncestralDiscreteScheduler": ({}, {**V, **KARRAS}),
    "DPMSolverSDEScheduler": ({}, {**V, **KARRAS}),
    "DPMSolverMultistepScheduler": (
        *SOLVERS,
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++", **V, **KARRAS},
    ),
    "DPMSolverSinglestepScheduler": SOLVERS,
    "DEISMultistepScheduler": SOLVERS,
    "UniPCMultistepScheduler": (*SOLVERS, {"use_flow_sigmas": True}, {"predict_x0": False}),
    "SASolverScheduler": SOLVERS,
    "FlowMatchEulerDiscreteScheduler": (
        {"shift": 3.0},
        {"use_karras_sigmas": True},
        {"use_dynamic_shifting": True},
        {"stochastic_sampling": True},
    ),
    "FlowMatchHeunDiscreteScheduler": ({"shift": 3.0},),
    "FlowMatchLCMScheduler": ({"shift": 3.0},),
    "LTXEulerAncestralRFScheduler": ({},),
    "EDMEulerScheduler": ({},),
    "HeliosScheduler": ({"stages": 1, "stage_range": [0, 1]},),
}


def build(name: str, **settings: Any) -> Any:
    """The scheduler; a skip where this diffusers has none, or none with these settings."""
    kind = getattr(diffusers, name, None)
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
        kind = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    known = inspect.signature(kind).parameters if kind else {}
    if lacking := [setting for setting in settings if setting not in known] if kind else [name]:
        pytest.skip(f"diffusers {diffusers.__version__} has no {' or '.join(lacking)}")
    return kind(**{key: value for key, value in VIDEO.items() if key in known} | settings)


def stepped(scheduler: Any, output: Tensor, timestep: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """A step of the scheduler: the next sample, and z0_hat in its own words."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "CogVideoXDPMScheduler":
        return scheduler.step(output, None, timestep, None, sample, return_dict=False)
    if name == "PNDMScheduler":  # it tells none: that is where a step to no noise at all comes to
        whole = copy.copy(scheduler)
        whole.final_alpha_cumprod = torch.tensor(1.0)
        clean = whole._get_prev_sample(sample, timestep, -1, output)
        return scheduler.step(output, timestep, sample).prev_sample, clean
    if name == "TCDScheduler":  # it tells z0_hat with some of the noise predicted, here as much as at timestep 0
        step = scheduler.step(output, timestep, sample, eta=1.0)
        alpha, least = scheduler.alphas_cumprod[timestep], scheduler.alphas_cumprod[0]
        share = ((1 - least) / (1 - alpha)) ** 0.5
        return step.prev_sample, (step.pred_noised_sample - share * sample) / (least**0.5 - share * alpha**0.5)
    if hasattr(scheduler, "convert_model_output"):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
        clean = scheduler.convert_model_output(output, sample=sample)
        if config.get("algorithm_type") in ("deis", "dpmsolver") or not config.get("predict_x0", True):
            clean = (sample - sigma * clean) / alpha  # it is eps that these convert to
        return scheduler.step(output, timestep, sample).prev_sample, clean
    step = scheduler.step(output, timestep, sample)
    if name == "LCMScheduler":
        return step.prev_sample, step.denoised
    if name.startswith(("FlowMatch", "LTX")):  # they tell none, but their timestep is sigma
        return step.prev_sample, sample - timestep / config.num_train_timesteps * output
    return step.prev_sample, step.pred_original_sample


def walk(scheduler: Any, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
    """A sampling whose denoiser predicts anything: z0_hat as we and as the scheduler tell it, and the step, by call."""
    generator = torch.Generator().manual_seed(0)
    dynamic = {"mu": 0.7} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **dynamic)
    latents = torch.randn(SIZE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        output = torch.randn(SIZE, generator=generator)
        step = schedule_step(scheduler, float(timestep))
        ours = clean_latents(scheduler, given, output, float(timestep))
        latents, own = stepped(scheduler, output, timestep, latents)
        yield ours, own, step


def off_by(ours: Tensor, own: Tensor) -> float:
    return float((ours - own).abs().max() / own.abs().max())


def test_every_known_scheduler_is_tried() -> None:
    assert SETTINGS.keys() == LEVELS.keys()


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, settings) for name, several in SETTINGS.items() for settings in several],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()) or "plain",
)
def test_z0_hat_is_the_schedulers_own(name: str, settings: dict[str, Any]) -> None:
    scheduler = build(name, **settings)
    indices, totals = [], set()
    for call, (ours, own, (index, total)) in enumerate(walk(scheduler)):
        assert off_by(ours, own) < 1e-4, f"at call {call}"
        indices.append(index)
        totals.add(total)
    # the window counts steps, of which some take two calls
    if settings != RUNGE_KUTTA:
        assert indices == sorted(indices)
        assert set(indices) == set(range(STEPS)) and totals == {STEPS}
        assert scheduler.order == 1 or indices == [call // 2 for call in range(2 * STEPS - 1)]


def test_calls_that_share_a_timestep_are_told_apart() -> None:
    """Karras' sigmas lie so close at the end that their timesteps are rounded to the same."""
    scheduler = build("DPMSolverMultistepScheduler", **KARRAS)
    for call, (ours, own, step) in enumerate(walk(scheduler, steps=80)):
        assert off_by(ours, own) < 1e-4
        assert step == (call, 80)
    assert len(scheduler.timesteps.unique()) < 80


class Derived(diffusers.EulerDiscreteScheduler):
    """Somebody's own kind of a scheduler that is known."""


def test_a_subclass_is_known() -> None:
    assert all(off_by(ours, own) < 1e-4 for ours, own, _ in walk(Derived(**KARRAS)))


def test_a_pipeline_of_two_calls_a_step() -> None:
    class Suite(ConformanceSuite):
        case = AnimateDiffCase("KDPM2DiscreteScheduler")

    with Suite.case.open() as pipe:
        Suite().test_prediction_is_the_hosts_own(pipe, Suite.sample(pipe))


def test_both_calls_of_a_step_are_guided_and_their_sub_clips_put_in_place() -> None:
    case = AnimateDiffCase("KDPM2DiscreteScheduler")
    method = Recorder(replace(case.config, subclip=2, iterations=1))
    with case.open() as pipe, backbones.attached(pipe, method):
        case.sample(pipe, case.prompts, seed=7)
    assert [update.step.index for update in method.updates] == [1, 1, 2, 2]
    assert all(update.step.anchor is not None for update in method.updates)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("IPNDMScheduler", {}, "unknown scheduler 'IPNDMScheduler'; choose one of: .*EulerDiscreteScheduler"),
        ("CMStochasticIterativeScheduler", {}, "unknown scheduler"),
        ("DDIMInverseScheduler", {}, "unknown scheduler"),
        ("DDIMScheduler", {"prediction_type": "score"}, "prediction type 'score' of DDIMScheduler; it knows epsilon"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "thresholding=False"),
    ],
)
def test_what_is_not_known_is_refused(name: str, settings: dict[str, Any], told: str) -> None:
    scheduler = build(name, **settings)
    with pytest.raises(MotionPromptError, match=told):
        check_scheduler(scheduler)


def test_a_pipeline_with_another_scheduler_is_refused_before_it_samples() -> None:
    case = AnimateDiffCase("IPNDMScheduler")
    with case.open() as pipe, backbones.motionprompt(pipe, case.config):
        pipe.unet.forward = None  # nothing is to be called
        with pytest.raises(MotionPromptError, match="unknown scheduler"):
            case.sample(pipe, case.prompts, seed=7)
