"""The operations on a host's checkout: status, diff, apply, revert.

Every operation works out all new contents first and refuses before the first byte is written. All are then written
to temporary files, so that a full disk is met before anything is replaced, and renamed one after the other.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.patching.edit import apply_edits, count_applied, remove_edits
from mp_hooks.patching.manifest import Manifest, PatchedFile

UNPATCHED, PATCHED, HALF_PATCHED = "unpatched", "patched", "half patched"


@dataclass(frozen=True)
class FileStatus:
    """One file: how many of its edits are made, and what it is apart from them.

    otherwise: "as pinned", "with other changes" (its edits still have their places) or "another version".
    """

    path: str
    applied: int
    total: int
    otherwise: str

    @property
    def state(self) -> str:
        return PATCHED if self.applied == self.total else HALF_PATCHED if self.applied else UNPATCHED

    def __str__(self) -> str:
        return f"{self.path}: {self.state} ({self.applied} of {self.total} edits), {self.otherwise}"


@dataclass(frozen=True)
class Status:
    """A checkout: whole (`patched` or `unpatched`) or `half patched`."""

    files: tuple[FileStatus, ...]

    @property
    def state(self) -> str:
        states = {file.state for file in self.files}
        return states.pop() if len(states) == 1 else HALF_PATCHED

    @property
    def is_as_pinned(self) -> bool:
        """Whether nothing but our edits tells the files from upstream's."""
        return all(file.otherwise == "as pinned" for file in self.files)


@dataclass(frozen=True)
class Change:
    """The new content of a file that has to change."""

    path: Path
    name: str
    before: bytes
    after: bytes


def status(manifest: Manifest, repo: str | Path) -> Status:
    """What the checkout is; raises MotionPromptError when `repo` is no checkout of this host."""
    root = _root(manifest, repo)
    return Status(tuple(_file_status(file, _read(root / file.path)) for file in manifest.files))


def diff(manifest: Manifest, repo: str | Path, *, force: bool = False) -> str:
    """What `apply` would change, as a unified diff; empty when nothing. Raises as `apply` does."""
    return "".join(_diff(change) for change in _plan_apply(manifest, _root(manifest, repo), force))


def apply(manifest: Manifest, repo: str | Path, *, force: bool = False) -> Status:
    """Make every edit that is missing; a checkout that has them all is left alone.

    force: also edit files whose sha256 is unknown, wherever each anchor is found exactly once. Raises
    MotionPromptError, with the checkout as it was, when that is not so or a file cannot be written.
    """
    root = _root(manifest, repo)
    with _locked(root):
        _write(_plan_apply(manifest, root, force))
        require_patched(manifest, root)
        return status(manifest, root)


def revert(manifest: Manifest, repo: str | Path) -> Status:
    """Take our text out again and leave every other change where it is."""
    root = _root(manifest, repo)
    with _locked(root):
        # In reverse, so that a revert cut short fails as loudly as an apply (see the manifest's order).
        _write(_plan(root, manifest.files[::-1], lambda file, data: remove_edits(data, file.edits)))
        return status(manifest, root)


def require_patched(manifest: Manifest, repo: str | Path) -> None:
    """Raise MotionPromptError unless every edit is in place."""
    state = status(manifest, repo).state
    if state != PATCHED:
        raise MotionPromptError(f"{repo} is {state}; run: mp-patch {manifest.name} --repo {repo}")


def _plan_apply(manifest: Manifest, root: Path, force: bool) -> list[Change]:
    def patched(file: PatchedFile, data: bytes) -> bytes:
        if count_applied(data, file.edits) == len(file.edits):
            return data
        if not force and not file.is_pristine(remove_edits(data, file.edits)):
            raise MotionPromptError(
                f"its sha256 is not that of commit {manifest.commit[:7]}; check out that commit, or add --force to "
                f"make the edits wherever their lines are found"
            )
        return apply_edits(data, file.edits)

    return _plan(root, manifest.files, patched)


def _plan(root: Path, files: Sequence[PatchedFile], edited: Callable[[PatchedFile, bytes], bytes]) -> list[Change]:
    """The files that `edited` changes; refuses here what could not be written or would not run."""
    changes = []
    for file in files:
        path = root / file.path
        with _naming(file):
            before = _read(path)
            after = edited(file, before)
            if after == before:
                continue
            if not path.stat().st_mode & stat.S_IWUSR:
                raise MotionPromptError(f"it is read-only; allow writing with: chmod u+w {path}")
            if _parses(file.path, before) and not _parses(file.path, after):
                raise MotionPromptError("it would no longer parse, so nothing was changed; undo your own changes in it")
        changes.append(Change(path, file.path, before, after))
    return changes


def _write(changes: Sequence[Change]) -> None:
    """Write all new contents to temporary files, then rename these; if one cannot be, put the earlier ones back."""
    try:
        with ExitStack() as stack:
            # The stack unwinds from its end, so that the renames come in the order of `changes`.
            for change in reversed(changes):
                stack.enter_context(replacing(change.path)).write_bytes(change.after)
            for change in changes:
                if _read(change.path) != change.before:
                    raise MotionPromptError(f"{change.name} was changed by someone else meanwhile; try again")
    except BaseException:
        for change in changes:
            if _read(change.path) == change.after:
                with replacing(change.path) as temporary:
                    temporary.write_bytes(change.before)
        raise


def _file_status(file: PatchedFile, data: bytes) -> FileStatus:
    with _naming(file):
        applied = count_applied(data, file.edits)
        if file.is_pristine(remove_edits(data, file.edits)):
            otherwise = "as pinned"
        else:
            try:
                apply_edits(data, file.edits)
                otherwise = "with other changes"
            except MotionPromptError:
                otherwise = "another version"
    return FileStatus(file.path, applied, len(file.edits), otherwise)


def _root(manifest: Manifest, repo: str | Path) -> Path:
    """The checkout's real folder, if every file is there and really inside it."""
    root = Path(repo).expanduser().resolve()
    if not root.is_dir():
        raise MotionPromptError(f"there is no folder {repo}; give the checkout of {manifest.title} with --repo DIR")
    for file in manifest.files:
        path = root / file.path
        if not path.is_file():
            raise MotionPromptError(f"{repo} is not a checkout of {manifest.title}: it has no {file.path}")
        # Writing through a link would edit some other checkout, replacing the link would part the two.
        if path.resolve() != path:
            raise MotionPromptError(
                f"{path} is reached through a symbolic link; give the checkout it leads to with --repo DIR"
            )
    return root


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MotionPromptError(f"cannot read {path}: {error.strerror}") from error


@contextmanager
def _naming(file: PatchedFile) -> Iterator[None]:
    """Put the file's name before an error about its content."""
    try:
        yield
    except MotionPromptError as error:
        raise MotionPromptError(f"{file.path}: {error}") from error


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Wait for another mp-patch on the same checkout to end. The lock leaves no file and dies with its process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock on a folder
        yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    try:
        # Some network file systems lock no folders; there two mp-patch at once are the user's to avoid.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parses(name: str, data: bytes) -> bool:
    """Whether a Python file compiles or a shell script is read by bash (taken on trust where there is no bash)."""
    if name.endswith(".py"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(data, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
    bash = shutil.which("bash")
    if name.endswith(".sh") and bash:
        return subprocess.run([bash, "-n"], input=data, capture_output=True).returncode == 0
    return True


def _diff(change: Change) -> str:
    before, after = (data.decode(errors="replace").splitlines() for data in (change.before, change.after))
    lines = difflib.unified_diff(before, after, f"a/{change.name}", f"b/{change.name}", n=1, lineterm="")
    return "".join(f"{line}\n" for line in lines)
