"""The folder of a run: what decides its results, and the versions that made them, stand in a file in it."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mp_hooks import __version__
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing

PACKAGES = ("torchvision", "diffusers", "transformers", "open_clip_torch", "pytorch-lightning", "xformers")


def versions() -> dict[str, str]:
    """{name: version} of mp_hooks, Python, torch, and what is installed of the packages that results depend on."""
    import torch

    found = {"mp_hooks": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def save_configuration(folder: Path, config: MotionPromptConfig, **facts: str) -> None:
    """Keep what guided a run's videos beside them: config.yaml, and versions.txt with a line "NAME VALUE" a fact."""
    config.save(folder / "config.yaml")
    lines = [f"{name} {value}\n" for name, value in {**versions(), **facts}.items()]
    with replacing(folder / "versions.txt") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def claim(
    record: Path, settings: Mapping[str, Any], *, begun: bool | None = None, may_change: Collection[str] = ()
) -> None:
    """Make the folder of the file `record` the one of a run with these settings, or find that it is.

    settings: {name: JSON value}, of which mappings are compared option by option; options of a folder that this run
    does not have do not count. begun: whether the run must have been begun (True) or the folder be empty (False).
    may_change: options, "PART.NAME" in a mapping, that results already there do not depend on. Raises
    MotionPromptError for any other folder.
    """
    folder = record.parent
    settings = json.loads(json.dumps(settings))
    if begun is False and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MotionPromptError(f"{folder} already holds a run, or other files; add --resume, or give another folder")
    if record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise MotionPromptError(f"{record} cannot be read; give another folder")
        changed = _changed(before, settings)
        if refused := [name for name in changed if name not in may_change]:
            raise MotionPromptError(
                f"{folder} was begun with other settings ({', '.join(refused)}); repeat those, or give another folder"
            )
        if not changed:
            return
    elif begun:
        raise MotionPromptError(f"nothing to resume in {folder}: {record.name} is missing; leave --resume out")
    with replacing(record) as temporary:
        temporary.write_text(json.dumps({**settings, "versions": versions()}, indent=2) + "\n", encoding="utf-8")


def _changed(before: Any, now: Any, name: str = "") -> list[str]:
    """Names of the options that differ, those in mappings as "PART.NAME"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        parts = ((f"{name}.{key}" if name else key, before.get(key), value) for key, value in now.items())
        return [option for part, was, value in parts for option in _changed(was, value, part)]
    return [] if before == now else [name]
