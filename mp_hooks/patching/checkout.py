"""The operations on a host's checkout: status, diff, apply, revert.

Every operation works out all new contents first and refuses before the first byte is written. All are then written
into a working folder of ours, so that a full disk is met before anything is replaced, and renamed from there one after
the other. The folder goes last: one that is found belongs to an operation that was killed, which the next one, `status`
too, undoes before it does anything else. So a checkout is untouched or patched whole.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mp_hooks.errors import MotionPromptError
from mp_hooks.patching.edit import apply_edits, count_applied, count_former, remove_edits
from mp_hooks.patching.manifest import Manifest, PatchedFile

UNPATCHED, PATCHED, HALF_PATCHED, OUTDATED = "unpatched", "patched", "half patched", "patched by an earlier mp_hooks"
WORK = ".mp-patch"  # in the checkout, while files are being replaced
PATIENCE = 60.0  # seconds to wait for another mp-patch
OURS = b"motionprompt"  # in every line that we add to a host's Python code


@dataclass(frozen=True)
class FileStatus:
    """One file: how many of its edits are made, and what it is apart from them.

    former: how many are made as an earlier version of ours made them. otherwise: "as pinned", "with other changes" (its
    edits still have their places) or "another version". runs: False for a shell script with Windows' line endings
    (CRLF), which bash cannot run.
    """

    path: str
    applied: int
    former: int
    total: int
    otherwise: str
    runs: bool

    @property
    def state(self) -> str:
        if self.applied == self.total:
            return PATCHED
        if self.applied + self.former == self.total:
            return OUTDATED
        return HALF_PATCHED if self.applied or self.former else UNPATCHED

    def __str__(self) -> str:
        return f"{self.path}: {self.state} ({self.applied} of {self.total} edits), {self.otherwise}"


@dataclass(frozen=True)
class Status:
    """A checkout: `unpatched`, `patched`, `patched by an earlier mp_hooks`, or by someone's own edit `half patched`."""

    files: tuple[FileStatus, ...]

    @property
    def state(self) -> str:
        states = {file.state for file in self.files}
        if states == {PATCHED, OUTDATED}:
            return OUTDATED
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
    with _alone(manifest, repo) as root:
        return _status(manifest, root)


def diff(manifest: Manifest, repo: str | Path, *, force: bool = False) -> str:
    """What `apply` would change, as a unified diff; empty when nothing. Raises as `apply` does."""
    with _alone(manifest, repo) as root:
        return "".join(_diff(change) for change in _plan_apply(manifest, root, force))


def apply(manifest: Manifest, repo: str | Path, *, force: bool = False) -> Status:
    """Make every edit that is missing; a checkout that has them all is left alone.

    force: also edit files whose sha256 is unknown, wherever each anchor is found exactly once. Raises
    MotionPromptError, with the checkout as it was, when that is not so or a file cannot be written.
    """
    with _alone(manifest, repo) as root:
        _write(root, _plan_apply(manifest, root, force))
        return _status(manifest, root)


def revert(manifest: Manifest, repo: str | Path) -> Status:
    """Take our text out again and leave every other change where it is."""
    with _alone(manifest, repo) as root:
        _write(root, _plan_revert(manifest, root))
        return _status(manifest, root)


def require_patched(manifest: Manifest, repo: str | Path) -> None:
    """Raise MotionPromptError unless every edit is in place."""
    found = status(manifest, repo)
    if found.state != PATCHED:
        raise MotionPromptError(f"{repo} is {found.state}; run: {completing(manifest, repo, found)}")


def completing(manifest: Manifest, repo: str | Path, found: Status) -> str:
    """The command that makes the edits that are missing in a checkout of this status, to be pasted."""
    return f"mp-patch {manifest.name} --repo {quote(str(repo))}" + ("" if found.is_as_pinned else " --force")


def _status(manifest: Manifest, root: Path) -> Status:
    return Status(tuple(_file_status(file, _read(root / file.path)) for file in manifest.files))


def _plan_apply(manifest: Manifest, root: Path, force: bool) -> list[Change]:
    def patched(file: PatchedFile, data: bytes) -> bytes:
        if count_applied(data, file.edits) == len(file.edits):
            return data
        rest = remove_edits(data, file.edits)
        if not file.is_pristine(rest):
            # Beside a line of ours that is not known any more, the one that replaced it would stand a second time.
            if OURS in rest:
                raise MotionPromptError(
                    f"'{OURS.decode()}' stands in lines that this version did not add; take them out with the "
                    f"mp_hooks that added them, or by hand"
                )
            if not force:
                raise MotionPromptError(
                    f"its sha256 is not that of commit {manifest.commit[:7]}; check out that commit, or add --force "
                    f"to make the edits wherever their lines are found"
                )
        return apply_edits(data, file.edits)

    return _plan(root, manifest.files, patched)


def _plan_revert(manifest: Manifest, root: Path) -> list[Change]:
    # In reverse, so that a revert cut short fails as loudly as an apply (see the manifest's order).
    return _plan(root, manifest.files[::-1], lambda file, data: remove_edits(data, file.edits))


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
                raise MotionPromptError(f"it is read-only; allow writing with: chmod u+w {quote(str(path))}")
            if _parses(file.path, before) and not _parses(file.path, after):
                raise MotionPromptError("it would no longer parse, so nothing was changed; undo your own changes in it")
        changes.append(Change(path, file.path, before, after))
    return changes


def _write(root: Path, changes: Sequence[Change]) -> None:
    """Write all new contents into the working folder, then rename them to their places; if one cannot be, all go back.

    Where a working folder is there already, an operation that was killed is being undone: it then stays on failure.
    """
    if not changes:
        return
    work = root / WORK
    found = work.is_dir()
    replaced: list[Change] = []
    try:
        work.mkdir(exist_ok=True)
        staged = [_stage(work / str(number), change.path, change.after) for number, change in enumerate(changes)]
        for path, change in zip(staged, changes, strict=True):
            if _read(change.path) != change.before:
                raise MotionPromptError(f"{change.name} was changed by someone else meanwhile; try again")
            replaced.append(change)
            path.replace(change.path)
    except BaseException as error:
        with suppress(OSError):  # where that is not possible either, the folder stays for the next mp-patch
            for change in replaced:
                if _read(change.path) == change.after:
                    _stage(work / "before", change.path, change.before).replace(change.path)
            if not found:
                shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            raise MotionPromptError(f"cannot write in {root}: {error.strerror}; make room or allow writing") from error
        raise
    shutil.rmtree(work, ignore_errors=True)


def _stage(path: Path, target: Path, data: bytes) -> Path:
    """Write `data`, through to the disk, into a file with the permissions of `target`."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(target.stat().st_mode & 0o7777)
    return path


def _file_status(file: PatchedFile, data: bytes) -> FileStatus:
    with _naming(file):
        applied, former = count_applied(data, file.edits), count_former(data, file.edits)
        if file.is_pristine(remove_edits(data, file.edits)):
            otherwise = "as pinned"
        else:
            try:
                apply_edits(data, file.edits)
                otherwise = "with other changes"
            except MotionPromptError:
                otherwise = "another version"
    runs = not (file.path.endswith(".sh") and b"\r\n" in data)
    return FileStatus(file.path, applied, former, len(file.edits), otherwise, runs)


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
def _alone(manifest: Manifest, repo: str | Path) -> Iterator[Path]:
    """The checkout's real folder, while no other mp-patch is at work on it and none is left half done."""
    root = _root(manifest, repo)
    with locked(root):
        if (root / WORK).is_dir():
            try:
                if _status(manifest, root).state != PATCHED:
                    _write(root, _plan_revert(manifest, root))
            except MotionPromptError as error:
                raise MotionPromptError(f"an mp-patch was cut short here and cannot be undone yet: {error}") from error
            shutil.rmtree(root / WORK, ignore_errors=True)
        yield root


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Wait for another mp-patch on the same folder to end. The lock leaves no file and dies with its process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock on a folder
        yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    given_up = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > given_up:
                    raise MotionPromptError(f"another mp-patch is at work on {root}; wait for it to end") from error
                time.sleep(0.05)
                continue
            except OSError:  # some network file systems lock no folders; there, two at once are the user's to avoid
                pass
            break
        yield
    finally:
        os.close(descriptor)


def _parses(name: str, data: bytes) -> bool:
    """Whether a Python file compiles or a shell script is read by bash (taken on trust where none can be run)."""
    if name.endswith(".py"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(data, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
    bash = shutil.which("bash")
    if name.endswith(".sh") and bash:
        with suppress(OSError):
            return subprocess.run([bash, "-n"], input=data, capture_output=True).returncode == 0
    return True


def _diff(change: Change) -> str:
    before, after = (data.decode(errors="replace").splitlines() for data in (change.before, change.after))
    lines = difflib.unified_diff(before, after, f"a/{change.name}", f"b/{change.name}", n=1, lineterm="")
    return "".join(f"{line}\n" for line in lines)
