"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mp_hooks.errors import MotionPromptError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed onto it on success, removed on failure.

    The temporary name keeps the suffix of `path`, which video and image writers go by. An existing
    file's permission bits are kept. Raises MotionPromptError when the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise MotionPromptError(f"cannot write {path}: {error.strerror}; choose another place or make room") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise MotionPromptError(f"cannot write {path}: {error.strerror}; choose another place or make room") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed processes left of `path` under the temporary names of `replacing`; no other may write it."""
    path = Path(path)
    left = re.compile(rf"\.{re.escape(path.stem)}-[a-z0-9_]{{8}}{re.escape(path.suffix)}")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if left.fullmatch(other.name):
            other.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
