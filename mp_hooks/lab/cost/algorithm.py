"""The method counted on a host of fake tensors: its own code and the patched host's, and nothing computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig
from mp_hooks.guidance import Host, MotionPrompt, Run, Step
from mp_hooks.guidance.decoder import TinyDecoder
from mp_hooks.guidance.method import TokenOptimizer, Update
from mp_hooks.guidance.schedule import guided_window
from mp_hooks.hooks import Hooks
from mp_hooks.lab.cost.counting import Meter
from mp_hooks.lab.cost.hosts import FullSize


@dataclass(frozen=True)
class Count:
    """What one thing costs, by part of the model.

    flops: floating-point operations. peak: most bytes alive at once, weights and inputs left out, and `at_peak` what of
    them is each part's. saved: bytes that an update's forward pass keeps for its backward pass.
    """

    flops: Mapping[str, int]
    peak: int
    at_peak: Mapping[str, int]
    saved: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return sum(self.flops.values())


@dataclass(frozen=True)
class Cost:
    """The parts of a run of `steps`, of which `guided_steps` are guided.

    text: encoding prompt and negative prompt. plain, guided: a step. decode: the finished clip. weights: bytes of the
    host's modules, `discriminator` of discriminator and flow estimator.
    """

    text: Count
    plain: Count
    guided: Count
    decode: Count
    steps: int
    guided_steps: int
    weights: int
    discriminator: int

    def run_flops(self, guided: bool) -> int:
        """Operations of a whole run, without guidance or with it."""
        number = self.guided_steps if guided else 0
        steps = (self.steps - number) * self.plain.total + number * self.guided.total
        compared = self.text.total // 2 if guided else 0  # one encoding of the prompt, held against the host's rows
        return self.text.total + compared + steps + self.decode.total

    def step_peak(self, guided: bool) -> int:
        """Most bytes at once in a step, weights included."""
        return self.weights + (self.discriminator + self.guided.peak if guided else self.plain.peak)

    def run_peak(self, guided: bool) -> int:
        """Most bytes at once in a whole run, weights included; decoding the clip counts too."""
        decode = self.weights + self.decode.peak + (self.discriminator if guided else 0)
        return max(decode, self.step_peak(False), self.step_peak(guided))


def cost(full: FullSize, config: MotionPromptConfig) -> Cost:
    """Count a step as the host takes it and a guided one, the same calls as in a real run, through the same hooks.

    The unguided step has the lean attention of the guided one, as with xformers; operations are the same without.
    """
    method, hooks, lean = _CountedMethod(replace(config, decoder=None)), Hooks(), Hooks()
    if config.decoder:
        method.decoder = TinyDecoder(None)  # what its weights are does not count
    adapter = backbones.adapter_for(full.host)
    adapter.apply(method)
    adapter.arguments = full.arguments
    adapter.begin()

    def counted(compute: Callable[[], Any]) -> Count:
        method.meter, method.saved = Meter(), Counter()
        with full.mode, method.meter as meter, torch.no_grad():
            compute()
        return Count(meter.flops, meter.peak, meter.at_peak, method.saved)

    def step() -> None:
        getattr(*adapter.step_site())(*full.call, **full.options)

    sites = {"encode": "text", "predict_clean": "denoiser", "decode": "decode"}
    try:
        for name, part in sites.items():
            hooks.wrap(adapter, name, method.within(part))
        for part, module in {"flow": method.objective.flow, "discriminator": method.objective.discriminator}.items():
            hooks.wrap(module, "forward", method.within(part))
        if method.decoder:
            hooks.wrap(method.decoder, "forward", method.within("decode"))
        with full.mode:
            run = method.run(adapter, full.prompts)
            clean = torch.empty(full.latents)
        text = counted(lambda: [adapter.encode(full.prompts) for _ in range(2)])
        decode = counted(lambda: adapter.decode(clean, range(full.frames or full.latents[2])))
        adapter.attention(lean)
        plain = counted(lambda: [step() for _ in range(full.calls)])
        lean.remove()
        adapter.current = run
        with adapter.hooked_steps():
            with full.mode, torch.no_grad():
                full.begin()
            guided = counted(step)
    finally:
        lean.remove()
        hooks.remove()
        adapter.remove()
    return Cost(
        text=text,
        plain=plain,
        guided=guided,
        decode=decode,
        steps=full.steps,
        guided_steps=len(guided_window(full.steps, config.start, config.stop)),
        weights=_bytes(adapter.modules()),
        discriminator=_bytes([method.objective.discriminator, method.objective.flow]),
    )


class _CountedRun(Run):
    """Every step is guided, of text that is the prompts'; whether fake numbers are finite cannot be told."""

    def guides(self, _step: Step, _index: int) -> bool:
        return True

    def text_is_known(self, _step: Step) -> bool:
        return True

    def is_finite(self, _result: Any) -> bool:
        return True

    def record(self, _update: Update) -> None:
        pass


class _CountedOptimizer(TokenOptimizer):
    """Tells the meter where the backward pass begins and ends; moves no token."""

    method: _CountedMethod

    def loss(self, *args: Any) -> Any:
        loss = super().loss(*args)
        self.method.saved = Counter(self.method.meter.alive)
        return loss

    def gradient(self, *args: Any) -> Any:
        result = super().gradient(*args)
        self.method.meter.backward_done()
        return result

    def move(self, tokens: Tensor, *_args: Any) -> Tensor:
        return torch.ones(len(tokens), dtype=torch.bool)


class _CountedMethod(MotionPrompt):
    run_type = _CountedRun
    optimizer_type = _CountedOptimizer
    meter: Meter
    saved: Counter[str]

    def run(self, host: Host, prompts: Sequence[str]) -> Run:
        run = super().run(host, prompts)
        run.optimizer.method = self
        return run

    def within(self, part: str) -> Callable[..., Any]:
        """A handler that lets the meter of the moment count the wrapped function to a part."""
        return lambda original, *args, **kwargs: self.meter.within(part, original, *args, **kwargs)


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum({id(weight): weight.nbytes for module in modules for weight in module.parameters()}.values())
