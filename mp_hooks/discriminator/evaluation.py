"""How well a judge tells real flow from generated flow, with honest intervals, a floor, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.discriminator.data import FlowData
from mp_hooks.discriminator.model import FlowDiscriminator

BATCH = 256
RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """Area under the ROC curve and balanced accuracy of a held-out set, with 95 % intervals of the AUC."""

    auc: float  # per flow field
    low: float
    high: float
    clip_auc: float  # per clip, its fields' logits averaged
    clip_low: float
    clip_high: float
    accuracy: float  # mean of the two classes' accuracies at phi = 0.5, per flow field
    fields: int
    clips: int

    def __str__(self) -> str:
        return (
            f"AUC {self.auc:.3f} [{self.low:.3f}, {self.high:.3f}] per flow field, "
            f"{self.clip_auc:.3f} [{self.clip_low:.3f}, {self.clip_high:.3f}] per clip, "
            f"accuracy {self.accuracy:.3f} ({self.fields} fields, {self.clips} clips)"
        )


def auc(scores: Tensor, real: Tensor) -> float:
    """Probability that a real example scores above a generated one, ties counting half; scores, real [n]."""
    positive, negative = scores[real > 0.5], scores[real <= 0.5].sort().values
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    return ((below + not_above).double().mean() / (2 * len(negative))).item()


def score(logits: Tensor, data: FlowData, seed: int = 0) -> Score:
    """Judge logits [n] against the truth in `data`.

    Intervals are bootstrapped over clips within each class: fields of one clip are not independent.
    """
    real, logits = data.real, logits.float()
    numbers = data.clip.unique().tolist()
    members = [(data.clip == number).nonzero().squeeze(1) for number in numbers]
    clip_logits = torch.stack([logits[m].mean() for m in members])
    clip_real = torch.tensor([float(data.clips[number].real) for number in numbers])
    by_class = [(clip_real == label).nonzero().squeeze(1) for label in (1, 0)]
    if not all(len(clips) for clips in by_class):
        raise ValueError("a score needs both real and generated clips")
    generator = torch.Generator().manual_seed(seed)
    per_field, per_clip = [], []
    for _ in range(RESAMPLES):
        drawn = torch.cat([clips[torch.randint(len(clips), (len(clips),), generator=generator)] for clips in by_class])
        chosen = torch.cat([members[i] for i in drawn])
        per_field.append(auc(logits[chosen], real[chosen]))
        per_clip.append(auc(clip_logits[drawn], clip_real[drawn]))
    ends = torch.tensor([0.025, 0.975], dtype=torch.double)
    low, high = torch.tensor(per_field, dtype=torch.double).quantile(ends).tolist()
    clip_low, clip_high = torch.tensor(per_clip, dtype=torch.double).quantile(ends).tolist()
    accuracy = sum(((logits[real == label] > 0) == bool(label)).float().mean().item() for label in (0, 1)) / 2
    return Score(
        auc(logits, real),
        low,
        high,
        auc(clip_logits, clip_real),
        clip_low,
        clip_high,
        accuracy,
        len(real),
        len(members),
    )


@torch.no_grad()
def judge(model: FlowDiscriminator, flow: Tensor) -> Tensor:
    """Logits [n] of flow fields [n, 2, s, s] (any float type), in batches, in eval mode."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(part.float()) for part in flow.split(BATCH)])
    model.train(was_training)
    return logits


def trivial_statistics(flow: Tensor) -> Tensor:
    """[n, 2]: logarithms of the mean flow length and of the total variation, both as fractions of the side."""
    flow = flow.float() / flow.shape[-1]
    length = flow.norm(dim=1).mean(dim=(1, 2))
    variation = flow.diff(dim=2).abs().mean(dim=(1, 2, 3)) + flow.diff(dim=3).abs().mean(dim=(1, 2, 3))
    return torch.stack([length, variation], dim=1).clamp_min(1e-5).log()


def trivial_floor(train: FlowData, held_out: FlowData, scale_free: bool = False) -> Tensor:
    """Logits [n] on `held_out` of a logistic regression on `trivial_statistics`: what a judge must beat.

    `scale_free` leaves it only their difference, variation per length: what a judge that does not see how far things
    move is to be held against.
    """

    def features(flow: Tensor) -> Tensor:
        statistics = trivial_statistics(flow)
        return statistics.diff(dim=1) if scale_free else statistics

    inputs, targets = features(train.flow), train.real
    mean, deviation = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    balance = class_weights(targets)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = ((inputs - mean) / deviation) @ weight + bias
        loss = F.binary_cross_entropy_with_logits(logits, targets, balance) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (((features(held_out.flow) - mean) / deviation) @ weight + bias).detach()


def class_weights(real: Tensor) -> Tensor:
    """Weights [n], mean 1, that let the real and the generated examples [n] count the same in all."""
    share = real.mean()
    return torch.where(real > 0.5, 0.5 / share, 0.5 / (1 - share))


@dataclass(frozen=True)
class Usefulness:
    """What guidance gets from a judge on generated flow: phi's quantiles and the gradient of its loss."""

    phi_05: float
    phi_50: float
    phi_95: float
    gradient: float  # median over fields of || d log(1 - phi) / d (field / its RMS) ||, the loss guidance lowers

    def __str__(self) -> str:
        return (
            f"phi on generated flow: median {self.phi_50:.3f}, 5-95 % {self.phi_05:.3f}-{self.phi_95:.3f}; "
            f"gradient of the loss with respect to the flow in units of its RMS: {self.gradient:.3g}"
        )


def usefulness(model: FlowDiscriminator, data: FlowData) -> Usefulness:
    """Measure phi and the guidance gradient on the generated fields of `data`."""
    flow = data.flow[data.real == 0].float()
    gradients, logits = [], []
    for part in flow.split(BATCH):
        part = part.clone().requires_grad_()
        output = model(part)
        (gradient,) = torch.autograd.grad(-F.softplus(output).sum(), part)
        rms = part.detach().square().mean(dim=(1, 2, 3)).sqrt()
        gradients.append(gradient.flatten(1).norm(dim=1) * rms)
        logits.append(output.detach())
    low, middle, high = torch.cat(logits).sigmoid().quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return Usefulness(low, middle, high, torch.cat(gradients).median().item())


def right_by(names: Sequence[str], logits: Tensor, data: FlowData) -> dict[str, float]:
    """Share of fields judged right, for every name of the clips' `names` (a source, a container, ...)."""
    right = (logits > 0) == (data.real > 0.5)
    owner = [names[number] for number in data.clip.tolist()]
    return {
        name: right[torch.tensor([other == name for other in owner])].float().mean().item()
        for name in sorted(set(owner))
    }
