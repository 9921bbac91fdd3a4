"""Flow fields in WebDataset tar shards: extracted once, by any number of processes, and resumable.

A folder of shards holds plan.json (settings, and which clips belong to which shard) and flow-NNNNN.tar. The plan does
not depend on how many processes work, and a shard has its name only when it is whole: so whoever runs, and however
often it is killed, the folder ends up the same.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatch
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.discriminator.data import Clip, ClipFacts, FlowData, FlowSettings, clip_flow, find_clips, folder_of
from mp_hooks.discriminator.model import resize_flow
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.flow import FlowEstimator, load_flow
from mp_hooks.processes import processes, shared

PLAN_FILE, SKIPPED = "plan.json", ".skipped.txt"
CLIPS_A_SHARD = 16
# of a Clip; its class depends on the use
CLIP_FIELDS = ("path", "source", "group", "container", "licence", "pair", "role")
ALIKE = (
    "flow",
    "flow_size",
    "frame_rate",
    "max_interval",
    "equalise",
    "corrupt",
)  # what all fields of a training share


@dataclass(frozen=True)
class Extraction:
    """What one process did of a folder of shards, and the clips without flow so far."""

    clips: int
    fields: int
    seconds: float
    skipped: list[str]  # one sentence a clip

    def __str__(self) -> str:
        rate = f": {self.fields / self.seconds:.2f} fields a second" if self.fields else ""
        return f"{self.fields} flow fields of {self.clips} clips in {self.seconds:.0f} s{rate}"


def extract(
    videos: str | Path,
    out: str | Path,
    estimator: FlowEstimator,
    settings: FlowSettings,
    exclude: Sequence[str] = (),
    device: str | torch.device = "cpu",
) -> Extraction:
    """Write the flow of a folder or list of videos (see `find_clips`) to shards in `out`, where they are missing.

    The shards are `shared` among processes. Clips that cannot be read or do not move are left out and named, in
    flow-NNNNN.skipped.txt too. Clips added to the folder since get new shards. Raises MotionPromptError when `out` was
    begun with other settings.
    """
    out, folder = Path(out), folder_of(Path(videos))
    clips = {clip.path: clip for clip in find_clips(videos, True, exclude)}
    shards = list(enumerate(_plan(out, list(clips), estimator, settings)))
    done = extracted = 0
    began = time.monotonic()
    with tqdm(total=len(clips), desc=f"flow ({estimator.name})", unit="clip") as bar:
        for number, names in shared(shards, lambda shard: _shard(out, shard[0]).is_file(), out):
            path, part = _shard(out, number), [clips[name] for name in names if name in clips]
            for left in out.glob(f".{path.stem}*"):  # by a run that was killed
                left.unlink()
            skipped = []
            with replacing(path) as temporary:
                with tarfile.open(temporary, "w") as tar:
                    for place, clip in enumerate(part):
                        try:
                            flow, frames, facts = clip_flow(folder / clip.path, estimator, settings, device)
                        except MotionPromptError as error:
                            skipped.append(str(error))
                            tqdm.write(f"left out: {error}")
                        else:
                            _write(tar, f"{number:05d}-{place:02d}", clip, flow, frames, facts)
                            done, extracted = done + 1, extracted + len(flow)
                        bar.update()
                        bar.set_postfix_str(f"{extracted / (time.monotonic() - began):.2f} fields a second")
                if skipped:
                    with replacing(path.with_suffix(SKIPPED)) as listing:
                        listing.write_text("".join(f"{line}\n" for line in skipped))
    skipped = [line for path in sorted(out.glob(f"flow-*{SKIPPED}")) for line in path.read_text().splitlines()]
    return Extraction(done, extracted, time.monotonic() - began, skipped)


def read_shards(folder: str | Path, real: bool, exclude: Sequence[str] = ()) -> FlowData:
    """All flow in a folder of shards, less the clips that match a glob. Raises MotionPromptError for a folder that is
    no such thing, is not finished or holds a damaged shard."""
    folder = Path(folder)
    plan = _read_plan(folder)
    numbers = range(len(plan["shards"]))
    if missing := [n for n in numbers if not _shard(folder, n).is_file()]:
        raise MotionPromptError(
            f"{len(missing)} of {len(numbers)} shards are missing in {folder}; run 'motionprompt flow extract' again"
        )
    flows, owners, facts = [], [], []
    clips: list[Clip] = []
    for number in numbers:
        for record, flow in _examples(_shard(folder, number)):
            if any(fnmatch(name, glob) for name in (record["path"], *Path(record["path"]).parts) for glob in exclude):
                continue
            about = {field: record[field] for field in CLIP_FIELDS}
            clip = Clip(real=real and not plan["corrupt"], corrupted=plan["corrupt"], **about)
            if not clips or clips[-1] != clip:
                clips.append(clip)
                facts.append(ClipFacts(**{field.name: record[field.name] for field in fields(ClipFacts)}))
            flows.append(flow)
            owners.append(len(clips) - 1)
    if not clips:
        raise MotionPromptError(f"no flow of a {'real' if real else 'generated'} clip in {folder}; check its videos")
    return FlowData(torch.stack(flows), torch.tensor(owners), clips, facts)


def flow_of(
    videos: str | Path,
    real: bool,
    cache: Path,
    estimator: str,
    settings: FlowSettings,
    exclude: Sequence[str] = (),
    weights: str | Path | None = None,
) -> FlowData:
    """Flow of clips of one class, from a folder of shards, or from videos by way of shards in `cache`.

    Fields are brought to `settings.stored_size`. Raises MotionPromptError for a folder that cannot be used, and for
    shards of another estimator, size, rate or interval than those asked for.
    """
    folder = Path(videos)
    if not is_shards(folder):
        if processes().world > 1:
            raise MotionPromptError(
                f"several processes train on shards, not on videos: run 'motionprompt flow extract' on {folder}"
            )
        done = extract(folder, cache, load_flow(estimator, weights), settings, exclude)
        if done.clips:
            tqdm.write(f"{cache.name}: {done}")
        if done.skipped:
            words = f"{len(done.skipped)} videos of {folder} are left out: {'; '.join(done.skipped)}"
            warnings.warn(words, stacklevel=2)
        folder = cache
    plan, wanted = _read_plan(folder), {"flow": estimator, **asdict(settings)}
    if differ := [key for key in ALIKE if plan.get(key) != wanted[key]]:
        words = ", ".join(f"{key} {plan.get(key)} and not {wanted[key]}" for key in differ)
        raise MotionPromptError(f"the shards in {folder} have {words}; ask for the same, or extract them anew")
    if plan["stored_size"] < settings.stored_size:
        raise MotionPromptError(
            f"the fields in {folder} have a side of {plan['stored_size']}, {settings.stored_size} were asked for; "
            "give a smaller --image-size, or extract them anew"
        )
    data = read_shards(folder, real, exclude)
    return replace(
        data, flow=torch.cat([resize_flow(part.float(), settings.stored_size).half() for part in data.flow.split(256)])
    )


def gather(
    real: str | Path,
    fake: str | Path,
    cache: Path,
    estimator: str,
    settings: FlowSettings,
    exclude: Sequence[str] = (),
    weights: str | Path | None = None,
    corrupted: str | Path | None = None,
) -> FlowData:
    """`flow_of` real and of generated clips, and of real ones that are `corrupted`, in one."""
    parts = [(real, "real", settings), (fake, "generated", settings)]
    if corrupted is not None:
        parts.append((corrupted, "corrupted", replace(settings, corrupt=True)))
    return joined(
        [
            flow_of(videos, name != "generated", cache / name, estimator, how, exclude, weights)
            for videos, name, how in parts
        ]
    )


def joined(parts: Sequence[FlowData]) -> FlowData:
    """All of them in one."""
    first = list(accumulate((len(part.clips) for part in parts), initial=0))
    return FlowData(
        torch.cat([part.flow for part in parts]),
        torch.cat([part.clip + number for part, number in zip(parts, first, strict=False)]),
        [clip for part in parts for clip in part.clips],
        [fact for part in parts for fact in part.facts],
    )


def is_shards(folder: Path) -> bool:
    """Whether this is a folder that `extract` wrote."""
    return (folder / PLAN_FILE).is_file()


def _plan(out: Path, names: list[str], estimator: FlowEstimator, settings: FlowSettings) -> list[list[str]]:
    """The clips of every shard: those planned before stay where they are, new ones follow in shards of their own.

    Every process works the plan out for itself and writes the same.
    """
    made = {"flow": estimator.name, **asdict(settings)}
    shards: list[list[str]] = []
    if is_shards(out):
        before = _read_plan(out)
        shards = before.pop("shards")
        if differ := [key for key, value in made.items() if before.get(key) != value]:
            raise MotionPromptError(
                f"{out} was begun with other settings ({', '.join(differ)}); use the same, or an empty folder"
            )
    planned = {name for shard in shards for name in shard}
    new = [name for name in names if name not in planned]
    if new:
        shards = shards + [new[at : at + CLIPS_A_SHARD] for at in range(0, len(new), CLIPS_A_SHARD)]
        with replacing(out / PLAN_FILE) as path:
            path.write_text(json.dumps({**made, "shards": shards}, indent=1) + "\n")
    return shards


def _read_plan(folder: Path) -> dict:
    """A plan of before `corrupt` was known is of clips as they are."""
    path = folder / PLAN_FILE
    try:
        plan = json.loads(path.read_text())
        return {"corrupt": False, **plan, "shards": [list(shard) for shard in plan["shards"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MotionPromptError(f"{path} is no plan of flow shards; extract into an empty folder") from error


def _shard(folder: Path, number: int) -> Path:
    return folder / f"flow-{number:05d}.tar"


def _write(
    tar: tarfile.TarFile, key: str, clip: Clip, flow: Tensor, frames: list[tuple[int, int]], facts: ClipFacts
) -> None:
    """One WebDataset sample a field: KEY.npy (float16 [2, s, s]) and KEY.json."""
    about = {field: getattr(clip, field) for field in CLIP_FIELDS}
    for place, (field, pair) in enumerate(zip(flow, frames, strict=True)):
        record = {
            **about,
            "frames": pair,
            "interval": pair[1] - pair[0],
            "size": field.shape[-1],
            **asdict(facts),
        }
        array = io.BytesIO()
        np.save(array, field.numpy())
        for suffix, content in (("npy", array.getvalue()), ("json", json.dumps(record).encode())):
            header = tarfile.TarInfo(f"{key}-{place:03d}.{suffix}")  # no time, no owner: equal flow, equal bytes
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def _examples(path: Path) -> Iterator[tuple[dict, Tensor]]:
    """(record, field) of every sample in a shard."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if member.name.endswith(".npy"):
                    field = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
                else:
                    yield json.loads(content), field
    except (tarfile.TarError, OSError, ValueError, AttributeError, UnboundLocalError) as error:
        raise MotionPromptError(f"{path} is no whole shard of flow; remove it and extract again") from error
