"""Every host with a script, end to end: its real code and its own command, on tiny random weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mp_hooks import patching
from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing import Command, HostCase, tiny
from mp_hooks.testing.case import MissingPackage
from mp_hooks.testing.doctor import GUIDANCE, copy_of, environment, run
from mp_hooks.testing.lavie import LaVieCase
from mp_hooks.video import find_videos, video_info

pytestmark = pytest.mark.upstream

# Runs the host's own entry and keeps what its VAE is given to decode; an unpatched host gets the shims from here.
RUNNER = """
import contextlib, importlib, runpy, sys
import torch
from mp_hooks import patching
from mp_hooks.compat import shims
out, state, name, autoencoder, entry, *arguments = sys.argv[1:]
sys.path[:0] = [entry.rpartition("/")[0], "."]
sys.argv = [entry, *arguments]
with contextlib.nullcontext() if state == "off" else shims(patching.load(name).script.shims, "cpu"):
    kind = getattr(importlib.import_module(autoencoder), "AutoencoderKL")
    kept, decode = [], kind.decode
    def keep(self, latents, *args, **kwargs):
        kept.append(latents.detach().clone())
        return decode(self, latents, *args, **kwargs)
    kind.decode = keep
    runpy.run_path(entry, run_name="__main__")
torch.save(kept, out)
"""

# What the host's own script would call python with: it is sourced where python is a function that says so.
SPY = 'python3() { printf "%s\\0" "$@"; }; python() { python3 "$@"; }; source "$@"'


@dataclass(frozen=True)
class Host:
    """A patched script in one of its configurations. frames: of its videos. autoencoder: the module of its VAE."""

    name: str
    autoencoder: str
    frames: int
    case: Callable[[Path], HostCase]


HOSTS = {
    "videocrafter2": Host("videocrafter2", "lvdm.models.autoencoder", 8, lambda root: tiny("videocrafter2", root)),
    "lavie": Host("lavie", "diffusers", 8, lambda root: tiny("lavie", root)),
    "lavie-ddim": Host("lavie", "diffusers", 8, lambda root: LaVieCase(root, "DDIMScheduler")),
    "lavie-euler": Host("lavie", "diffusers", 8, lambda root: LaVieCase(root, "EulerDiscreteScheduler")),
    "lavie-without-guidance": Host("lavie", "diffusers", 8, lambda root: LaVieCase(root, guidance_scale=1.0)),
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param]


@pytest.fixture
def checkout(host: Host, tmp_path: Path) -> Iterator[Path]:
    """An unpatched copy under git."""
    manifest = patching.load(host.name)
    upstream = patching.default_checkout(manifest)
    if not patching.is_present(upstream):
        pytest.skip(f"{upstream.name} is not in third_party/; mp-patch {host.name} gets it")
    root = copy_of(manifest, upstream, tmp_path / "host")
    patching.revert(manifest, root)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "core.autocrlf=false", "commit", "-qm", "upstream")
    return root


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def decoded(host: Host, command: Command, own: list[str], state: str) -> list[torch.Tensor]:
    """What the host's VAE is given to decode when its entry runs unpatched or patched and off."""
    out = command.folder / f"{state}.pt"
    entry, *fixed = own
    start = [sys.executable, "-c", RUNNER, str(out), state, host.name, host.autoencoder, entry, *fixed]
    off = ["--mp-device", "cpu"] if state == "off" else []
    run(Command([*start, *command.arguments[2:], *off], command.folder, command.output), [])
    kept = torch.load(out, weights_only=True)
    out.unlink()
    return kept


def test_the_whole_way(host: Host, checkout: Path, tmp_path: Path) -> None:
    """Unpatched, patched and off, patched and on through the host's own script, reverted."""
    manifest = patching.load(host.name)
    case = host.case(checkout)
    (tmp_path / "tiny").mkdir()
    try:
        command = case.command(tmp_path / "tiny")
    except MissingPackage as missing:
        pytest.skip(str(missing))
    spied = subprocess.run(["bash", "-c", SPY, "spy", command.arguments[1]], cwd=command.folder, capture_output=True)
    own = spied.stdout.decode().split("\0")[:-1]

    vanilla = decoded(host, command, own, "vanilla")
    patching.apply(manifest, checkout)
    off = decoded(host, command, own, "off")
    assert len(off) == len(vanilla) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(off, vanilla, strict=True))
    assert all(latents.isfinite().all() for latents in off)

    assert run(command, [*GUIDANCE, "--mp-device", "cpu"]).videos == len(case.prompts)
    assert [video_info(path).frames for path in find_videos(command.output)] == [host.frames] * len(case.prompts)
    records = read_trace(command.output / "motionprompt" / "trace.jsonl")
    runs = [record["prompts"] for record in records if record["event"] == "run"]
    assert runs == [[prompt] for prompt in case.prompts]
    iterations = [record for record in records if record["event"] == "iteration"]
    assert len(iterations) == len(case.prompts) * 2 * 3  # two guided steps of four, K
    updated = [record for record in iterations if record["updated"] == [True]]
    skipped = sum(record["skipped"] for record in records if record["event"] == "end")
    assert len(updated) == len(iterations) - skipped
    assert {record["run"] for record in updated} == set(range(len(case.prompts)))
    assert all(torch.tensor(record["loss"]).isfinite().all() for record in updated)
    assert all(record["cosine"][0] < 1 for record in updated)
    assert (command.output / "motionprompt" / "config.yaml").is_file()

    patching.revert(manifest, checkout)
    assert git(checkout, "status", "--porcelain", "--untracked-files=no") == ""
