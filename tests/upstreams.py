"""What the tests on hosts' real code in third_party/ share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mp_hooks import patching
from mp_hooks.testing.doctor import copy_of


def needs(name: str) -> list[pytest.MarkDecorator]:
    """The marks of what runs on the tiny host `name`: that of its upstream, where it has one in third_party/."""
    return [pytest.mark.upstream(name)] if name in patching.names() else []


# Families of pipelines whose tests beyond the kit's core are fast: every way to call a denoiser is met in one of them.
FIRST = ("animatediff", "text-to-video-sd", "cogvideox", "wan", "ltx", "hunyuan-video15")


def slow(name: str) -> list[pytest.MarkDecorator]:
    """A mark for what is tested on the tiny host `name` where that is a further family."""
    first = not name.startswith("diffusers-") or name.removeprefix("diffusers-") in FIRST
    return [] if first else [pytest.mark.slow]


def unpatched(name: str, folder: Path) -> Path:
    """A copy, in the new `folder`, of a host's code in third_party/: unpatched, all committed to a git of its own."""
    manifest = patching.load(name)
    root = copy_of(manifest, patching.default_checkout(manifest), folder)
    patching.revert(manifest, root)
    commit_all(root)
    return root


def commit_all(root: Path) -> str:
    """Commit every file to a new repository in `root`; the commit."""
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    return git(root, "rev-parse", "HEAD").strip()


def git(root: Path, *arguments: str) -> str:
    """What git says to a command in `root`."""
    settings = ["-c", "core.autocrlf=false", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *settings, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
