"""MotionPrompt itself (arXiv 2411.15540): at each guided step, K updates of the learnable tokens' embeddings.

This module knows no backbone. A `Host` answers for the model that samples; `mp_hooks.backbones` has one for each.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mp_hooks.config import OPTIMIZERS, MotionPromptConfig
from mp_hooks.discriminator import FlowDiscriminator, default_discriminator
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow
from mp_hooks.guidance.decoder import TinyDecoder
from mp_hooks.guidance.objective import VARIATIONS, Loss, Objective
from mp_hooks.guidance.schedule import draw_pairs, draw_place, guided_window
from mp_hooks.guidance.tokens import TextInput, initial_tokens, injected
from mp_hooks.guidance.trace import Trace, peak_memory

HALF = (torch.float16, torch.bfloat16)
SCALE_BACKOFF = 2.0**-4  # after a float16 gradient that was not finite; few updates, so few steps down


@dataclass(frozen=True)
class Step:
    """One call of the host's sampler step, as the host is about to make it.

    latents: z_t [b, c, t, h, w]. conditioning: the host's own text rows [b, l, d]. index counts up from 0, the step
    from pure noise, to total - 1. timestep is the model's. frames: t, of the clip as it will be decoded. call: whatever
    the adapter needs to make the call again. anchor: an excerpt's.
    """

    latents: Tensor
    conditioning: Tensor
    index: int
    total: int
    timestep: float
    frames: int
    call: Any = None
    anchor: Anchor | None = None


class Anchor:
    """Where an excerpt's z0_hat is put: at what the step before predicted for its frames within the whole clip.

    A part alone is predicted otherwise than within its clip; of it only what T changes is taken.
    """

    def __init__(self, before: Tensor) -> None:
        self._before = before
        self._alone: Tensor | None = None

    def __call__(self, alone: Tensor) -> Tensor:
        """z0_hat [b, c, t, h, w] of the part alone, put there; the first is that of the step's first tokens."""
        if self._alone is None:
            self._alone = alone.detach()
        return self._before + (alone - self._alone)


class Host(Protocol):
    """What guidance asks of the model that samples."""

    @property
    def text(self) -> TextInput:
        """Where token embeddings enter."""

    def noise_seed(self) -> int:
        """The seed that the host's noise comes from."""

    def word_ids(self, word: str) -> list[int]:
        """Ids of a word, without start and end tokens."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The host's own text encoding, [b, l, d], through the layer that `text` names."""

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        """z0_hat [b, c, t, h, w] under this conditioning, with the host's own guidance, differentiable."""

    def decode(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """The named frames of z0_hat as pixels, [b, 3, n, h, w] in [-1, 1], differentiable."""

    def excerpt(self, step: Step, frames: range) -> Step | None:
        """The same step of these frames of the clip alone; None where no part can be had.

        Branches without T are the whole clip's part.
        """

    def predicted(self, step: Step, taken: Any) -> Tensor | None:
        """z0_hat [b, c, t, h, w] of the whole clip, in what the host's step came to; None where it is not told."""

    def wide(self, step: Step) -> Step:
        """The same step for modules whose weights are float32."""

    def modules(self) -> list[nn.Module]:
        """Every module a gradient may pass; their weights are frozen while guidance runs."""

    def vae(self) -> nn.Module:
        """The one of them that decodes; it does so in float32, because float16 pixels hide small motion."""


class MotionPrompt:
    """The method with its discriminator and flow estimator loaded once, good for any number of runs."""

    run_type: ClassVar[type[Run]]  # how a run moves its tokens

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
        self.objective = Objective(flow, discriminator, *weights, variation=VARIATIONS[config.variation])
        self.decoder = TinyDecoder(config.decoder) if config.decoder else None
        self.trace = Trace(config.trace)
        self.loss_scale = config.loss_scale  # what a run learns of it holds for the next
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
        self.loss_scale = loss_scale
        self.started += 1

    def close(self) -> None:
        """Close the trace."""
        self.trace.close()


class Run:
    """One sampling of a batch of prompts: the tokens, carried from step to step."""

    def __init__(self, method: MotionPrompt, host: Host, prompts: list[str], number: int) -> None:
        self.method, self.host, self.prompts, self.number = method, host, prompts, number
        self.config = config = method.config
        self._text = host.text
        word = host.word_ids(config.init_word)
        if not word:
            raise MotionPromptError(f"init_word '{config.init_word}' is nothing to the host's tokenizer; give a word")
        self.initial = initial_tokens(self._text, word, config.tokens)
        self.tokens = self.initial.expand(len(prompts), -1, -1).clone()
        self.thread = threading.get_ident()  # in which it samples
        self.skipped = 0  # updates
        self.unguided = 0  # steps that would have been guided
        self._out_of_memory = False
        self._before: tuple[int, Tensor] | None = None  # index and z0_hat of the last step, for excerpts
        self._seed = host.noise_seed() if config.seed is None else config.seed
        self._generator = torch.Generator().manual_seed(self._seed)  # the host's noise stays its own
        self._warned = False
        self._whole = False  # whether the host takes no part of a clip
        self._bar = tqdm(leave=False, disable=not config.progress)
        method.trace.write("run", run=number, prompts=prompts, seed=self._seed)

    def guides(self, step: Step) -> bool:
        """Whether this step is a guided one; outside the window the original prompt is used. Moves the bar."""
        guided = self._in_window(step, step.index) and not self._out_of_memory
        if guided:
            self.tokens, self.initial = (value.to(step.latents.device) for value in (self.tokens, self.initial))
        self._bar.total = step.total
        self._bar.set_description("guided" if guided else "plain ", refresh=False)
        self._bar.update(step.index + 1 - self._bar.n)
        return guided

    def guide(self, step: Step) -> Tensor:
        """Optimise the tokens at this step; returns c(T_hat) to take it with, [b, l, d] like the host's own.

        Leaves weights, their flags and the global random generators as they were. Raises MotionPromptError under
        torch.inference_mode.
        """
        if torch.is_inference_mode_enabled():
            raise MotionPromptError(
                "MotionPrompt needs gradients, which torch.inference_mode forbids; sample under torch.no_grad()"
            )
        with (
            frozen(self.host.modules()),
            rng_kept(step.latents.device),
            repeatable(self.config.deterministic),
        ):
            with self._precise(step) as precise, torch.enable_grad():
                self._optimise(precise)
            with torch.no_grad():
                return self._finite_or_own(self._encode(self.tokens), step.conditioning)

    def rehearse(self, step: Step) -> None:
        """The forward pass of an update, without moving anything: to see what it keeps."""
        generator = torch.Generator().manual_seed(0)
        with frozen(self.host.modules()), rng_kept(step.latents.device), self._precise(step) as precise:
            near, _ = self._near(precise, generator)
            self._loss(near, self.tokens.detach().requires_grad_(), *self._draw(near, generator))

    def accepts(self, taken: Any) -> bool:
        """Whether what the host's step came to is finite."""
        return all_finite(taken)

    def took(self, step: Step, taken: Any) -> None:
        """Keep what a step, guided or not, came to as far as the next one wants it."""
        wanted = self._part(step) is not None and self._in_window(step, step.index + 1)
        clean = self.host.predicted(step, taken) if wanted else None
        self._before = None if clean is None else (step.index, full_precision(clean.detach()))

    def leave_unguided(self, step: Step, *, out_of_memory: bool) -> None:
        """Note that the host takes this step as its own: guided, it was not finite, or memory did not suffice.

        After the latter the rest of the run is not guided, so that what was sampled so far is kept.
        """
        self.unguided += 1
        self._out_of_memory = out_of_memory
        reason = "out of memory" if out_of_memory else "not finite"
        self.method.trace.write("unguided", run=self.number, step=step.index, reason=reason)
        if out_of_memory:
            warnings.warn(
                f"out of memory at guided step {step.index}: the rest of this run is sampled without guidance; fewer "
                "frame pairs, fewer frames or smaller ones need less",
                stacklevel=2,
            )

    def close(self) -> None:
        """End the run: the bar goes, what was skipped is told."""
        self._bar.close()
        self.method.trace.write("end", run=self.number, skipped=self.skipped, unguided=self.unguided)
        if self.skipped:
            warnings.warn(f"{self.skipped} token updates were not finite and were skipped", stacklevel=2)
        if self.unguided and not self._out_of_memory:
            warnings.warn(f"{self.unguided} guided steps were not finite and were taken without guidance", stacklevel=2)

    @contextmanager
    def _precise(self, step: Step) -> Iterator[Step]:
        """The step as updates compute it: its VAE in float32, and all else if the configuration says so."""
        whole = self.config.precision == "float32"
        with ExitStack() as stack:
            for module in self.host.modules() if whole else [self.host.vae()]:
                stack.enter_context(widened(module))
            yield self.host.wide(step) if whole else step

    def _optimise(self, step: Step) -> None:
        """K updates of T; a fresh optimiser each step, T carried over."""
        config = self.config
        tokens = self.tokens.detach().requires_grad_()
        optimizer = getattr(torch.optim, OPTIMIZERS[config.optimizer])([tokens], lr=config.learning_rate)
        near, first = self._near(step, self._generator)
        for iteration in range(config.iterations):
            began = time.perf_counter()
            pairs, corner = self._draw(near, self._generator)
            scale = self.method.loss_scale if _runs_in_half(step.latents) else 1.0
            loss, gradient = self._gradient(near, tokens, pairs, corner, scale)
            updated = self._move(tokens, optimizer, loss, gradient)
            self._record(
                step,
                iteration,
                pairs + first,
                loss,
                tokens.detach(),
                gradient=gradient,
                updated=updated,
                loss_scale=scale,
                seconds=time.perf_counter() - began,
            )
        self.tokens = tokens.detach()

    def _near(self, step: Step, generator: torch.Generator) -> tuple[Step, int]:
        """What the updates look at, a part of the clip if that is asked for and the host can, and its first frame."""
        length = self._part(step)
        if length is None:
            return step, 0
        first = draw_place(step.frames, length, generator)
        near = self.host.excerpt(step, range(first, first + length))
        if near is None:
            self._whole = True
            warnings.warn("this host cannot take a part of a clip: subclip has no effect", stacklevel=2)
            return step, 0
        if self._before is not None and self._before[0] == step.index - 1:
            near = replace(near, anchor=Anchor(self._before[1][:, :, first : first + length]))
        return near, first

    def _in_window(self, step: Step, index: int) -> bool:
        return index in guided_window(step.total, self.config.start, self.config.stop)

    def _part(self, step: Step) -> int | None:
        """How many of the clip's frames updates look at; None for all."""
        length = self.config.subclip
        return None if length is None or length >= step.frames or self._whole else length

    def _gradient(self, step: Step, tokens: Tensor, pairs: Tensor, corner: Tensor, scale: float) -> tuple[Loss, Tensor]:
        """The loss at these frame pairs and its gradient [b, n, d], computed at `scale` times its size."""
        loss = self._loss(step, tokens, pairs, corner)
        (gradient,) = torch.autograd.grad(loss.total.sum() * scale, tokens)
        return loss, gradient / scale

    def _move(self, tokens: Tensor, optimizer: torch.optim.Optimizer, loss: Loss, gradient: Tensor) -> Tensor:
        """One update of `tokens` in place; a sample whose gradient is not finite keeps its own: which moved, [b]."""
        finite = gradient.isfinite().flatten(1).all(1) & loss.total.detach().isfinite()
        keep = finite.view(-1, 1, 1)
        before = tokens.detach().clone()
        tokens.grad = gradient.where(keep, torch.zeros_like(gradient))
        optimizer.step()
        with torch.no_grad():
            tokens.copy_(tokens.where(keep, before))
        if not finite.all():
            self.skipped += int((~finite).sum())
            self.method.loss_scale = max(self.method.loss_scale * SCALE_BACKOFF, 1.0)
        return finite

    def _draw(self, step: Step, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An iteration's frame pairs [p, 2] and the places of their crops [p]."""
        config = self.config
        pairs = draw_pairs(step.frames, config.pairs, config.min_interval, config.max_interval, generator)
        return pairs, torch.rand(config.pairs, generator=generator)

    def _loss(self, step: Step, tokens: Tensor, pairs: Tensor, corner: Tensor) -> Loss:
        """l_total of z0_hat under c(T), at these frame pairs [p, 2]."""
        clean = full_precision(self.host.predict_clean(step, self._encode(tokens)))
        if step.anchor is not None:
            clean = step.anchor(clean)
        wanted = sorted({frame for pair in pairs.tolist() for frame in pair})
        decode = self.method.decoder.to(clean.device) if self.method.decoder else self.host.decode
        with torch.autocast(clean.device.type, enabled=False):
            frames = full_precision(decode(clean, wanted)).transpose(1, 2)  # [b, n, 3, h, w]
        first, second = (frames[:, [wanted.index(frame) for frame in side]] for side in pairs.T.tolist())
        return self.method.objective(first, second, tokens, self.initial, corner)

    def _encode(self, tokens: Tensor) -> Tensor:
        """c(T) = text_encoder(P + S), the rows of S being T."""
        with injected(self._text, tokens, self.config.placement) as report:
            conditioning = self.host.encode(self.prompts)
        if report["lost"] and not self._warned:
            self._warned = True
            warnings.warn(
                f"a prompt fills the host's text context: its last {report['lost']} tokens make room for the "
                f"{self.config.tokens} learnable ones",
                stacklevel=2,
            )
        return conditioning

    def _finite_or_own(self, conditioning: Tensor, own: Tensor) -> Tensor:
        """Never hand the host a NaN: such a sample is stepped with its own prompt."""
        finite = conditioning.isfinite().flatten(1).all(1).view(-1, 1, 1)
        return conditioning.to(own).where(finite.to(own.device), own)

    def _record(
        self,
        step: Step,
        iteration: int,
        pairs: Tensor,
        loss: Loss,
        tokens: Tensor,
        *,
        gradient: Tensor,
        updated: Tensor,
        loss_scale: float,
        seconds: float,
    ) -> None:
        cosine = torch.cosine_similarity(tokens, self.initial.expand_as(tokens), dim=-1).mean(1)
        self._bar.set_postfix(phi=f"{loss.phi.mean():.2f}", cos=f"{cosine.mean():.3f}", skipped=self.skipped)
        self.method.trace.write(
            "iteration",
            run=self.number,
            step=step.index,
            timestep=step.timestep,
            iteration=iteration,
            pairs=pairs.tolist(),
            loss=loss.total.tolist(),
            disc=loss.disc.tolist(),
            tv=loss.tv.tolist(),
            photo=loss.photo.tolist(),
            reg=loss.reg.tolist(),
            phi=loss.phi.tolist(),
            cosine=cosine.tolist(),
            gradient=gradient.flatten(1).norm(dim=1).tolist(),
            updated=updated.tolist(),
            loss_scale=loss_scale,
            seconds=round(seconds, 4),
            peak_memory=peak_memory(step.latents.device),
        )


MotionPrompt.run_type = Run


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No parameter of `modules` requires a gradient inside; each flag is put back afterwards.

    Without this a backward pass would keep the activations for, and compute, gradients that nobody wants.
    """
    thawed = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Weights of `module` in half precision are float32 inside; the very ones are back afterwards.

    Weights that are offloaded layer by layer (on "meta") stay as they are: they come in when a layer is called.
    """
    weights = (*module.parameters(), *module.buffers())
    own = [(weight, weight.data) for weight in weights if weight.dtype in HALF and not weight.is_meta]
    for weight, values in own:
        weight.data = values.float()
    try:
        yield
    finally:
        for weight, values in own:
            weight.data = values


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, torch takes its deterministic algorithms and warns where it has none; flags are put back."""
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
        torch.backends.cudnn.benchmark = benchmark


def rng_kept(device: torch.device) -> Any:
    """Context in which the global generators may be drawn from and afterwards stand where they stood.

    Some hosts' steps draw noise even when they do not use it.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def rng_rewind(device: torch.device) -> Callable[[], None]:
    """A function that puts the global generators back to where they stand now."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return rewind


def all_finite(values: Any) -> bool:
    """Whether every number in tensors, also inside tuples, lists and dicts, is finite."""
    if isinstance(values, Tensor):
        return bool(values.isfinite().all())
    if isinstance(values, dict):
        return all_finite(list(values.values()))
    return all(map(all_finite, values)) if isinstance(values, (list, tuple)) else True


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, the device's or the computer's, did not suffice; only CUDA's has an exception of its own."""
    told = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in told or "can't allocate memory" in told)
    )


def full_precision(values: Tensor) -> Tensor:
    """At least float32: 1/sqrt(abar) is about 131 at the first steps, and flow wants the digits."""
    return values.float() if values.dtype in HALF else values


def _runs_in_half(latents: Tensor) -> bool:
    if latents.dtype == torch.float16:
        return True
    kind = latents.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
