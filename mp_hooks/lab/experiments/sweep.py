"""Ablations: one configuration a cell, every cell on the same prompts and seeds, measured into one table.

A sweep is a folder with one folder a cell. What a cell consists of (chunks of clips of the mini model, or runs of a
command) is done once: a part has a file of its own when it is whole, so a killed sweep goes on where it was, and any
number of `processes` can share the parts.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.lab.metrics.evaluation import Evaluation, evaluate
from mp_hooks.lab.metrics.measures import Settings
from mp_hooks.processes import processes, shared
from mp_hooks.runs import claim
from mp_hooks.video import find_videos

PLAIN = "plain"  # in place of a cell's options: sampled without guidance
PLACEHOLDERS = ("{motionprompt}", "{config}", "{out}", "{prompts}", "{seed}")


@dataclass(frozen=True)
class Spec:
    """A sweep as its YAML file tells it.

    cells: {name: options over `guidance`, or "plain"}; grid: {option: values}, a cell for every combination, after
    those named. The first cell is what the others are compared with. prompts: with a command the file of prompts,
    without one how many captions the mini model samples. seeds: those of the noise; for the mini model how many a
    prompt. command: a host's, a list of arguments with `PLACEHOLDERS`; {motionprompt} stands for --motionprompt
    --mp-config FILE, and for nothing in a plain cell. measure: flow and weights, as `Settings`.
    """

    prompts: int | str
    seeds: Any = 1
    seed: int = 0  # of the mini model's prompts and noise
    batch: int = 4  # clips that the mini model samples together
    guidance: Mapping[str, Any] | None = None
    cells: Mapping[str, Any] | None = None
    grid: Mapping[str, Sequence[Any]] | None = None
    command: Sequence[str] | None = None
    measure: Mapping[str, Any] | None = None

    @cached_property
    def configurations(self) -> dict[str, MotionPromptConfig | None]:
        """{cell: its configuration, None without guidance}, in order."""
        if not all(isinstance(part, Mapping) for part in (self.cells or {}, self.grid or {})):
            raise MotionPromptError("'cells' holds a name and options a cell, 'grid' a name and values an option")
        options: dict[str, Any] = dict(self.cells or {})
        grid = self.grid or {}
        for values in product(*grid.values()) if grid else ():
            chosen = dict(zip(grid, values, strict=True))
            options[", ".join(f"{name} {value}" for name, value in chosen.items())] = chosen
        if not options:
            raise MotionPromptError("a sweep needs cells; name them under 'cells' or 'grid'")
        return {name: None if given == PLAIN else self._configuration(given or {}) for name, given in options.items()}

    @property
    def settings(self) -> Settings:
        """What measures are taken with."""
        try:
            return Settings(**(self.measure or {}))
        except TypeError as error:
            names = ", ".join(field.name for field in fields(Settings))
            raise MotionPromptError(f"bad 'measure': {error}; names are {names}") from error

    def _configuration(self, given: Mapping[str, Any]) -> MotionPromptConfig:
        from mp_hooks.lab import mini

        if not isinstance(given, Mapping):
            raise MotionPromptError(f"a cell is '{PLAIN}' or options of guidance, not '{given}'")
        base = mini.GUIDANCE if self.command is None else None
        config = load_config(base, **{**(self.guidance or {}), **given})
        return mini.guidance(config) if self.command is None else config


def read_spec(path: Path) -> Spec:
    """A sweep from its YAML file. Raises MotionPromptError for a file that cannot be read, or an unknown name in it."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = Spec(**content)
    except OSError as error:
        raise MotionPromptError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        names = ", ".join(field.name for field in fields(Spec))
        raise MotionPromptError(f"{path} is no sweep: {str(error).splitlines()[0]}; names are {names}") from error
    return spec


class Sampler(Protocol):
    """What samples and measures the cells."""

    parts: int  # of every cell

    def claim(self, cell: str, config: MotionPromptConfig | None, folder: Path) -> None:
        """Make the folder this cell's, or find that it is; raises MotionPromptError for another one's."""

    def do(self, config: MotionPromptConfig | None, part: int, folder: Path) -> None:
        """Sample a part."""

    def done(self, part: int, folder: Path) -> bool:
        """Whether a part is whole."""

    def evaluation(self, cells: Mapping[str, Path]) -> Evaluation:
        """The measures of cells that are whole."""


def run(spec: Spec, out: Path, device: str = "cpu") -> Evaluation | None:
    """Do this process's share of the parts that are missing; the measures, once no part of any cell is missing."""
    sampler: Sampler = MiniSampler(spec, device) if spec.command is None else CommandSampler(spec)
    folders = {name: out / "cells" / _slug(name) for name in spec.configurations}
    if len(set(folders.values())) < len(folders):
        raise MotionPromptError("two cells have names that differ in punctuation only; name them otherwise")
    for name, config in spec.configurations.items():
        sampler.claim(name, config, folders[name])
    todo = [(name, part) for part in range(sampler.parts) for name in folders]

    def done(todo_part: tuple[str, int]) -> bool:
        name, part = todo_part
        return sampler.done(part, folders[name])

    for name, part in tqdm(shared(todo, done, out), desc="sweep", unit="part", disable=processes().rank > 0):
        sampler.do(spec.configurations[name], part, folders[name])
    if not all(map(done, todo)):
        return None
    return sampler.evaluation(folders)


class MiniSampler:
    """The embedded mini model on captions of random scenes; a part is a chunk of clips of the paired experiment."""

    def __init__(self, spec: Spec, device: str = "cpu") -> None:
        from mp_hooks.lab import mini
        from mp_hooks.lab.experiments.methods import BASELINE, GUIDED
        from mp_hooks.lab.experiments.paired import Experiment

        if not all(isinstance(value, int) and value > 0 for value in (spec.prompts, spec.seeds, spec.batch)):
            raise MotionPromptError("without a command, prompts, seeds and batch are numbers of 1 or more: how many")
        self.device = device
        self.methods = {True: BASELINE, False: GUIDED}
        self.experiments = {
            config: Experiment(
                model=str(mini.PACKAGED),
                seed=spec.seed,
                prompts=spec.prompts,
                seeds=spec.seeds,
                flow=spec.settings.flow,
                flow_weights=spec.settings.flow_weights,
                guidance=config or mini.guidance(),
                batch=spec.batch,
            )
            for config in spec.configurations.values()
        }
        self.first = next(iter(self.experiments.values()))
        self.parts = self.first.chunks()

    def claim(self, cell: str, config: MotionPromptConfig | None, folder: Path) -> None:
        self.experiments[config].claim(folder)

    def do(self, config: MotionPromptConfig | None, part: int, folder: Path) -> None:
        from mp_hooks.lab.experiments.paired import sample_and_measure

        rows = sample_and_measure(self.experiments[config], self.methods[config is None], part, folder, self.device)
        with replacing(self._file(part, folder)) as temporary:
            temporary.write_text(json.dumps(rows) + "\n", encoding="utf-8")

    def done(self, part: int, folder: Path) -> bool:
        return self._file(part, folder).is_file()

    def evaluation(self, cells: Mapping[str, Path]) -> Evaluation:
        from mp_hooks.lab.experiments.paired import MEASURES

        values = {}
        for name, folder in cells.items():
            parts = (json.loads(self._file(part, folder).read_text(encoding="utf-8")) for part in range(self.parts))
            rows = [row for part in parts for row in part]
            values[name] = {measure: [row[measure] for row in rows] for measure in MEASURES}
        clips = [f"{prompt} (seed {seed})" for prompt, _, seed in self.first.clips()]
        return Evaluation(clips, values, {}, MEASURES)

    def _file(self, part: int, folder: Path) -> Path:
        return folder / "measures" / f"{part:03d}-{self.first.flow}.json"


class CommandSampler:
    """Any host's command; a part is its run with one seed, and whole when the command said so by exit code 0."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.seeds = spec.seeds if isinstance(spec.seeds, list) else [spec.seeds]
        self.parts = len(self.seeds)
        if not any("{out}" in argument for argument in spec.command):
            raise MotionPromptError(f"the command must hold {{out}}; it may hold {', '.join(PLACEHOLDERS)}")

    def claim(self, cell: str, config: MotionPromptConfig | None, folder: Path) -> None:
        guidance = asdict(config) if config else None
        settings = {"cell": cell, "command": list(self.spec.command), "prompts": str(self.spec.prompts)}
        claim(folder / "cell.json", {**settings, "guidance": guidance})
        if config and not (folder / "config.yaml").is_file():
            config.save(folder / "config.yaml")

    def do(self, config: MotionPromptConfig | None, part: int, folder: Path) -> None:
        videos = self._videos(part, folder)
        videos.mkdir(exist_ok=True)
        values = {
            "{config}": str(folder / "config.yaml"),
            "{out}": str(videos),
            "{prompts}": str(self.spec.prompts),
            "{seed}": str(self.seeds[part]),
        }
        arguments: list[str] = []
        for argument in map(str, self.spec.command):
            if argument == "{motionprompt}":
                arguments += ["--motionprompt", "--mp-config", values["{config}"]] if config else []
            else:
                arguments.append(re.sub("|".join(map(re.escape, values)), lambda m: values[m[0]], argument))
        try:
            code = subprocess.run(arguments, check=False).returncode
        except OSError as error:
            raise MotionPromptError(f"cannot start {arguments[0]}: {error.strerror}; check the command") from error
        if code:
            raise MotionPromptError(f"exit code {code} from: {' '.join(arguments)}; put it right and start again")
        find_videos(videos)  # a command that wrote none has failed
        with replacing(self._mark(part, folder)) as temporary:
            temporary.write_text(json.dumps(arguments) + "\n", encoding="utf-8")

    def done(self, part: int, folder: Path) -> bool:
        return self._mark(part, folder).is_file()

    def evaluation(self, cells: Mapping[str, Path]) -> Evaluation:
        groups = {
            name: {
                f"seed {seed}: {path.relative_to(self._videos(part, folder)).with_suffix('')}": path
                for part, seed in enumerate(self.seeds)
                for path in find_videos(self._videos(part, folder))
            }
            for name, folder in cells.items()
        }
        first = list(next(iter(groups.values())))
        if any(list(clips) != first for clips in groups.values()):
            raise MotionPromptError("the cells hold clips of different names; the command must name them alike")
        out = next(iter(cells.values())).parent.parent
        return evaluate(groups, self.spec.settings, out)

    def _videos(self, part: int, folder: Path) -> Path:
        return folder / f"seed-{self.seeds[part]}"

    def _mark(self, part: int, folder: Path) -> Path:
        return folder / f"seed-{self.seeds[part]}.done.json"


def _slug(name: str) -> str:
    """A folder's name for a cell."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "cell"
