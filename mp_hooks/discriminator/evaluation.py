"""How well a discriminator tells real flow from generated flow, with honest intervals, a floor, and its gradient."""

from __future__ import annotations

import math
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
class Share:
    """How many of so many, with Wilson's 95 % interval."""

    hits: int
    of: int

    def __str__(self) -> str:
        share, z, n = self.hits / self.of, 1.96, self.of
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return f"{self.hits} of {n}: {share:.2f} [{centre - reach:.2f}, {centre + reach:.2f}]"


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


@dataclass(frozen=True)
class SourceScore:
    """AUC per clip, a clip's logit being the mean over its fields; intervals by resampling sources, not clips."""

    auc: float
    low: float
    high: float
    generators: dict[
        str, tuple[float, int]
    ]  # AUC of the clips of each against all real ones, their number; worst first
    collections: dict[str, tuple[float, int]]  # of each against all generated ones
    resampled: Tensor  # [RESAMPLES], for `over`

    def over(self, floor: SourceScore) -> Gain:
        """By how much this exceeds another score of the same clips, on the same resampled sources."""
        return Gain(self.auc - floor.auc, *_interval(self.resampled - floor.resampled))

    def __str__(self) -> str:
        return (
            f"AUC {self.auc:.3f} [{self.low:.3f}, {self.high:.3f}] per clip, resampled over "
            f"{len(self.generators)} generators and {len(self.collections)} collections"
        )


def score_by_source(tests: Sequence[tuple[Tensor, FlowData]]) -> SourceScore:
    """Of held-out sets, each (logits [n], data), whose sources do not overlap: the mean over the sets.

    Clips are compared within their set, since logits of two discriminators have no common scale. Sources are drawn with
    replacement within class and set. What is compared by `SourceScore.over` must come in the same sets.
    """
    areas, resampled = [], []
    by_name: dict[bool, dict[str, tuple[float, int]]] = {True: {}, False: {}}
    for seed, (logits, data) in enumerate(tests):
        sources: dict[bool, dict[str, list[Tensor]]] = {True: {}, False: {}}
        for number in data.clip.unique().tolist():
            clip = data.clips[number]
            sources[clip.real].setdefault(clip.source, []).append(logits[data.clip == number].double().mean())
        real, fake = ([torch.stack(part) for part in sources[label].values()] for label in (True, False))
        wins = torch.stack([torch.stack([((a[:, None] - b).sign() + 1).sum() / 2 for b in fake]) for a in real])
        pairs = torch.tensor([[float(len(a) * len(b)) for b in fake] for a in real]).double()
        areas.append(float(wins.sum() / pairs.sum()))
        for label, part, axis in ((True, real, 1), (False, fake, 0)):
            shares = (wins.sum(axis) / pairs.sum(axis)).tolist()
            by_name[label] |= {name: (a, len(of)) for name, a, of in zip(sources[label], shares, part, strict=True)}
        rows, columns = (_draws(len(part), 2 * seed + k) for k, part in enumerate((real, fake)))
        resampled.append(((rows @ wins) * columns).sum(1) / ((rows @ pairs) * columns).sum(1))
    drawn = torch.stack(resampled).mean(0)
    collections, generators = (dict(sorted(found.items(), key=lambda item: item[1])) for found in by_name.values())
    return SourceScore(sum(areas) / len(areas), *_interval(drawn), generators, collections, drawn)


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
    times = [_draws(count, seed) for seed, count in enumerate(clips)]
    examples = [drawn @ place.bincount().double() for drawn, place in zip(times, places, strict=True)]
    return ((times[0] @ wins) * times[1]).sum(1) / (examples[0] * examples[1])


def _draws(count: int, seed: int) -> Tensor:
    """How often each of `count` things is drawn in `RESAMPLES` draws with replacement: [RESAMPLES, count]."""
    picks = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    drawn = torch.zeros(RESAMPLES, count, dtype=torch.double)
    return drawn.scatter_add_(1, picks, torch.ones_like(drawn))


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
    weights = balance(train)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = ((inputs - mean) / deviation) @ weight + bias
        loss = F.binary_cross_entropy_with_logits(logits, targets, weights) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (((features(held_out.flow) - mean) / deviation) @ weight + bias).detach()


def rigidity(flow: Tensor) -> Tensor:
    """[n], higher for real flow: minus the mean logarithm of the slope of a field in units of its RMS.

    One number that nothing is fitted to, and that a discriminator should beat as well.
    """
    return -log_slope(in_units_of_rms(flow.float() / flow.shape[-1])).mean(dim=(1, 2, 3))


def balance(data: FlowData) -> Tensor:
    """Weights [n] of the fields, mean 1, that let both classes count the same in all, and sources by the root of their
    number of clips: a page with many clips of one generator does not drown ninety others, nor does one clip count as
    much as seventy."""
    fields = data.clip.bincount(minlength=len(data.clips))
    sources: dict[tuple[bool, bool, str], list[int]] = {}
    for number in fields.nonzero().flatten().tolist():
        clip = data.clips[number]
        sources.setdefault((clip.real, clip.corrupted, clip.source), []).append(number)
    weight = torch.zeros(len(data.clips))
    for members in sources.values():
        weight[members] = len(members) ** -0.5 / fields[members]
    weight, real = weight[data.clip], data.real > 0.5
    for chosen in (real, ~real):
        weight[chosen] *= 0.5 * len(weight) / weight[chosen].sum()
    return weight


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


@dataclass(frozen=True)
class Direction:
    """What the gradient of the logit asks of generated fields: medians over fields."""

    shrink: float  # share of its square along the field itself
    turn: float  # along the field with every vector turned by 90 degrees
    smooth: float  # along blurs of the field, less the field
    together: float  # in the span of these
    rise: float  # of the logit, after a step along it of a tenth of the field's RMS

    def __str__(self) -> str:
        return (
            f"of the gradient on generated flow, shrinking or growing is {self.shrink:.0%}, turning {self.turn:.0%}, "
            f"smoothing {self.smooth:.0%}, all of them {self.together:.0%}; "
            f"a step of a tenth of the flow's RMS along it raises the logit by {self.rise:.2g}"
        )


def direction(model: FlowDiscriminator, data: FlowData, fields: int = 256) -> Direction:
    """Measure it on up to `fields` generated fields of `data`, evenly chosen."""
    flow = data.flow[data.real == 0].float()
    flow = flow[:: max(1, len(flow) // fields)][:fields]
    logits, gradient = ascent(model, flow)
    after = ascent(model, flow + step_along(gradient, flow))[0]
    turned = torch.stack([-flow[:, 1], flow[:, 0]], dim=1)
    blurs = [_low(flow, cells) - flow for cells in (2, 4, 8)]

    def share(*basis: Tensor) -> float:
        vectors = torch.stack([b.flatten(1) for b in basis], dim=2).double()
        along, _ = torch.linalg.qr(
            vectors + 1e-9 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
        )
        whole = gradient.flatten(1).double()
        inside = torch.einsum("bnk,bn->bk", along, whole).square().sum(1) / whole.square().sum(1)
        return inside.median().item()

    return Direction(
        share(flow), share(turned), share(*blurs), share(flow, turned, *blurs), (after - logits).median().item()
    )


def ascent(model: FlowDiscriminator, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [b] and their gradient by flow [b, 2, s, s]."""
    flow = flow.clone().requires_grad_()
    logits = model(flow)
    return logits.detach(), torch.autograd.grad(logits.sum(), flow)[0]


def step_along(gradient: Tensor, flow: Tensor, share: float = 0.1) -> Tensor:
    """The step [b, 2, s, s] along a gradient whose RMS is this share of that of the flow."""
    size = flow.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return share * size * gradient / gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def _low(flow: Tensor, cells: int) -> Tensor:
    """Fields [b, 2, s, s] less what is finer than `cells` pixels."""
    small = F.interpolate(flow, size=[side // cells for side in flow.shape[2:]], mode="bilinear", antialias=True)
    return F.interpolate(small, size=flow.shape[2:], mode="bilinear")


def falls(model: FlowDiscriminator, clips: Sequence[dict[str, Tensor]]) -> dict[str, Share]:
    """By corruption: of how many of the clips (each as `corrupted_flow` gives it) the mean logit falls."""
    logits = [{name: logits_of(model, flow).mean().item() for name, flow in clip.items()} for clip in clips]
    names = [name for name in clips[0] if name]
    return {name: Share(sum(of[name] < of[""] for of in logits), len(logits)) for name in names}


def calibrate(model: FlowDiscriminator, data: FlowData) -> float:
    """Divide the discriminator's logits by one temperature, that of least cross-entropy on clips it was not trained on.

    Neither the order of fields nor phi = 0.5 moves, so AUC and accuracy on the same clips stay honest; phi comes off
    0 and 1, where guidance has no gradient. Returns the temperature (Guo et al., ICML 2017).
    """
    logits, real = logits_of(model, data.flow), data.real
    weight = balance(data)
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
