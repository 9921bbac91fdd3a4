"""`study tally`: win, tie and lose of the second group, with intervals, and how far voters agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mp_hooks.errors import MotionPromptError
from mp_hooks.lab.report.tables import Table
from mp_hooks.lab.study.ballots import Ballot, Study, parse_ballot

OUTCOMES = ("win", "tie", "lose")
RESAMPLES = 10_000
PAPER = {"AnimateDiff": (66.5, 17.8, 15.7), "LaVie": (55.1, 21.1, 23.8), "VideoCrafter2": (53.0, 17.7, 29.3)}


@dataclass(frozen=True)
class Tally:
    """Counts and shares of the outcomes for the group `other` against `baseline`.

    intervals: 95 %, of the shares, bootstrapped over voters and pairs at once. agreement: the share of equal votes
    among all two votes on the same pair; alpha: Krippendorff's, for nominal data (NaN where no pair has two votes).
    """

    baseline: str
    other: str
    voters: int
    excluded: int  # failed an attention check
    pairs: int
    counts: dict[str, int]
    intervals: dict[str, tuple[float, float]]
    agreement: float
    alpha: float

    def table(self) -> Table:
        """A row an outcome, and the paper's user study beside it."""
        votes = max(1, sum(self.counts.values()))
        rows = []
        for number, name in enumerate(OUTCOMES):
            low, high = self.intervals[name]
            paper = [f"{figures[number]:.1f}" for figures in PAPER.values()]
            share = f"{100 * self.counts[name] / votes:.1f}"
            rows.append([name, str(self.counts[name]), share, f"[{100 * low:.1f}, {100 * high:.1f}]", *paper])
        header = ["", "votes", "%", "95 % interval", *(f"{model} (paper)" for model in PAPER)]
        title = f"{self.other} against {self.baseline}: {self.voters} voters, {self.pairs} pairs"
        return Table(header, rows, title)


def tally(key: Path, answers: Sequence[Path], seed: int = 0) -> Tally:
    """Count the ballots in `answers`, files or folders of them; a voter with a failed check is left out.

    Of several ballots of one voter the fullest counts. Raises MotionPromptError for files that are no ballots of this
    study, or when no ballot is left.
    """
    try:
        secret = json.loads(key.read_text(encoding="utf-8"))
        trials = secret["trials"]
        study = Study(secret["study"], {name: tuple(trial["clips"]) for name, trial in trials.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MotionPromptError(f"{key} is no key of a study; it lies beside the site as SITE.key.json") from error
    ballots = _fullest(_read(path, study) for entry in answers for path in _files(entry))
    checks = {name: trial["check"] for name, trial in trials.items() if trial["check"]}
    attentive = [
        b for b in ballots if all(b.choices[name] == right for name, right in checks.items() if name in b.choices)
    ]
    pairs = {trial["pair"]: number for number, trial in enumerate(t for t in trials.values() if not t["check"])}
    votes = np.full((len(attentive), len(pairs)), -1)
    for voter, ballot in enumerate(attentive):
        for name, clip in ballot.choices.items():
            if name not in checks:
                group = None if clip is None else trials[name]["clips"][clip]
                outcome = "tie" if group is None else "win" if group == secret["other"] else "lose"
                votes[voter, pairs[trials[name]["pair"]]] = OUTCOMES.index(outcome)
    if not (votes >= 0).any():
        raise MotionPromptError("no ballot with all attention checks passed; collect more answers")
    counts = Counter(OUTCOMES[vote] for vote in votes[votes >= 0].tolist())
    return Tally(
        baseline=secret["baseline"],
        other=secret["other"],
        voters=len(attentive),
        excluded=len(ballots) - len(attentive),
        pairs=int((votes >= 0).any(0).sum()),
        counts={name: counts[name] for name in OUTCOMES},
        intervals=_intervals(votes, seed),
        agreement=_agreement(votes),
        alpha=_alpha(votes),
    )


def _files(entry: Path) -> list[Path]:
    files = sorted(entry.glob("*.json")) if entry.is_dir() else [entry]
    if not files:
        raise MotionPromptError(f"no answers in {entry}; it must hold the .json files that voters send")
    return files


def _read(path: Path, study: Study) -> Ballot:
    try:
        return parse_ballot(json.loads(path.read_text(encoding="utf-8")), study)
    except (OSError, ValueError, RecursionError) as error:
        raise MotionPromptError(f"{path} is no ballot of this study: {error}; leave it out") from error


def _fullest(ballots: Sequence[Ballot]) -> list[Ballot]:
    kept: dict[str, Ballot] = {}
    for ballot in ballots:
        if ballot.voter not in kept or len(ballot.choices) > len(kept[ballot.voter].choices):
            kept[ballot.voter] = ballot
    return list(kept.values())


def _counts(votes: np.ndarray) -> np.ndarray:
    """Votes of each kind on each pair: [voters, pairs], -1 where there is none -> [pairs, kinds]."""
    return np.stack([(votes == kind).sum(0) for kind in range(votes.max() + 1)], axis=1)


def _intervals(votes: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the shares; voters and pairs are both drawn with replacement (Owen, AOAS 2007)."""
    generator = np.random.default_rng(seed)
    voters, pairs = votes.shape
    by_outcome = np.stack([votes == outcome for outcome in range(len(OUTCOMES))]).astype(float)
    drawn_voters = generator.multinomial(voters, np.full(voters, 1 / voters), RESAMPLES)
    drawn_pairs = generator.multinomial(pairs, np.full(pairs, 1 / pairs), RESAMPLES)
    sums = np.stack([((drawn_voters @ chosen) * drawn_pairs).sum(1) for chosen in by_outcome])
    shares = sums[:, sums.sum(0) > 0] / sums.sum(0)[sums.sum(0) > 0]
    limits = np.percentile(shares, [2.5, 97.5], axis=1)
    return {name: (float(limits[0, i]), float(limits[1, i])) for i, name in enumerate(OUTCOMES)}


def _agreement(votes: np.ndarray) -> float:
    """Equal votes among all two votes of different voters on one pair."""
    counts = _counts(votes)
    total = counts.sum(1)
    possible = (total * (total - 1)).sum()
    return float((counts * (counts - 1)).sum() / possible) if possible else float("nan")


def _alpha(votes: np.ndarray) -> float:
    """Krippendorff's alpha, nominal: 1 - observed / expected disagreement over pairs with two votes or more."""
    counts = _counts(votes)
    counts = counts[counts.sum(1) >= 2].astype(float)
    if not len(counts):
        return float("nan")
    total, overall = counts.sum(1), counts.sum(0)
    observed = ((total**2 - (counts**2).sum(1)) / (total - 1)).sum() / overall.sum()
    expected = (overall.sum() ** 2 - (overall**2).sum()) / (overall.sum() * (overall.sum() - 1))
    return float(1 - observed / expected) if expected else 1.0
