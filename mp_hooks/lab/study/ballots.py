"""What a study is, to its page, its server and its tally: trials, and the ballots voters cast on them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mp_hooks.errors import MotionPromptError

STUDY_FILE = "study.json"  # in the site: what the page knows
VOTER = re.compile(r"[0-9a-f]{32}")
CHOICES = ("left", "tie", "right")


@dataclass(frozen=True)
class Study:
    """The study's id, and its trials: {trial: the two clips shown}."""

    name: str
    trials: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Ballot:
    """One voter's answers: {trial: the clip preferred, or None for a tie}."""

    voter: str
    choices: Mapping[str, str | None]


def read_study(site: Path) -> Study:
    """The study in a site's folder. Raises MotionPromptError where there is none."""
    try:
        content = json.loads((site / STUDY_FILE).read_text(encoding="utf-8"))
        return Study(content["study"], {trial["id"]: tuple(trial["clips"]) for trial in content["trials"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MotionPromptError(f"no study in {site}; make one with: motionprompt study make A B --out DIR") from error


def parse_ballot(content: Any, study: Study) -> Ballot:
    """A ballot as the page writes it, checked in every part; raises ValueError, with the reason, for anything else."""
    if not isinstance(content, dict) or content.get("study") != study.name:
        raise ValueError("these are answers to another study")
    voter, answers = content.get("voter"), content.get("answers")
    if not isinstance(voter, str) or not VOTER.fullmatch(voter):
        raise ValueError("the voter's id is malformed")
    if not isinstance(answers, list) or len(answers) > len(study.trials):
        raise ValueError("the answers are malformed")
    choices: dict[str, str | None] = {}
    for answer in answers:
        trial = answer.get("trial") if isinstance(answer, dict) else None
        if not isinstance(trial, str) or trial not in study.trials or trial in choices:
            raise ValueError("an answer is to no trial of this study, or the second to one")
        sides = {side: answer.get(side) for side in ("left", "right")}
        if sorted(map(str, sides.values())) != sorted(study.trials[trial]):
            raise ValueError("an answer names other clips than its trial has")
        if answer.get("choice") not in CHOICES:
            raise ValueError(f"a choice is none of {', '.join(CHOICES)}")
        choices[trial] = sides.get(answer["choice"])
    return Ballot(voter, choices)
