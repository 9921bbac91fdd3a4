"""What became of a run: counts of its steps and updates, and the sentences that a user must not miss."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

NOT_FINITE, OUT_OF_MEMORY, OTHER_TEXT = "not finite", "out of memory", "other text"  # why a step was not guided

CAUSES = {
    NOT_FINITE: "a number in them was not finite; a host in half precision may need --mp-precision float32",
    OUT_OF_MEMORY: "memory did not suffice; fewer frames or smaller ones need less, and so does --mp-preset fast",
    OTHER_TEXT: (
        "the host was given text embeddings that are not those of the prompt (a LoRA scale, other embeddings, a "
        "callback that switches them); pass the prompt as plain text"
    ),
}


@dataclass
class Outcome:
    """Counts of one run.

    steps: that the host took. guided: of them, with optimised tokens. unguided: those that should have been, by reason.
    updates: of single samples' tokens; of them, skipped were not finite, and still had no gradient from the motion
    terms. compared: guided steps of single samples whose loss on fixed pairs was measured; of them, it fell in fell.
    lost: words of the prompt that made room. half: whether updates that were to be in float32 were not.
    """

    steps: int = 0
    guided: int = 0
    unguided: Counter[str] = field(default_factory=Counter)
    updates: int = 0
    skipped: int = 0
    still: int = 0
    compared: int = 0
    fell: int = 0
    lost: int = 0
    half: bool = False

    def count_updates(self, samples: int, *, skipped: int, still: int) -> None:
        """Count one update of `samples` samples' tokens."""
        self.updates += samples
        self.skipped += skipped
        self.still += still

    def count_descent(self, before: Tensor, after: Tensor) -> None:
        """Count a guided step whose loss on fixed pairs was `before` [b] its updates and `after` them."""
        self.compared += len(before)
        self.fell += int((after < before).sum())

    def record(self) -> dict[str, Any]:
        """For the trace."""
        return {
            "steps": self.steps,
            "guided": self.guided,
            "unguided": sum(self.unguided.values()),
            "skipped": self.skipped,
            "still": self.still,
            "compared": self.compared,
            "fell": self.fell,
        }

    def silence(self) -> str:
        """Why guidance did not act at all, and the remedy; empty where it did."""
        if self.steps == 0:
            return (
                "this sampling was not guided: the host's denoiser was never called through MotionPrompt; apply the "
                "patch after everything that replaces or wraps it, and see docs/robustness.md"
            )
        if self.guided == 0:
            causes = [CAUSES[reason] for reason in self.unguided] or ["the schedule has no step in the guided window"]
            return f"this sampling was not guided: {'; '.join(causes)}"
        if self.updates and self.still == self.updates:
            return (
                "this sampling was not guided: the gradient of the motion terms was exactly zero in all "
                f"{self.updates} updates, as something between the tokens and the frames has no backward pass (an "
                "attention kernel or a quantised layer made for inference, for one); use the host's native attention "
                "and weights"
            )
        return ""

    def sentences(self) -> list[str]:
        """What a user must know at the end of a run."""
        if self.silence():
            return [self.silence()]
        told = [f"{count} steps were sampled without guidance: {CAUSES[why]}" for why, count in self.unguided.items()]
        if self.skipped:
            told.append(f"{self.skipped} token updates were not finite and were skipped")
        if self.still:
            told.append(f"{self.still} of {self.updates} token updates had no gradient of the motion terms")
        if self.half:
            told.append(
                "updates were computed in half precision, in which gradients may point elsewhere, as weights are "
                "quantised or offloaded layer by layer; offload whole models instead (enable_model_cpu_offload)"
            )
        if self.compared and 2 * self.fell <= self.compared:
            told.append(
                f"the loss on fixed frame pairs fell in {self.fell} of {self.compared} guided steps only: the updates "
                "do not descend; a smaller --mp-relative-rate takes smaller steps"
            )
        return told
