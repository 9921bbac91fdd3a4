"""One sampling, led from step to step: which are guided, what is done when one cannot be, and what is told."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.config import MotionPromptConfig
from mp_hooks.discriminator import FlowDiscriminator, default_discriminator
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow
from mp_hooks.guidance.contract import Host, Step
from mp_hooks.guidance.decoder import TinyDecoder
from mp_hooks.guidance.memory import Economy, checkpointed, is_out_of_memory, release
from mp_hooks.guidance.method import TokenOptimizer, Update
from mp_hooks.guidance.numerics import (
    LossScale,
    all_finite,
    deterministic,
    eager,
    fixed,
    frozen,
    full_float32,
    full_precision,
    random_state_kept,
    random_state_restorer,
    saved_as_they_are,
    weights_in_float32,
)
from mp_hooks.guidance.objective import VARIATIONS, Objective
from mp_hooks.guidance.outcome import NOT_FINITE, OTHER_TEXT, OUT_OF_MEMORY, Outcome
from mp_hooks.guidance.schedule import dearest_pair, guided_window
from mp_hooks.guidance.tokens import same_rows
from mp_hooks.guidance.trace import Trace, record_of

SUB_CLIP_FRAMES = 4  # that updates look at where memory allows no more


class MotionPrompt:
    """The method with its discriminator and flow estimator loaded once, good for any number of runs.

    observers: called with the run and each `Update` as it was made, inside the guided step.
    """

    run_type: ClassVar[type[Run]]
    optimizer_type: ClassVar[type[TokenOptimizer]] = TokenOptimizer

    def __init__(self, config: MotionPromptConfig) -> None:
        """Load what the configuration names; raises MotionPromptError where that cannot be had."""
        self.config = config
        discriminator = FlowDiscriminator.from_pretrained(config.discriminator or default_discriminator())
        trained_with = discriminator.config.flow
        flow = load_flow(config.flow or trained_with, config.flow_weights)
        if flow.name != trained_with:
            warnings.warn(
                f"the discriminator was trained on '{trained_with}' flow and is asked about '{flow.name}' flow",
                stacklevel=2,
            )
        weights = (config.lambda_disc, config.lambda_tv, config.lambda_reg, config.lambda_photo)
        variation, relative = VARIATIONS[config.variation], config.learning_rate is None
        self.objective = Objective(flow, discriminator, *weights, variation=variation, relative=relative)
        self.decoder = TinyDecoder(config.decoder) if config.decoder else None
        self.trace = Trace(config.trace)
        self.observers: list[Callable[[Run, Update], None]] = []
        # what a run learns of them holds for the next
        self.economy = Economy(config.checkpointing)
        self.loss_scale = LossScale(config.loss_scale)
        self.started = 0  # runs

    def run(self, host: Host, prompts: Sequence[str]) -> Run:
        """Start sampling `prompts`, one a sample; the tokens start afresh."""
        run = self.run_type(self, host, list(prompts), number=self.started)
        self.started += 1
        return run

    def resume(self, records: Sequence[Mapping[str, Any]], loss_scale: float) -> None:
        """Take a run of an earlier process for this one's next: what it wrote to the trace, and its loss scale."""
        for record in records:
            self.trace.write(**record)
        self.loss_scale.value = loss_scale
        self.started += 1

    def close(self) -> None:
        """Close the trace."""
        self.trace.close()


class Run:
    """One sampling of a batch of prompts."""

    def __init__(self, method: MotionPrompt, host: Host, prompts: list[str], number: int) -> None:
        self.method, self.host, self.prompts, self.number = method, host, prompts, number
        self.config = config = method.config
        self.outcome = Outcome()
        self.optimizer = method.optimizer_type(
            config, method.objective, method.decoder, host, prompts, self.outcome, method.loss_scale
        )
        self.optimizer.sub_clip = config.subclip
        self._thread = threading.get_ident()  # in which it samples
        self._ended = False  # guidance, for want of memory
        self._rows: Tensor | None = None  # the text rows that the host passed last,
        self._rows_known = True  # and whether they are those of the prompts
        self._bar = tqdm(leave=False, disable=not config.progress)
        method.trace.write("run", run=number, prompts=prompts, seed=self.optimizer.seed)

    @property
    def tokens(self) -> Tensor:
        """T [b, n, d] as it is now."""
        return self.optimizer.tokens

    @property
    def initial(self) -> Tensor:
        """T0 [n, d]."""
        return self.optimizer.initial

    def step(self, step: Step, original: Callable[[], Any]) -> Any:
        """What the host's step comes to: with optimised tokens inside the window, as `original()` makes it elsewhere.

        Also where a guided step is not finite, its text is not the prompts', or memory does not suffice.
        """
        if self._thread != threading.get_ident():
            raise MotionPromptError(
                "two threads sample one model, of which one does with MotionPrompt; give each thread a model of its own"
            )
        guided = self.guides(step, step.index) and not self._ended
        self._show(step, guided)
        self.outcome.steps += 1
        result = self._guided(step) if guided else None
        if result is None:
            result = original()
        self.step_done(step, result)
        return result

    def guides(self, step: Step, index: int) -> bool:
        """Whether the step of this index is in the guided window; outside it the original prompt is used."""
        return index in guided_window(step.total, self.config.start, self.config.stop)

    def conditioning(self, step: Step) -> Tensor:
        """c(T_hat), [b, l, d] like the host's own, after the updates of this step.

        Raises MotionPromptError under torch.inference_mode.
        """
        if torch.is_inference_mode_enabled():
            raise MotionPromptError(
                "MotionPrompt needs gradients, which torch.inference_mode forbids; sample under torch.no_grad()"
            )
        optimizer, device = self.optimizer, step.latents.device
        optimizer.tokens, optimizer.initial = optimizer.tokens.to(device), optimizer.initial.to(device)
        with random_state_kept(device), deterministic(self.config.deterministic):
            with self._precision(step) as precise, saved_as_they_are(), torch.enable_grad():
                descent = optimizer.optimise(precise, self.record)
            if descent is not None:
                self.method.trace.write("descent", run=self.number, **descent.record())
                self.outcome.count_descent(descent.before, descent.after)
            with torch.no_grad():
                conditioning = optimizer.encode(optimizer.tokens).to(step.conditioning)
        # never hand the host a NaN: such a sample is stepped with its own prompt
        finite = conditioning.isfinite().flatten(1).all(1).view(-1, 1, 1)
        if conditioning.shape != step.conditioning.shape:  # a text that grows; what is not finite ends the whole step
            return conditioning
        return conditioning.where(finite, step.conditioning)

    def text_is_known(self, step: Step) -> bool:
        """Whether the host's text rows are what `encode` makes of the prompts; looked at again when they change.

        They are not where the host was given other embeddings, or encodes in a way that the adapter does not know.
        """
        if self._rows is None or not torch.equal(self._rows, step.conditioning):
            with torch.no_grad(), random_state_kept(step.latents.device):
                self._rows_known = same_rows(self.host.encode(self.prompts), step.conditioning)
            self._rows = step.conditioning
        return self._rows_known

    def is_finite(self, result: Any) -> bool:
        """Whether every number of what a step came to is finite."""
        return all_finite(result)

    # --- a guided step, and what is done when there can be none

    def _guided(self, step: Step) -> Any:
        """The step with optimised tokens; None, and all as it was, where the host shall take it alone."""
        restore_noise = random_state_restorer(step.latents.device)
        tokens, generator = self.optimizer.tokens, self.optimizer.generator.get_state()
        while True:
            result, reason = self._attempt(step)
            if result is not None:
                self.outcome.guided += 1
                return result
            restore_noise()
            self.optimizer.tokens = tokens
            self.optimizer.generator.set_state(generator)
            stricter = self.method.economy.tighten(self.host, step) if reason == OUT_OF_MEMORY else None
            if stricter is None:
                break
            self._tell(f"out of memory at guided step {step.index}; from now on: {stricter}")
            self.method.trace.write("tightened", run=self.number, step=step.index, to=stricter)
            self._look_at_what_fits(step)
        self._ended = reason == OUT_OF_MEMORY
        self.outcome.unguided[reason] += 1
        self.method.trace.write("unguided", run=self.number, step=step.index, reason=reason)
        return None

    def _attempt(self, step: Step) -> tuple[Any, str]:
        """What the step comes to with optimised tokens; or None and the reason."""
        modules = self.host.modules()
        try:
            with self.host.guided_step(step), frozen(modules), eager(modules):
                if not self.text_is_known(step):
                    return None, OTHER_TEXT
                with checkpointed(self.host.blocks(), self._policy(step)):
                    result = self.host.step_with(step, self.conditioning(step))
            return (result, "") if self.is_finite(result) else (None, NOT_FINITE)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        release(self.host.vae())  # here, because the exception would keep everything that is to be freed
        return None, OUT_OF_MEMORY

    def _policy(self, step: Step) -> str:
        """Which blocks are computed again; where that does not suffice, updates look at a sub-clip."""
        before = self.optimizer.sub_clip
        policy = self.method.economy.policy(self.host, step, lambda: self._rehearse(step))
        self._look_at_what_fits(step)
        if self.optimizer.sub_clip != before:
            self._tell(f"memory does not suffice for the clip at guided step {step.index}: updates look at a sub-clip")
        return policy

    def _look_at_what_fits(self, step: Step) -> None:
        if self.method.economy.asks_sub_clip(self.host, step):
            self.optimizer.sub_clip = self.optimizer.sub_clip or SUB_CLIP_FRAMES

    @contextmanager
    def _precision(self, step: Step) -> Iterator[Step]:
        """The step as updates compute it: its VAE in float32, and all else if so configured, or if it is bfloat16.

        Gradients in bfloat16, unlike those in float16, are often not near those in float32 (docs/hosts.md). Weights
        that come and go with each layer's call, or are quantised, stay what they are.
        """
        bfloat16 = step.latents.dtype == torch.bfloat16
        wanted = self.config.precision == "float32" or (self.config.precision == "auto" and bfloat16)
        unchanged = {module for module in self.host.modules() if fixed(module)}
        self.outcome.half = self.outcome.half or (wanted and bool(unchanged))
        if wanted and not unchanged:
            blocks = [block for kind in self.host.blocks().values() for block in kind]
            with (
                weights_in_float32(*self.host.modules(), blocks=blocks),
                full_float32(),
                torch.autocast(step.latents.device.type, enabled=False),
            ):
                yield self.host.in_float32(step)
        else:
            with weights_in_float32(*({self.host.vae()} - unchanged)), full_float32():
                yield step

    def _rehearse(self, step: Step) -> None:
        """The forward pass of an update at the dearest pairs, without moving anything: to see what it keeps."""
        optimizer = self.optimizer
        generator, optimizer.generator = optimizer.generator, torch.Generator().manual_seed(0)
        try:
            with random_state_kept(step.latents.device), self._precision(step) as precise:
                part, _ = optimizer.looked_at(precise)
                tokens = optimizer.tokens.detach().to(step.latents.device).requires_grad_()
                pairs = optimizer.draw_pairs(part)
                if self.host.view is not None:  # elsewhere all pairs cost the same
                    dearest = dearest_pair(part.frames, self.config.max_interval, self.host.latent_frames)
                    pairs = replace(pairs, frames=dearest.expand_as(pairs.frames))
                optimizer.loss(part, tokens, pairs)
        finally:
            optimizer.generator = generator

    def step_done(self, step: Step, result: Any) -> None:
        """Keep what a step, guided or not, predicted, where the next one's sub-clip is put there."""
        guided = any(self.guides(step, index) for index in (step.index, step.index + 1))  # a step may take two calls
        wanted = self.optimizer.sub_clip is not None and guided
        clean = self.host.clean_in(step, result) if wanted else None
        self.optimizer.before = None if clean is None else (step.index, full_precision(clean.detach()))

    # --- what is told

    def record(self, update: Update) -> None:
        """Show an update on the bar, write it to the trace, and hand it to the observers."""
        record = record_of(update, self.optimizer.initial)
        self.method.trace.write("iteration", run=self.number, **record)
        mean = {name: sum(record[name]) / len(record[name]) for name in ("phi", "cosine")}
        self._bar.set_postfix(phi=f"{mean['phi']:.2f}", cos=f"{mean['cosine']:.3f}", skipped=self.outcome.skipped)
        for observe in self.method.observers:
            observe(self, update)

    def close(self, finished: bool = True) -> None:
        """End the run: the bar goes, and what was not guided is told. finished: whether the host sampled to its end.

        Raises MotionPromptError, where the configuration is strict, for a run in which guidance did not act.
        """
        self._bar.close()
        self.method.trace.write("end", run=self.number, **self.outcome.record())
        if not finished:
            return
        if self.config.strict and self.outcome.silence():
            raise MotionPromptError(self.outcome.silence())
        for sentence in self.outcome.sentences():
            self._tell(sentence)

    def _tell(self, sentence: str) -> None:
        warnings.warn(sentence, stacklevel=2)

    def _show(self, step: Step, guided: bool) -> None:
        self._bar.total = step.total
        self._bar.set_description("guided" if guided else "plain ", refresh=False)
        self._bar.update(step.index + 1 - self._bar.n)


MotionPrompt.run_type = Run
