"""What is built from a clone: everything of the package is in it, and its commands start at once."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def build(what: str, source: Path, out: Path) -> Path:
    """A wheel or sdist of `source` in `out`."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{what}(sys.argv[1])"
    run(sys.executable, "-c", code, str(out), cwd=source)
    (built,) = out.glob("*.whl" if what == "wheel" else "*.tar.gz")
    return built


@pytest.mark.slow
def test_a_wheel_of_the_sdist_holds_every_file_and_its_commands_run(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="70.1", reason="needs a setuptools that builds wheels by itself")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone of the repository")
    run("git", "clone", "-q", str(ROOT), "clone", cwd=tmp_path)
    sdist = build("sdist", tmp_path / "clone", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    wheel = build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)

    tracked = run("git", "ls-files", "mp_hooks", "patches", "comfyui", cwd=tmp_path / "clone").splitlines()
    wanted = {f"mp_hooks/_{name}" if name.startswith(("patches/", "comfyui/")) else name for name in tracked}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= held
    assert {name for name in held if not name.startswith("mp_hooks-")} == wanted

    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    for command, told in (("main", "usage: motionprompt"), ("patch", "usage: mp-patch")):
        code = (
            f"import sys; sys.path.insert(0, 'installed'); sys.argv = ['{told.split()[-1]}', '--help']\n"
            f"import mp_hooks; assert 'installed' in mp_hooks.__file__\n"
            f"from mp_hooks.cli.{command} import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules"
        )
        assert told in run(sys.executable, "-c", code, cwd=tmp_path)
