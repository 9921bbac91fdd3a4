"""Guided sampling with faults injected at random places: what scripts/soak.sh and test_faults.py run.

A fault is a number that is none, or an exception, at one of the calls that a guided step makes. Whatever it is, the
latents stay finite and the host is left as found: weights, flags, hooks, functions and its noise.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks import backbones
from mp_hooks.compat import swapped
from mp_hooks.guidance import MotionPrompt, Run, Step
from mp_hooks.guidance.numerics import all_finite
from mp_hooks.testing import HostCase

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "zero": 0.0}
ERRORS = {
    "out of memory": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "interrupt": KeyboardInterrupt,
    "error": lambda: ZeroDivisionError("injected"),
}
PLACES = ("denoiser", "text", "decoder", "flow", "discriminator", "gradient")
CALLS = 4  # a place is called about as often in the guided steps of a case


class FaultyRun(Run):
    """Faults strike in the guided steps' updates and calls, and not where the host takes a step of its own."""

    def conditioning(self, step: Step) -> Tensor:
        self.method.armed = True
        return super().conditioning(step)

    def step(self, step: Step, original: Callable[[], Any]) -> Any:
        def disarmed() -> Any:
            self.method.armed = False
            return original()

        self.method.armed = False
        return super().step(step, disarmed)


class FaultyMotionPrompt(MotionPrompt):
    """The method with a fault at the given call of a place, or from it on."""

    run_type = FaultyRun
    armed = False

    def fault(self, kind: str, number: int, lasting: bool, rng: random.Random) -> Callable[[Any], Any]:
        """What turns a call's result into a faulty one; raises where the fault is an exception."""
        count = 0

        def strike(result: Any) -> Any:
            nonlocal count
            if not self.armed:
                return result
            count += 1
            if count < number or (count > number and not lasting):
                return result
            if kind in ERRORS:
                raise ERRORS[kind]()
            return spoiled(result, VALUES[kind], whole=rng.random() < 0.5)

        return strike


def spoiled(result: Any, value: float, whole: bool) -> Any:
    """`result` with `value` in the place of all its numbers, or of the first of them."""
    if isinstance(result, tuple):
        return (spoiled(result[0], value, whole), *result[1:])
    if isinstance(result, dict):  # a diffusers output
        return type(result)(**{name: spoiled(item, value, whole) for name, item in result.items()})
    factor = torch.zeros_like(result)
    offset = torch.full_like(result, value)
    if not whole:
        mask = torch.zeros_like(result, dtype=torch.bool)
        mask[(0,) * mask.ndim] = True
        factor, offset = (~mask).to(result), offset.where(mask, torch.zeros_like(result))
    return result * factor + offset  # the graph stays whole


def modules(adapter: Any) -> dict[str, nn.Module]:
    """The modules of a host at which faults strike."""
    host = adapter.host
    if hasattr(host, "first_stage_model"):
        denoiser, decoder = host.model.diffusion_model, host.first_stage_model.decoder
    else:
        denoiser, decoder = getattr(host, adapter.denoiser), host.vae.decoder
    return {"denoiser": denoiser, "decoder": decoder, "text": adapter.text.embedding}


@contextmanager
def struck(method: FaultyMotionPrompt, host: Any, place: str, strike: Callable[[Any], Any]) -> Iterator[None]:
    """`strike` acts on the results of `place`."""
    if place == "gradient":
        grad = torch.autograd.grad
        with swapped(torch.autograd, "grad", lambda *args, **kwargs: strike(grad(*args, **kwargs))):
            yield
        return
    there = {
        **modules(backbones.adapter_for(host)),
        "flow": method.objective.flow,
        "discriminator": method.objective.discriminator,
    }
    handle = there[place].register_forward_hook(lambda _module, _args, result: strike(result))
    try:
        yield
    finally:
        handle.remove()


def as_found(host: Any) -> Callable[[], None]:
    """A check that `host` and the global state are what they are now."""
    adapter = backbones.adapter_for(host)
    parameters = [parameter for module in adapter.modules() for parameter in module.parameters()]
    flags = [parameter.requires_grad for parameter in parameters]
    weights = [parameter.detach().clone() for parameter in parameters]
    sites = [adapter.run_site(), adapter.step_site(), *adapter.watch(), *adapter.watch_run()]
    functions = [vars(owner).get(name) for owner, name in sites]
    parts = [part for module in adapter.modules() for part in module.modules()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]

    def check() -> None:
        assert [parameter.requires_grad for parameter in parameters] == flags
        assert all(parameter.grad is None for parameter in parameters)
        assert all(map(torch.equal, parameters, weights))
        assert all(vars(owner).get(name) is one for (owner, name), one in zip(sites, functions, strict=True))
        assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts] == hooks
        assert torch.is_grad_enabled()

    return check


def inject(case: HostCase, host: Any, count: int, seed: int) -> Counter[str]:
    """`count` guided samplings, each with a fault; what came of them. An AssertionError tells which one broke what."""
    figures: Counter[str] = Counter()
    torch.manual_seed(7)
    vanilla = case.sample(host, case.prompts, seed=7)
    noise = torch.get_rng_state()
    check = as_found(host)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        place, kind = rng.choice(PLACES), rng.choice([*VALUES, *ERRORS])
        call, lasting = rng.randrange(1, CALLS + 1), rng.random() < 0.3
        what = f"{kind} in {place}, call {call}{' and later' if lasting else ''} (fault {number} of seed {seed})"
        method = FaultyMotionPrompt(case.config)
        outcome = "sampled"
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(backbones.attached(host, method))
            stack.enter_context(struck(method, host, place, method.fault(kind, call, lasting, rng)))
            torch.manual_seed(7)
            try:
                latents = case.sample(host, case.prompts, seed=7)
                assert all_finite(latents), f"{what}: latents that are not finite"
                assert torch.equal(torch.get_rng_state(), noise), f"{what}: the host's noise"
            except (KeyboardInterrupt, ZeroDivisionError):
                assert kind in ("interrupt", "error"), what
                outcome = "stopped by it"
        try:
            check()
        except AssertionError as error:
            raise AssertionError(f"{what}: the host is not as found") from error
        figures[f"{kind}: {outcome}"] += 1
        if number % 20 == 0 or number == count - 1:
            assert torch.equal(case.sample(host, case.prompts, seed=7), vanilla), f"{what}: off is not vanilla"
    return figures
