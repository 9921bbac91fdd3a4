"""Groups of videos measured and compared: the same clips under two or more ways to make them."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from mp_hooks import __version__
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.lab.metrics.comparison import Comparison, compare
from mp_hooks.lab.metrics.measures import MEASURES, VBENCH, Measure, Measurer, Settings, Unmeasurable
from mp_hooks.lab.metrics.vbench import measure_with_vbench
from mp_hooks.video import SUFFIXES, find_videos

Groups = dict[str, dict[str, Path]]  # group: {clip: file}


@dataclass(frozen=True)
class Evaluation:
    """The measures of every clip of every group; clips have the same names and order in each group.

    values: {group: {measure: [value a clip]}}, NaN where a clip has none. missing: {measure: the remedy}. measures:
    what was to be measured, in the order it is shown. left_out: {clip: why}, where one of a group cannot be measured.
    """

    clips: Sequence[str]
    values: Mapping[str, Mapping[str, Sequence[float]]]
    missing: Mapping[str, str]
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The first group, which the others are compared with."""
        return next(iter(self.values))

    def mean(self, group: str, measure: str) -> float:
        """Mean over the clips that have a value."""
        known = [value for value in self.values[group][measure] if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def comparisons(self, group: str) -> dict[str, Comparison]:
        """{measure: paired comparison of the group with the baseline}, of the measures that were taken."""
        baseline, other = self.values[self.baseline], self.values[group]
        return {name: compare(baseline[name], other[name]) for name in self.measures if name not in self.missing}

    def remarks(self) -> list[str]:
        """What its tables lack and why, a line each."""
        lines = [f"missing: {self.measures[name].title} {why}" for name, why in self.missing.items()]
        return lines + [f"left out: {clip} in every group ({why})" for clip, why in self.left_out.items()]

    def parts(self) -> dict[str, Evaluation]:
        """One evaluation for each folder the clips are named after ("FOLDER/clip"), if there are several."""
        folders = dict.fromkeys(clip.split("/")[0] for clip in self.clips if "/" in clip)
        if len(folders) < 2:
            return {}
        return {folder: self._of([c.startswith(folder + "/") for c in self.clips]) for folder in folders}

    def _of(self, chosen: Sequence[bool]) -> Evaluation:
        def pick(row: Sequence) -> list:
            return [value for value, wanted in zip(row, chosen, strict=True) if wanted]

        values = {group: {m: pick(row) for m, row in rows.items()} for group, rows in self.values.items()}
        return Evaluation(pick(self.clips), values, self.missing, self.measures, self.left_out)


def groups_of_folders(folders: Sequence[Path]) -> Groups:
    """A group a folder; a clip is named by its path in it, without suffix.

    Raises MotionPromptError for a folder given twice, and where the folders have no clip in common.
    """
    groups: Groups = {}
    for folder in folders:
        name = folder.resolve().name if folder.resolve().name not in groups else str(folder)
        if name in groups:
            raise MotionPromptError(f"{folder} is given twice; give different folders")
        groups[name] = _named({path: path.relative_to(folder).with_suffix("") for path in find_videos(folder)})
    return _in_common(groups)


def groups_of_suffixes(folders: Sequence[Path], suffixes: Sequence[str]) -> Groups:
    """A group a suffix of the file name, as in clip_baseline.mp4 and clip_ours.mp4, of all folders together.

    A clip is named "FOLDER/name". Raises MotionPromptError where no clip exists with every suffix.
    """
    groups: Groups = {}
    for suffix in suffixes:
        names = {
            path: Path(folder.resolve().name, path.relative_to(folder).with_name(path.stem.removesuffix(suffix)))
            for folder in folders
            for path in find_videos(folder)
            if path.stem.endswith(suffix)
        }
        groups[suffix.strip("_-. ") or "plain"] = _named(names)
    return _in_common(groups)


def evaluate(groups: Groups, settings: Settings, out: Path, vbench_python: str | None = None) -> Evaluation:
    """Measure every clip of every group; what `out` holds of the same file and settings is not measured again.

    A clip that cannot be measured in one group is left out of all. With `vbench_python` the six dimensions are VBench's
    own, computed in that environment. Raises MotionPromptError for weights that cannot be read, and if no clip is left.
    """
    measurer = Measurer(settings)
    missing = dict(measurer.missing)
    measured: dict[str, dict[str, dict[str, float]]] = {group: {} for group in groups}
    left_out: dict[str, str] = {}
    todo = [(group, clip, path) for group, clips in groups.items() for clip, path in clips.items()]
    for group, clip, path in tqdm(todo, desc="measuring", unit="video"):
        try:
            measured[group][clip] = _measured(path, measurer, settings, out / "measured")
        except Unmeasurable as error:
            left_out.setdefault(clip, str(error))
    clips = [clip for clip in next(iter(groups.values())) if clip not in left_out]
    if not clips:
        raise MotionPromptError(f"no clip can be measured in every group: {next(iter(left_out.values()))}")
    groups = {group: {clip: files[clip] for clip in clips} for group, files in groups.items()}
    rows = {group: [measured[group][clip] for clip in clips] for group in groups}
    if vbench_python:
        files = {f"{group}\n{clip}": path for group, of_group in groups.items() for clip, path in of_group.items()}
        theirs, failed = measure_with_vbench(vbench_python, files, list(VBENCH))
        missing = failed
        for group in groups:
            for row, clip in zip(rows[group], clips, strict=True):
                for name in VBENCH:
                    row[name] = theirs.get(name, {}).get(f"{group}\n{clip}", math.nan)
    values = {
        group: {name: [row.get(name, math.nan) for row in of_group] for name in MEASURES}
        for group, of_group in rows.items()
    }
    return Evaluation(clips, values, missing, left_out=left_out)


def _measured(path: Path, measurer: Measurer, settings: Settings, cache: Path) -> dict[str, float]:
    """The measures of one video, from the cache where it holds them for this very file and these settings."""
    state = path.stat()
    of = {"video": str(path.resolve()), "bytes": state.st_size, "changed": state.st_mtime_ns}
    of |= asdict(settings) | {"mp_hooks": __version__}
    file = cache / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:24]}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["measures"]
    measures = measurer(path)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"of": of, "measures": measures}) + "\n", encoding="utf-8")
    return measures


def _named(names: Mapping[Path, Path]) -> dict[str, Path]:
    """{name: file}; of the same clip in several formats the first of `SUFFIXES` is taken."""
    ordered = sorted(names, key=lambda path: SUFFIXES.index(path.suffix.lower()), reverse=True)
    return {names[path].as_posix(): path for path in ordered}


def _in_common(groups: Groups) -> Groups:
    """The clips that every group has, in one order."""
    common = set.intersection(*(set(clips) for clips in groups.values()))
    if not common:
        raise MotionPromptError(
            f"no clip is in all of {', '.join(groups)}; pairs are files of the same name (or give --suffixes)"
        )
    if alone := sorted(set.union(*(set(clips) for clips in groups.values())) - common):
        warnings.warn(f"{len(alone)} clips are not in all groups and are left out: {', '.join(alone)}", stacklevel=3)
    return {group: {name: clips[name] for name in sorted(common)} for group, clips in groups.items()}
