"""Sampling clips into a folder: once each, by any number of processes, and resumable."""

from __future__ import annotations

import inspect
import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mp_hooks.backbones import motionprompt
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import remove_leftovers, replacing
from mp_hooks.generation.pipeline import Generation, load_pipeline
from mp_hooks.generation.prompts import Clip, as_file
from mp_hooks.processes import processes, shared
from mp_hooks.runs import claim, save_configuration
from mp_hooks.video import read_frames, write_video

RECORD, TRACES = "generate.json", "traces"
CLIPS_A_SHARD = 16
VIDEO_ARGUMENTS = ("video", "control_video", "conditioning_frames")  # of pipelines' calls; the first it has is taken


def generate(settings: Generation, clips: Sequence[Clip], out: str | Path, webdataset: bool = False) -> int:
    """Sample into the folder `out` the clips that are not there, shared among all `processes` that were started on it.

    Each is out/NAME, or with `webdataset` in a tar of `CLIPS_A_SHARD` (mp4, txt, json). A clip depends on its prompt,
    seed and batch alone, never on the process or on what was sampled before. Files get their names when they are whole.
    Returns how many are missing still, which other processes are at. Raises MotionPromptError for a folder begun with
    other settings.
    """
    out = Path(out)
    begin(settings, clips, out, webdataset)
    size = CLIPS_A_SHARD if webdataset else settings.batch_size
    parts = [range(at, min(at + size, len(clips))) for at in range(0, len(clips), size)]

    def shard(part: range) -> Path:
        return out / f"clips-{part.start // size:05d}.tar"

    def done(part: range) -> bool:
        if webdataset:
            return shard(part).is_file()
        return all((out / clips[number].name).is_file() for number in part)

    def missing() -> int:
        return sum(len(part) for part in parts if not done(part))

    if left := missing():
        sampler, rank = Sampler(settings), processes().rank
        with tqdm(initial=len(clips) - left, total=len(clips), desc="sampling", unit="clip", disable=rank > 0) as bar:
            for part in shared(parts, done, out):
                sampler.write([clips[number] for number in part], out)
                if webdataset:
                    _pack(shard(part), out, part.start, [clips[number] for number in part])
                bar.update(0 if rank else len(clips) - missing() - bar.n)  # what the others did too
    for part in parts if webdataset else []:
        _clear(shard(part), out, [clips[number] for number in part])
    return missing()


def begin(settings: Generation, clips: Sequence[Clip], out: str | Path, webdataset: bool = False) -> None:
    """Make `out` the folder of these clips, or find that it is: settings, seeds and versions stand in generate.json."""
    out = Path(out)
    record = {**settings.record(), "webdataset": webdataset, "clips": [asdict(clip) for clip in clips]}
    claim(out / RECORD, record)
    if settings.guidance:
        save_configuration(out, settings.guidance)


class Sampler:
    """A pipeline, loaded once, and the clips it makes."""

    def __init__(self, settings: Generation) -> None:
        """Load it; raises MotionPromptError as `load_pipeline` does."""
        self.settings = settings
        self.pipe = load_pipeline(settings)
        self.pipe.set_progress_bar_config(leave=False, disable=processes().rank > 0)

    def write(self, clips: Sequence[Clip], out: str | Path) -> None:
        """Sample the batches of these clips of which one is not in `out`, and write those that are not.

        With guidance the trace of a batch is traces/NAME.jsonl, after its first clip.
        """
        out, size = Path(out), self.settings.batch_size
        for batch in (clips[at : at + size] for at in range(0, len(clips), size)):
            missing = [clip for clip in batch if not (out / clip.name).is_file()]
            if missing:
                trace = out / TRACES / Path(batch[0].name).with_suffix(".jsonl").name
                for clip, frames in zip(batch, self.sample(batch, trace), strict=True):
                    if clip in missing:  # what a killed run has finished stays
                        remove_leftovers(out / clip.name)
                        write_video(out / clip.name, frames, self.settings.fps)

    def sample(self, clips: Sequence[Clip], trace: Path | None = None) -> list[Tensor]:
        """Sample these clips in one call of the pipeline: of each its frames as uint8 [t, 3, h, w], 0..255."""
        guidance = self.settings.guidance
        if guidance and trace:
            trace.unlink(missing_ok=True)  # of a run that was killed
            guidance = replace(guidance, trace=str(trace))
        generators = [torch.Generator().manual_seed(clip.seed) for clip in clips]
        many = len(clips) > 1
        torch.manual_seed(clips[0].seed)  # some pipelines draw from it too
        with motionprompt(self.pipe, replace(guidance, progress=False)) if guidance else nullcontext():
            try:
                result = self.pipe(
                    prompt=[clip.prompt for clip in clips] if many else clips[0].prompt,
                    generator=generators if many else generators[0],
                    output_type="np",
                    **self.settings.arguments,
                    **self._inputs(clips),
                )
            except ValueError as error:  # of a pipeline's check of its arguments
                raise MotionPromptError(f"{type(self.pipe).__name__} refuses this: {error}") from error
        videos = np.asarray(result.frames)  # [b, t, h, w, 3] in 0..1
        return [torch.from_numpy(video).mul(255).round().byte().permute(0, 3, 1, 2) for video in videos]

    def _inputs(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """Picture and video as the pipeline's call takes them."""
        taken = inspect.signature(type(self.pipe).__call__).parameters
        inputs: dict[str, Any] = {}
        for source, names in ((clips[0].image, ("image",)), (clips[0].video, VIDEO_ARGUMENTS)):
            if source is None:
                continue
            if len(clips) > 1:
                raise MotionPromptError("pictures and videos go one clip a batch; leave the batch size at 1")
            argument = next((name for name in names if name in taken), None)
            if argument is None:
                raise MotionPromptError(f"{type(self.pipe).__name__} takes no {names[0]}; leave it out")
            with as_file(source) as path:
                inputs[argument] = _picture(path) if argument == "image" else _frames(path)
        return inputs


def _picture(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise MotionPromptError(f"cannot read {path} as a picture; give a jpg or png") from error


def _frames(path: Path) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in read_frames(path)]


def _pack(shard: Path, out: Path, first: int, clips: Sequence[Clip]) -> None:
    """Move clips from their files into a WebDataset tar, under their numbers from `first`: names hold dots."""
    remove_leftovers(shard)
    with replacing(shard) as temporary, tarfile.open(temporary, "w") as tar:
        for number, clip in enumerate(clips, first):
            contents = {
                "json": json.dumps(asdict(clip)).encode(),
                "mp4": (out / clip.name).read_bytes(),
                "txt": clip.prompt.encode(),
            }
            for suffix, content in contents.items():
                header = tarfile.TarInfo(f"{number:06d}.{suffix}")  # no time, no owner: equal clips, equal bytes
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    _clear(shard, out, clips)


def _clear(shard: Path, out: Path, clips: Sequence[Clip]) -> None:
    """Remove the files of clips that are in their shard."""
    if shard.is_file():
        for clip in clips:
            (out / clip.name).unlink(missing_ok=True)
