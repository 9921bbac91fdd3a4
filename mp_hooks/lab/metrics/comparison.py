"""Paired comparison of two samplings of the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mp_hooks.errors import MotionPromptError

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Mean of b - a with its bootstrapped 95 % interval, counts of clips up and down, and the sign test's p."""

    mean: float
    low: float
    high: float
    up: int
    down: int
    p: float
    pairs: int

    def __str__(self) -> str:
        if not self.pairs:
            return "- (no pair has both values)"
        return f"{self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}] ({self.up} up, {self.down} down, p {self.p:.2g})"


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """Compare b to a, pair by pair; pairs in which either value is missing (NaN) are left out.

    The interval is the percentile bootstrap of the mean difference over pairs, the test a two-sided sign test in
    which ties do not count. Raises ValueError for lists of different length.
    """
    stats = _scipy_stats()
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: a paired comparison needs as many of each")
    difference = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    difference = difference[np.isfinite(difference)]
    mean = float(difference.mean()) if len(difference) else float("nan")
    low = high = mean
    if len(difference) > 1 and np.ptp(difference) > 0:
        interval = stats.bootstrap(
            (difference,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    up, down = int((difference > 0).sum()), int((difference < 0).sum())
    p = float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0
    return Comparison(mean, low, high, up, down, p, len(difference))


@dataclass(frozen=True)
class GainShare:
    """The share of one method's mean gain that another has, with its bootstrapped 95 % interval."""

    share: float
    low: float
    high: float


def gain_share(reference: Sequence[float], exact: Sequence[float], other: Sequence[float], seed: int = 0) -> GainShare:
    """mean(other - reference) / mean(exact - reference), and its percentile bootstrap over the clips of all three."""
    base = np.asarray(reference, dtype=float)
    gains = [np.asarray(values, dtype=float) - base for values in (other, exact)]

    def share(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
        return ours.mean(axis) / theirs.mean(axis)

    interval = (
        _scipy_stats()
        .bootstrap(
            gains, share, paired=True, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        )
        .confidence_interval
    )
    return GainShare(float(share(*gains)), float(interval.low), float(interval.high))


def rank_correlation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> str:
    """Spearman's, with its bootstrapped 95 % interval over the pairs in which both values are numbers."""
    values = np.asarray([a, b], dtype=float)
    values = values[:, np.isfinite(values).all(0)]
    stats, random = _scipy_stats(), np.random.default_rng(seed)
    draws = [values[:, random.integers(values.shape[1], size=values.shape[1])] for _ in range(RESAMPLES // 10)]
    low, high = np.quantile([stats.spearmanr(*draw).statistic for draw in draws], [0.025, 0.975])
    return f"{stats.spearmanr(*values).statistic:+.2f} [{low:+.2f}, {high:+.2f}]"


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MotionPromptError("comparisons need SciPy: pip install 'mp_hooks[metrics]'") from error
    return stats
