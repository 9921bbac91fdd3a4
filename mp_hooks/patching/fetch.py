"""Getting a host: its pinned commit, one deep, without demo videos, all of it or nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from mp_hooks.errors import MotionPromptError
from mp_hooks.patching.checkout import locked
from mp_hooks.patching.manifest import Upstream

# LaVie and DynamiCrafter carry tens of MB of demo media that no code reads, ComfyUI a tokenizer of 9 MB for models that
# have no adapter here.
_WANTED = ["/*", "!*.gif", "!*.mp4", "!/comfy/text_encoders/llama_tokenizer/tokenizer.json"]


def is_present(folder: Path) -> bool:
    """Whether something is there; the folder of a submodule never initialised is empty."""
    return folder.is_dir() and any(folder.iterdir())


def fetch(upstream: Upstream, folder: Path, timeout: float | None = None) -> None:
    """Put the pinned commit of `upstream` into `folder`, unless something is there already.

    Built beside `folder` and renamed onto it, so that an interrupted fetch never looks like a checkout; what a killed
    one has left beside it is removed. timeout: seconds for each of git's steps. Raises MotionPromptError with git's own
    words.
    """
    if is_present(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent):
            for left in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                _get(upstream, building, timeout)
                # Renaming onto an empty folder succeeds; onto a checkout that came meanwhile, it must not.
                building.rename(folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except (_GitError, OSError) as error:
        if is_present(folder):
            return
        raise MotionPromptError(
            f"could not get {upstream.title} from {upstream.url} ({error}); "
            f"clone it yourself and run: mp-patch {upstream.name} --repo DIR"
        ) from error


def _get(upstream: Upstream, folder: Path, timeout: float | None) -> None:
    folder.chmod(0o755)
    _git(folder, "init", "--quiet", timeout=timeout)
    _git(folder, "remote", "add", "origin", upstream.url, timeout=timeout)
    _git(folder, "sparse-checkout", "set", "--no-cone", *_WANTED, timeout=timeout)
    _git(folder, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", upstream.commit, timeout=timeout)
    _git(folder, "-c", "advice.detachedHead=false", "checkout", "--quiet", upstream.commit, timeout=timeout)


class _GitError(Exception):
    pass


def _git(folder: Path, *arguments: str, timeout: float | None) -> None:
    # git passes these on to hooks and aliases; set, they would point our commands at another repository.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    }
    environment["GIT_TERMINAL_PROMPT"] = "0"
    try:
        process = subprocess.Popen(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _GitError("git is not installed") from error
    try:
        _, said = process.communicate(timeout=timeout)
    except BaseException as error:
        # The transfer runs in a grandchild, which killing git alone would leave behind.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise _GitError(f"no answer within {timeout:g} s") from error
        raise
    if process.returncode:
        raise _GitError(" ".join(said.decode(errors="replace").split()) or f"git {arguments[0]} failed")
