"""Does a host run on this machine? Its own command on tiny random weights, without guidance and with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from mp_hooks import patching
from mp_hooks.compat import needed
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing import Command, tiny
from mp_hooks.video import find_videos

GUIDANCE = ["--motionprompt", "--mp-start", "0.25", "--mp-stop", "0.75", "--no-mp-progress"]  # two of four steps
LARGEST = 10 * 2**20  # bytes; what is larger in a checkout is weights or media, which tiny weights stand in for


@dataclass(frozen=True)
class Outcome:
    """One run of a command: wall time, its processes' peak resident size in bytes, how many videos it wrote."""

    seconds: float
    memory: int
    videos: int


@dataclass(frozen=True)
class Checkup:
    """What was found. updates, skipped: of the tokens, in the guided run. cuda_memory: its peak in bytes, 0 without."""

    device: str
    shims: list[str]
    plain: Outcome
    guided: Outcome
    updates: int
    skipped: int
    cuda_memory: int


def check_up(name: str, folder: Path, repo: Path | None = None, device: str | None = None) -> Checkup:
    """Build host `name` in the empty `folder` and run it twice.

    repo: the checkout to copy the host's code from, the one in third_party/ unless given; it is not touched. device:
    "cuda" or "cpu", CUDA where there is any unless given. Raises MotionPromptError with the last words of what failed.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkout, shims = None, []
    if name in patching.names():
        manifest = patching.load(name)
        checkout = copy_of(manifest, repo or patching.default_checkout(manifest), folder / "host")
        patching.apply(manifest, checkout)
        with quiet():
            shims = needed(manifest.script.shims, device)
    elif repo is not None:
        raise MotionPromptError(f"{name} is a library, not a checkout; leave --repo out")
    (folder / "tiny").mkdir()
    with quiet():
        command = tiny(name, checkout).command(folder / "tiny")
    plain = run(command, ["--mp-device", device])
    guided = run(command, ["--mp-device", device, *GUIDANCE])
    trace = read_trace(command.results / "motionprompt" / "trace.jsonl")
    iterations = [record for record in trace if record["event"] == "iteration"]
    updated = [one for record in iterations for one in record["updated"]]
    return Checkup(
        device=device,
        shims=shims,
        plain=plain,
        guided=guided,
        updates=sum(updated),
        skipped=len(updated) - sum(updated),
        cuda_memory=max(record["peak_memory"] for record in iterations) if device == "cuda" else 0,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what hosts and libraries say while they are imported and built is shown."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def copy_of(manifest: patching.Manifest, repo: Path, folder: Path) -> Path:
    """A copy of a checkout's code in the new `folder`, without its history, weights and results."""
    if not patching.is_present(repo):
        raise MotionPromptError(
            f"no checkout of {manifest.title} in {repo}; get one with: mp-patch {manifest.name}, or give --repo DIR"
        )

    def unwanted(where: str, names: list[str]) -> set[str]:
        files = [path for path in map(Path(where).joinpath, names) if path.is_file()]
        large = {path.name for path in files if path.stat().st_size > LARGEST}
        return large | ({".git", "results", "__pycache__"} & set(names))

    shutil.copytree(repo, folder, ignore=unwanted, ignore_dangling_symlinks=True)
    return folder


def run(command: Command, arguments: Sequence[str]) -> Outcome:
    """Run a host's command to its end. Raises MotionPromptError with its last words if that was a bad one."""
    began, log = time.perf_counter(), command.folder / "motionprompt-doctor.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command.script, *command.options, *arguments],
            cwd=command.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    said = log.read_text(encoding="utf-8", errors="replace").split("\n")
    log.unlink()
    if process.returncode:
        print("\n".join(said[-30:]), file=sys.stderr)
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing was said")
        raise MotionPromptError(f"it does not run here (exit code {process.returncode}): {last}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return Outcome(time.perf_counter() - began, usage.ru_maxrss * unit, len(find_videos(command.results)))


def environment() -> dict[str, str]:
    """This process's, in which `python` is this interpreter and mp_hooks is this one."""
    places = [str(Path(patching.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
