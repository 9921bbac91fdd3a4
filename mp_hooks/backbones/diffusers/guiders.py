"""Pipelines whose guidance is an object that says how many branches there are and combines them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from mp_hooks.backbones.base import Site
from mp_hooks.backbones.diffusers.pipeline import Call, DiffusersPipeline
from mp_hooks.guidance import Step
from mp_hooks.guidance.numerics import all_finite


class Guider(DiffusersPipeline):
    """Any guider (CFG, CFG-Zero*, APG): z0_hat is what a copy of it makes of all branches.

    A step is guided at its first call, the conditional one; the others are answered with what the updates computed.
    """

    prepares: ClassVar[str] = "prepare_inputs"  # the guider's function that gives the branches
    mask_argument: ClassVar[str | None] = "encoder_attention_mask"

    def begin(self) -> None:
        super().begin()
        self._batches: list[Any] = []  # of this step, as the guider has prepared them
        self._number = 0  # of the next call in it
        self._answers: list[Tensor] | None = None
        self._step: Step | None = None
        self._others: dict[str, Any] = {}  # a branch's own text, where it is not the prompt's

    def watch_run(self) -> dict[Site, Callable[..., Any]]:
        guider = (self.host.guider, self.prepares)
        return {**super().watch_run(), guider: self._note_batches, self.step_site(): self._turns}

    def _note_batches(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._batches = list(original(*args, **kwargs))
        self._number, self._answers = 0, None
        return self._batches

    def _turns(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number, self._number = self._number, self._number + 1
        answers, step = self._answers, self._step
        if self.current is None or not number or answers is None or step is None or not all_finite(answers):
            return original(*args, **kwargs)
        return self.returned(step, answers[number])

    def read(self, *args: Any, **kwargs: Any) -> Step | None:
        if self._number != 1:
            return None
        call = self.bound(*args, **kwargs)
        return self.step(self.latents_in(call.arguments), self.text_rows(call.arguments, 0), Call(call, None))

    def outputs(self, step: Step, rows: Tensor) -> list[Tensor]:
        """Of every branch, those of the prompt's text with a graph, the others computed once a step."""
        guider = copy.deepcopy(self.host.guider)
        known = step.call.branches
        outputs = [self.branch(step, rows)]
        for number, batch in enumerate(self._batches[1:], start=1):
            own = batch.encoder_hidden_states is self._batches[0].encoder_hidden_states
            if not own and number in known:
                outputs.append(known[number])
                continue
            guider.prepare_models(self.network)
            try:
                with torch.set_grad_enabled(own and torch.is_grad_enabled()):
                    self._others = {} if own else self._arguments_of(batch)
                    outputs.append(self.branch(step, rows))
            finally:
                self._others = {}
                guider.cleanup_models(self.network)
            if not own:
                known[number] = outputs[-1]
        return outputs

    def _arguments_of(self, batch: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(batch).items() if name.startswith("encoder_")}

    def branch_arguments(self, step: Step, rows: Tensor) -> dict[str, Any]:
        arguments = step.call.arguments.arguments
        others = {name: value.to(step.latents) for name, value in self._others.items() if name in arguments}
        return {**super().branch_arguments(step, rows), **others}

    def predict_clean(self, step: Step, conditioning: Tensor) -> Tensor:
        guider = copy.deepcopy(self.host.guider)
        branches = zip(self._batches, self.outputs(step, conditioning), strict=True)
        named = {getattr(batch, guider._identifier_key): output for batch, output in branches}
        return self.clean(step, guider.forward(**named)[0], None)

    def step_with(self, step: Step, conditioning: Tensor) -> Any:
        self._step, self._answers = step, self.outputs(step, conditioning)
        return self.returned(step, self._answers[0])
