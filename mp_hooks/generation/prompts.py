"""What clips are wanted: prompts, with pictures or videos where a pipeline starts from one, by name and seed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mp_hooks.errors import MotionPromptError
from mp_hooks.video import SUFFIXES

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
LONGEST_NAME = 240  # bytes; file systems allow 255, and a temporary name is longer
INSIDE = "::"  # between a tar file and the name of a member


@dataclass(frozen=True)
class Prompt:
    """What to show. name: of its clips, the text itself if not given. image, video: a file, or TAR::MEMBER."""

    text: str
    name: str | None = None
    image: str | None = None
    video: str | None = None


@dataclass(frozen=True)
class Clip:
    """One clip to sample. name: of its file. seed: of its noise. image, video: as of a `Prompt`."""

    name: str
    prompt: str
    seed: int
    image: str | None = None
    video: str | None = None


def read_prompts(path: str | Path, image: str | Path | None = None, video: str | Path | None = None) -> list[Prompt]:
    """The prompts in a file, in order and each once.

    path: text with a prompt a line; JSON with a list of texts, or of objects as VBench has them (prompt_en names the
    clips; prompt, if there is one, is sampled in its place; image or image_name; video); a WebDataset tar or a folder
    of them (txt, or json with such an object; a picture; a video). image, video: a file for all prompts, or the folder
    of the files that JSON names, or that are named after the prompts. Raises MotionPromptError where that is not so.
    """
    path = Path(path)
    try:
        if path.is_dir() or path.suffix == ".tar":
            prompts = list(_of_shards(path))
        elif path.suffix == ".json":
            prompts = [_of_object(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            prompts = [Prompt(line.strip()) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, tarfile.TarError) as error:
        raise MotionPromptError(
            f"cannot read prompts from {path}; give a text file with a prompt a line, VBench's JSON, or WebDataset tars"
        ) from error
    if not prompts:
        raise MotionPromptError(f"{path} holds no prompt; give one a line")
    beside = None if path.is_dir() else path.parent
    found = (
        replace(
            prompt,
            image=_found(prompt, prompt.image, image, beside, PICTURES),
            video=_found(prompt, prompt.video, video, beside, SUFFIXES),
        )
        for prompt in prompts
    )
    return list(dict.fromkeys(found))


def clips_of(prompts: Sequence[Prompt], samples: int = 1, seed: int = 0) -> list[Clip]:
    """`samples` clips a prompt, PROMPT-0.mp4 and so on, as VBench names them; seeds are counted through from `seed`.

    Raises MotionPromptError where two clips would have one name, or one that no file can have.
    """
    clips = [
        Clip(
            f"{(prompt.name or prompt.text).replace('/', ' ')}-{sample}.mp4",
            prompt.text,
            seed + number * samples + sample,
            prompt.image,
            prompt.video,
        )
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]
    names = set()
    for clip in clips:
        if len(clip.name.encode(errors="replace")) > LONGEST_NAME or "\0" in clip.name:
            raise MotionPromptError(
                f"no file can be named after {clip.prompt[:40]!r}; give prompts of up to 200 letters"
            )
        if clip.name in names:
            raise MotionPromptError(f"two clips would be called {clip.name}; give each prompt once, or names in JSON")
        names.add(clip.name)
    return clips


@contextmanager
def as_file(source: str) -> Iterator[Path]:
    """The path of a picture or video; of a member of a tar file as long as the block lasts."""
    tar, inside, member = source.rpartition(INSIDE)
    if not inside:
        yield Path(source)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"member{Path(member).suffix}"
        try:
            with tarfile.open(tar) as shard:
                file = shard.extractfile(member)
                path.write_bytes(file.read() if file else b"")
        except (OSError, KeyError, tarfile.TarError) as error:
            raise MotionPromptError(f"cannot read {member} in {tar}; make the tar anew") from error
        yield path


def _of_object(entry: Any) -> Prompt:
    if isinstance(entry, str):
        return Prompt(entry.strip())
    name = entry.get("prompt_en")
    texts = entry.get("prompt", name), name, entry.get("image", entry.get("image_name")), entry.get("video")
    if not all(isinstance(text, str) or (text is None and place) for place, text in enumerate(texts)):
        raise TypeError("prompts and names of files are text")
    return Prompt(texts[0].strip(), *texts[1:])


def _of_shards(path: Path) -> Iterator[Prompt]:
    """A prompt of every sample: of the members that share a name up to its first dot."""
    for tar in sorted(path.glob("*.tar")) if path.is_dir() else [path]:
        samples: dict[str, dict[str, Any]] = {}
        with tarfile.open(tar) as shard:
            for member in shard:
                folder, _, file = member.name.rpartition("/")
                key, _, suffix = file.partition(".")
                sample = samples.setdefault(f"{folder}/{key}", {})
                content = shard.extractfile(member)
                if f".{suffix}" in PICTURES:
                    sample["image"] = f"{tar}{INSIDE}{member.name}"
                elif f".{suffix}" in SUFFIXES:
                    sample["video"] = f"{tar}{INSIDE}{member.name}"
                elif suffix == "txt" and content:
                    sample["prompt"] = content.read().decode()
                elif suffix == "json" and content:
                    told = json.loads(content.read())
                    sample.update({name: told[name] for name in ("prompt", "prompt_en") if name in told})
        for sample in samples.values():
            yield _of_object(sample)


def _found(
    prompt: Prompt, named: str | None, place: str | Path | None, beside: Path | None, suffixes: Sequence[str]
) -> str | None:
    """`place` where it is a file; else the file in it, or `beside` the list, that is `named`, or named as the clips."""
    if place is not None and Path(place).is_file():
        return str(place)
    if (named and INSIDE in named) or (place is None and not named):
        return named
    folder = Path(place if place is not None else beside or ".")
    own = (prompt.name or prompt.text).replace("/", " ")
    candidates = [folder / named] if named else [folder / f"{own}{suffix}" for suffix in suffixes]
    for path in candidates:
        if path.is_file():
            return str(path)
    raise MotionPromptError(f"no {candidates[0]}; give a file, or a folder with one named after each prompt")
