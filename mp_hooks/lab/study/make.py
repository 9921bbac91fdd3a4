"""`study make`: a static site for blind side-by-side votes, and the key that only the tally reads."""

from __future__ import annotations

import html
import json
import secrets
import shutil
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.lab.metrics.evaluation import Groups
from mp_hooks.lab.study.ballots import STUDY_FILE
from mp_hooks.video import read_frames, video_info, write_video

QUESTION = "Which video is more coherent: steadier, without flicker, jumps or morphing?"
BLOCKS = 8  # squares along each side of a spoilt clip's frames


def key_file(site: Path) -> Path:
    """Where the key of a site is kept: beside it, so that it is not published with it."""
    return site.resolve().with_name(site.resolve().name + ".key.json")


def make(groups: Groups, site: Path, question: str = QUESTION, checks: int = 2, seed: int = 0) -> Path:
    """Write the site, and its key beside it; returns the key's path.

    The first of the two groups is the baseline. Clips get names that tell nothing. An attention check shows a clip
    beside itself with frames in disorder and pixelated, chosen by `seed`; answers to checks are in the key. Raises
    MotionPromptError for other than two groups, a clip that cannot be read, and a folder that is not new: a lost
    key makes its votes worthless.
    """
    if len(groups) != 2:
        raise MotionPromptError(f"a study compares two groups of clips, not {len(groups)}; give two folders")
    if key_file(site).exists() or (site.exists() and any(site.iterdir())):
        raise MotionPromptError(
            f"{site} holds something, or {key_file(site)} is another study's key; give a new folder"
        )
    for path in (path for clips in groups.values() for path in clips.values()):
        video_info(path)  # told before anything is written
    (site / "clips").mkdir(parents=True)
    baseline, other = groups
    trials, key = [], {}

    def add(pair: str, files: dict[str, str], right: str | None) -> None:
        trial = secrets.token_hex(8)
        trials.append({"id": trial, "clips": sorted(files.values())})
        key[trial] = {"pair": pair, "clips": {file: group for group, file in files.items()}, "check": right}

    for pair in groups[baseline]:
        add(pair, {group: _publish(groups[group][pair], site) for group in (baseline, other)}, None)
    generator = torch.Generator().manual_seed(seed)
    pairs = list(groups[other])
    for number in torch.randperm(len(pairs), generator=generator)[:checks].tolist():
        path = groups[other][pairs[number]]
        whole, spoilt = _publish(path, site), _new_clip(site)
        write_video(spoilt, _spoil(read_frames(path), generator), video_info(path).fps)
        add(pairs[number], {"whole": whole, "spoilt": spoilt.name}, whole)
    study = {
        "study": secrets.token_hex(8),
        "question": question,
        "trials": sorted(trials, key=lambda trial: trial["id"]),
    }
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # in a script element "<" could end it; the question also stands in the markup
    page = page.replace("{{study}}", json.dumps(study).replace("<", "\\u003c")).replace(
        "{{question}}", html.escape(question)
    )
    secret = {"study": study["study"], "baseline": baseline, "other": other, "trials": key}
    for path, text in (
        (site / STUDY_FILE, json.dumps(study)),
        (site / "index.html", page),
        (key_file(site), json.dumps(secret, indent=1)),
    ):
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return key_file(site)


def _new_clip(site: Path) -> Path:
    return site / "clips" / f"{secrets.token_hex(8)}.mp4"


def _publish(path: Path, site: Path) -> str:
    """A clip under a new name; what browsers do not play is encoded anew. Returns the name."""
    target = _new_clip(site)
    if _browsers_play(path):
        shutil.copyfile(path, target)
    else:
        write_video(target, read_frames(path), video_info(path).fps)
    return target.name


def _browsers_play(path: Path) -> bool:
    """Whether every browser plays it: H.264 with halved chroma, in mp4."""
    import av

    if path.suffix.lower() != ".mp4":
        return False
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.name == "h264" and context.pix_fmt in ("yuv420p", "yuvj420p")


def _spoil(frames: Tensor, generator: torch.Generator) -> Tensor:
    """The same clip in disorder and pixelated, plainly the worse one."""
    frames = frames[torch.randperm(len(frames), generator=generator)]
    small = torch.nn.functional.interpolate(frames.float(), (BLOCKS, BLOCKS), mode="area")
    return torch.nn.functional.interpolate(small, frames.shape[-2:], mode="nearest").round().byte()
