"""How well a discriminator tells real flow from generated flow, with honest intervals, a floor, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.discriminator.data import FlowData
from mp_hooks.discriminator.model import FlowDiscriminator, in_units_of_rms, log_slope

BATCH = 256
RESAMPLES = 1000
TEMPERATURES = torch.logspace(-1, 1, 201)


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


def score(logits: Tensor, data: FlowData) -> Score:
    """Discriminator logits [n] against the truth in `data`.

    Intervals are bootstrapped over clips within each class: fields of one clip are not independent.
    """
    real, logits = data.real, logits.float()
    numbers = data.clip.unique()
    clip_logits = torch.stack([logits[data.clip == number].mean() for number in numbers])
    clip_real = torch.stack([real[data.clip == number][0] for number in numbers])
    low, high = _interval(_resampled_auc(logits, real, data.clip))
    clip_low, clip_high = _interval(_resampled_auc(clip_logits, clip_real, numbers))
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
        len(numbers),
    )


@dataclass(frozen=True)
class Gain:
    """By how much the AUC per flow field exceeds the floor's, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"AUC {self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] over the floor's"


def gain(tests: Sequence[tuple[Tensor, Tensor, FlowData]]) -> Gain:
    """Mean over held-out sets, each (logits of the discriminator, logits of the floor, data), of the difference in AUC.

    Both are measured on the same resampled clips, and sets with the same real clips on the same resample of these.
    """
    means, resampled = [], []
    for logits, floor, data in tests:
        means.append(auc(logits, data.real) - auc(floor, data.real))
        both = (_resampled_auc(values, data.real, data.clip) for values in (logits, floor))
        resampled.append(next(both) - next(both))
    return Gain(sum(means) / len(means), *_interval(torch.stack(resampled).mean(0)))


def _resampled_auc(scores: Tensor, real: Tensor, owner: Tensor) -> Tensor:
    """AUC on `RESAMPLES` draws of clips with replacement within each class; scores, real, clip of each example [n].

    The draw of a class depends on its number of clips alone, so that what is compared is compared on the same draws.
    """
    if not 0 < real.sum() < len(real):
        raise ValueError("a score needs both real and generated clips")
    classes = [(real > 0.5) == label for label in (True, False)]
    places = [owner[chosen].unique(return_inverse=True)[1] for chosen in classes]
    positive, negative = (scores[chosen].double() for chosen in classes)
    clips = [int(place.max()) + 1 for place in places]
    wins = torch.zeros(*clips, dtype=torch.double)  # of every pair of clips: how many pairs of examples are in order
    for part, rows in zip(positive.split(BATCH), places[0].split(BATCH), strict=True):
        order = ((part[:, None] - negative).sign() + 1) / 2  # a tie counts half
        columns = torch.zeros(len(part), clips[1], dtype=torch.double).index_add_(1, places[1], order)
        wins.index_add_(0, rows, columns)
    times, examples = [], []  # how often each clip is drawn, and how many examples that makes
    for seed, (count, place) in enumerate(zip(clips, places, strict=True)):
        picks = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
        drawn = torch.zeros(RESAMPLES, count, dtype=torch.double)
        times.append(drawn.scatter_add_(1, picks, torch.ones_like(drawn)))
        examples.append(drawn @ place.bincount().double())
    return ((times[0] @ wins) * times[1]).sum(1) / (examples[0] * examples[1])


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


@torch.no_grad()
def logits_of(model: FlowDiscriminator, flow: Tensor) -> Tensor:
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
    """Logits [n] on `held_out` of a logistic regression on `trivial_statistics`: what a discriminator must beat.

    `scale_free` leaves it only their difference, variation per length: what to hold a discriminator against
    that does not see how far things move.
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


def rigidity(flow: Tensor) -> Tensor:
    """[n], higher for real flow: minus the mean logarithm of the slope of a field in units of its RMS.

    One number that nothing is fitted to, and that a discriminator should beat as well.
    """
    return -log_slope(in_units_of_rms(flow.float() / flow.shape[-1])).mean(dim=(1, 2, 3))


def class_weights(real: Tensor) -> Tensor:
    """Weights [n], mean 1, that let the real and the generated examples [n] count the same in all."""
    share = real.mean()
    return torch.where(real > 0.5, 0.5 / share, 0.5 / (1 - share))


@dataclass(frozen=True)
class Usefulness:
    """What guidance gets from a discriminator on generated flow: phi's quantiles and the gradient of its loss."""

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


def calibrate(model: FlowDiscriminator, data: FlowData) -> float:
    """Divide the discriminator's logits by one temperature, that of least cross-entropy on clips it was not trained on.

    Neither the order of fields nor phi = 0.5 moves, so AUC and accuracy on the same clips stay honest; phi comes off
    0 and 1, where guidance has no gradient. Returns the temperature (Guo et al., ICML 2017).
    """
    logits, real = logits_of(model, data.flow), data.real
    weight = class_weights(real)
    losses = torch.stack([F.binary_cross_entropy_with_logits(logits / t, real, weight) for t in TEMPERATURES])
    temperature = TEMPERATURES[int(losses.argmin())].item()
    with torch.no_grad():
        model.head[-1].weight /= temperature
        model.head[-1].bias /= temperature
    return temperature


def right_by(names: Sequence[str], logits: Tensor, data: FlowData) -> dict[str, float]:
    """Share of fields classified right, for every name of the clips' `names` (a source, a container, ...)."""
    right = (logits > 0) == (data.real > 0.5)
    owner = [names[number] for number in data.clip.tolist()]
    return {
        name: right[torch.tensor([other == name for other in owner])].float().mean().item()
        for name in sorted(set(owner))
    }
