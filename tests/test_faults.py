"""A short run of each part of scripts/soak.sh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_mp_patch_killed_at_random_moments(tmp_path: Path) -> None:
    """In a process of its own, because what forks must have no threads."""
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "20", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "0 lost" in ended.stdout
