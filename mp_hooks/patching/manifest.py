"""What mp-patch knows about a host: patches/<name>/manifest.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.patching.edit import PLACES, Edit

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class PatchedFile:
    """A file of the host, `path` relative to the checkout, and our edits in it."""

    path: str
    sha256: str
    edits: tuple[Edit, ...]

    def is_pristine(self, data: bytes) -> bool:
        """Whether `data` is upstream's file, whatever newlines the checkout gave it."""
        unix = data.replace(b"\r\n", b"\n")
        return any(sha256(form).hexdigest() == self.sha256 for form in (data, unix, unix.replace(b"\n", b"\r\n")))


@dataclass(frozen=True)
class Script:
    """What the patched entry has to know of the host's script.

    seed, output: names of its arguments that hold the seed and the folder of the videos; None where no argument does.
    files: names of arguments that must be files which exist. shims: what of `mp_hooks.compat` the host may need on
    today's libraries.
    """

    seed: str | None
    output: str | None
    files: tuple[str, ...]
    shims: tuple[str, ...]


@dataclass(frozen=True)
class Upstream:
    """A host: where its pinned code is had, where it is put and how it is run.

    folder: the submodule, relative to the repository. run: the command to show, relative to the checkout.
    """

    name: str
    title: str
    url: str
    commit: str
    folder: str
    run: str


@dataclass(frozen=True)
class Manifest(Upstream):
    """A host with scripts: what is edited, and the arguments of the entry that is."""

    script: Script
    files: tuple[PatchedFile, ...]

    def checkout_of(self, path: Path) -> Path:
        """The checkout in which `path` is one of the files that are edited; MotionPromptError if it is none."""
        for file in self.files:
            if path.as_posix().endswith("/" + file.path):
                return path.parents[len(PurePosixPath(file.path).parts) - 1]
        raise MotionPromptError(f"{path} is no file that mp-patch {self.name} edits; patch the checkout it is in")


def source_root() -> Path | None:
    """The repository mp_hooks runs from; None where it was installed as a wheel."""
    root = _PACKAGE.parent
    return None if (_PACKAGE / "_patches").is_dir() or not (root / "patches").is_dir() else root


def default_checkout(upstream: Upstream) -> Path:
    """Where the host goes without --repo: third_party/ of the repository, of the current folder for a wheel."""
    return (source_root() or Path.cwd()) / upstream.folder


def names() -> list[str]:
    """The hosts that have a manifest."""
    return sorted(path.parent.name for path in _patches().glob("*/manifest.yaml"))


def load(name: str) -> Manifest:
    """The manifest of host `name`; an unknown name is a MotionPromptError that lists the valid ones."""
    if name not in names():
        raise unknown_name("host", name, names())
    return read(_patches() / name / "manifest.yaml")


def requirements(name: str) -> Path:
    """The file of libraries that host `name` was tested with, for pip install -r."""
    return _patches() / name / "requirements.txt"


def read(path: Path) -> Manifest:
    """Read and check one manifest; raises MotionPromptError that names the file and the fault."""
    try:
        return _manifest(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise MotionPromptError(f"cannot read the manifest {path}: {' '.join(str(error).split())[:500]}") from error
    except MotionPromptError as error:
        raise MotionPromptError(f"faulty manifest {path}: {error}") from error


def packaged(folder: str) -> Path:
    """A folder at the top of the repository, which a wheel holds inside the package."""
    root = source_root()
    return root / folder if root else _PACKAGE / f"_{folder}"


def _patches() -> Path:
    return packaged("patches")


def _manifest(tree: Any) -> Manifest:
    text = ["name", "title", "url", "commit", "folder", "run"]
    fields = _fields(tree, "the manifest", text, lists=["files"], mappings=["script"])
    if not re.fullmatch(r"[0-9a-f]{40}", fields["commit"]):
        raise MotionPromptError("commit must be the 40 hex digits of a commit")
    if not fields["url"].startswith("https://"):
        raise MotionPromptError("url must start with https://")
    _inside(fields["folder"])
    files = tuple(_file(entry) for entry in fields.pop("files"))
    if len({file.path for file in files}) != len(files):
        raise MotionPromptError("a file is listed twice")
    script = _fields(fields.pop("script"), "script", optional=["seed", "output"], lists=["files", "shims"])
    script.update(files=tuple(script["files"]), shims=tuple(script["shims"]))
    return Manifest(**fields, script=Script(**script), files=files)


def _file(tree: Any) -> PatchedFile:
    fields = _fields(tree, "a file", text=["path", "sha256"], lists=["edits"])
    _inside(fields["path"])
    if not re.fullmatch(r"[0-9a-f]{64}", fields["sha256"]):
        raise MotionPromptError(f"sha256 of {fields['path']} must be 64 hex digits")
    edits = tuple(_edit(entry) for entry in fields["edits"])
    if len({edit.insert.strip() for edit in edits if edit.place != "end"}) != sum(e.place != "end" for e in edits):
        raise MotionPromptError(f"{fields['path']} has the same line inserted twice, which cannot be told apart")
    return PatchedFile(fields["path"], fields["sha256"], edits)


def _edit(tree: Any) -> Edit:
    lists = ["formerly"] if isinstance(tree, Mapping) and "formerly" in tree else []
    fields = _fields(tree, "an edit", text=["place", "anchor", "insert"], lists=lists)
    if fields["place"] not in PLACES:
        raise unknown_name("place", fields["place"], list(PLACES))
    former = fields.get("formerly", [])
    for text in (fields["anchor"], fields["insert"], *former):
        if not isinstance(text, str) or not text.strip() or len(text.splitlines()) != 1:
            raise MotionPromptError("anchor, insert and what was inserted formerly must each be one line, not blank")
    return Edit(
        fields["place"], fields["anchor"].encode(), fields["insert"].encode(), tuple(text.encode() for text in former)
    )


def _fields(
    tree: Any,
    what: str,
    text: Sequence[str] = (),
    optional: Sequence[str] = (),
    lists: Sequence[str] = (),
    mappings: Sequence[str] = (),
) -> dict[str, Any]:
    """`tree` as a dictionary with exactly these keys: strings, strings or null, non-empty lists, mappings."""
    keys = [*text, *optional, *lists, *mappings]
    if not isinstance(tree, Mapping) or set(tree) != set(keys):
        raise MotionPromptError(f"{what} must have the keys {', '.join(keys)} and no others")
    for key in [*text, *(key for key in optional if tree[key] is not None)]:
        if not isinstance(tree[key], str) or not tree[key]:
            raise MotionPromptError(f"{key} of {what} must be text")
    for key in lists:
        if not isinstance(tree[key], list) or not tree[key]:
            raise MotionPromptError(f"{key} of {what} must be a list with something in it")
    return dict(tree)


def _inside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in path or ":" in path or "\0" in path:
        raise MotionPromptError(f"'{path}' must be a path inside the checkout")
