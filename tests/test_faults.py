"""A short run of each part of scripts/soak.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from injections import inject

from mp_hooks import patching
from mp_hooks.testing import ConformanceSuite
from mp_hooks.testing.diffusers import AnimateDiffCase
from mp_hooks.testing.videocrafter import VideoCrafterCase


@pytest.mark.skipif(sys.platform == "win32", reason="no fork, no alarm")
@pytest.mark.parametrize(("script", "arguments"), [("kills", ["--kills", "20"]), ("fuzz", ["--inputs", "300"])])
def test_nothing_is_lost(script: str, arguments: list[str]) -> None:
    """In a process of its own: what forks must have no threads, and who watches for files must be alone."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *arguments, "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert " 0 lost" in ended.stdout


class Faulted:
    """A case whose host has been through faults before the kit meets it."""

    faults = int(os.environ.get("MP_FAULTS", "6"))

    @contextmanager
    def open(self) -> Iterator[Any]:
        with super().open() as host:
            figures = inject(self, host, self.faults, seed=int(os.environ.get("MP_SEED", "0")))
            print(f"\n{self.faults} faults injected into {self.name}: {dict(sorted(figures.items()))}")
            yield host


class FaultedAnimateDiff(Faulted, AnimateDiffCase):
    pass


class FaultedVideoCrafter(Faulted, VideoCrafterCase):
    pass


class TestAnimateDiffAfterFaults(ConformanceSuite):
    case = FaultedAnimateDiff()


@pytest.mark.slow
@pytest.mark.upstream("videocrafter2")
class TestVideoCrafterAfterFaults(ConformanceSuite):
    case = FaultedVideoCrafter(patching.default_checkout(patching.load("videocrafter2")))
