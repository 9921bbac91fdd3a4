"""Every host with a script, end to end: its real code and its own command, on tiny random weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resumption import assert_same_trace, kill_when
from upstreams import git, needs, unpatched

from mp_hooks import patching
from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing import Command, HostCase
from mp_hooks.testing.animatediff import AnimateDiffCase
from mp_hooks.testing.doctor import GUIDANCE, run
from mp_hooks.testing.dynamicrafter import DynamiCrafterCase
from mp_hooks.testing.lavie import LaVieCase
from mp_hooks.testing.videocrafter import VideoCrafterCase, VideoCrafterImageCase
from mp_hooks.video import SUFFIXES, find_videos, read_frames, video_info

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
    """A host's script in one configuration.

    autoencoder: the module of its VAE's class. frames: of its videos. grid: whether it writes one more, of all of them.
    killed: whether the whole way has a kill in it.
    """

    name: str
    autoencoder: str
    frames: int
    case: Callable[[Path], HostCase]
    grid: bool = False
    killed: bool = False


LVDM = "lvdm.models.autoencoder"
HOSTS = {
    "videocrafter2": Host("videocrafter2", LVDM, 8, VideoCrafterCase),
    "videocrafter-image": Host("videocrafter2", LVDM, 8, VideoCrafterImageCase),
    "dynamicrafter-256": Host("dynamicrafter", LVDM, 4, lambda root: DynamiCrafterCase(root, "256")),
    "dynamicrafter-512": Host("dynamicrafter", LVDM, 4, DynamiCrafterCase),
    "lavie": Host("lavie", "diffusers", 8, LaVieCase, killed=True),
    "animatediff": Host("animatediff", "diffusers", 8, AnimateDiffCase, grid=True),
}
VARIANTS = {
    "videocrafter-1": Host("videocrafter2", LVDM, 8, lambda root: VideoCrafterCase(root, "t2v_512_v1.0")),
    "videocrafter-1-large": Host("videocrafter2", LVDM, 8, lambda root: VideoCrafterCase(root, "t2v_1024_v1.0")),
    "dynamicrafter-1024": Host("dynamicrafter", LVDM, 4, lambda root: DynamiCrafterCase(root, "1024", cfg_img=4.0)),
    "dynamicrafter-loop": Host("dynamicrafter", LVDM, 3, lambda root: DynamiCrafterCase(root, ends="loop")),
    "dynamicrafter-interp": Host("dynamicrafter", LVDM, 4, lambda root: DynamiCrafterCase(root, ends="interp")),
    "lavie-ddim": Host("lavie", "diffusers", 8, lambda root: LaVieCase(root, "DDIMScheduler")),
    "lavie-euler": Host("lavie", "diffusers", 8, lambda root: LaVieCase(root, "EulerDiscreteScheduler")),
    "lavie-without-guidance": Host("lavie", "diffusers", 8, lambda root: LaVieCase(root, guidance_scale=1.0)),
    "animatediff-without-guidance": Host(
        "animatediff", "diffusers", 8, lambda root: AnimateDiffCase(root, guidance_scale=1.0), grid=True
    ),
}

# near relatives of others here, whose configurations the conformance kit has too: with -m slow
MORE = {
    "dynamicrafter-256",
    "videocrafter-1-large",
    *("dynamicrafter-loop", "dynamicrafter-interp"),
    *("lavie-ddim", "lavie-without-guidance", "animatediff-without-guidance"),
}
KILLED = ("videocrafter2", "dynamicrafter-512", "animatediff")  # as slow as others, where LaVie stands for them


def parameters(hosts: dict[str, Host], slow: Container[str] = ()) -> list[Any]:
    """The hosts, each marked with the upstream it needs."""
    return [
        pytest.param(host, id=name, marks=[*needs(host.name), *[pytest.mark.slow] * (name in slow)])
        for name, host in hosts.items()
    ]


def test_every_host_with_a_script_is_here() -> None:
    assert {host.name for host in HOSTS.values()} == set(patching.names())


@pytest.fixture
def checkout(host: Host, tmp_path: Path) -> Path:
    """An unpatched copy under git."""
    return unpatched(host.name, tmp_path / "host")


@pytest.fixture
def command(host: Host, checkout: Path, tmp_path: Path) -> Command:
    """The host's script on tiny random weights."""
    (tmp_path / "tiny").mkdir()
    return host.case(checkout).command(tmp_path / "tiny")


def own_arguments(command: Command) -> list[str]:
    """What the host's own, unpatched script calls python with: a file and its arguments."""
    if command.script[:2] == ["python", "-m"]:
        return [command.script[2].replace(".", "/") + ".py"]
    spied = subprocess.run(
        ["bash", "-c", SPY, "spy", *command.script[1:]], cwd=command.folder, capture_output=True, check=True
    )
    return spied.stdout.decode().split("\0")[:-1]


def decoded(host: Host, command: Command, entry: list[str], state: str) -> list[torch.Tensor]:
    """What the host's VAE is given to decode when its entry runs unpatched or patched and off."""
    out = command.folder / f"{state}.pt"
    start = [sys.executable, "-c", RUNNER, str(out), state, host.name, host.autoencoder, *entry]
    run(replace(command, script=start), ["--mp-device", "cpu"] if state == "off" else [])
    kept = torch.load(out, weights_only=True)
    out.unlink()
    return kept


def assert_guided(host: Host, command: Command) -> None:
    """The script runs with guidance: a video and a run in the trace for every prompt, tokens that moved."""
    prompts = HostCase.prompts
    videos = len(prompts) + host.grid
    assert run(command, [*GUIDANCE, "--mp-device", "cpu"]).videos == videos
    assert [video_info(path).frames for path in find_videos(command.results)] == [host.frames] * videos
    records = records_of(command.results)
    assert [record["prompts"] for record in records if record["event"] == "run"] == [[prompt] for prompt in prompts]
    iterations = [record for record in records if record["event"] == "iteration"]
    assert len(iterations) == len(prompts) * 2 * 3  # two guided steps of four, K
    updated = [record for record in iterations if record["updated"] == [True]]
    assert len(iterations) - len(updated) == sum(record["skipped"] for record in records if record["event"] == "end")
    assert {record["run"] for record in updated} == set(range(len(prompts)))
    assert all(torch.tensor(record["loss"]).isfinite().all() for record in updated)
    assert all(record["cosine"][0] < 1 for record in updated)
    assert (command.results / "motionprompt" / "config.yaml").is_file()


def assert_goes_on(host: Host, command: Command, tmp_path: Path) -> None:
    """Killed once its first video is there and started again: it ends as what `assert_guided` left began.

    The seconds in the trace tell that the first sampling was handed back: no two samplings take the same.
    """
    whole, kept = command.results, tmp_path / "kept"
    if not command.dated:
        whole = whole.rename(tmp_path / "whole")

    def there() -> bool:
        begun = command.output.exists() and command.results != whole
        return begun and any(path.suffix in SUFFIXES for path in command.results.rglob("*"))

    guided = [*GUIDANCE, "--mp-device", "cpu", "--mp-resume", str(kept)]
    kill_when(there, [*command.script, *command.options, *guided], command.folder)
    assert [path.name for path in kept.iterdir() if not path.name.startswith(".")] == ["mp-sampling-00000.pt"]
    first = [record for record in records_of(command.results) if record["run"] == 0]
    run(command, guided)
    assert [record for record in records_of(command.results) if record["run"] == 0] == first
    assert_same_trace(command.results / "motionprompt/trace.jsonl", whole / "motionprompt/trace.jsonl")
    for ours, theirs in zip(find_videos(command.results), find_videos(whole), strict=True):
        assert ours.name == theirs.name
        # x264 is not the same to the bit
        assert (read_frames(ours).float() - read_frames(theirs).float()).abs().mean() < 2
    assert not kept.exists()


def records_of(results: Path) -> list[dict]:
    return read_trace(results / "motionprompt" / "trace.jsonl")


@pytest.mark.parametrize("host", parameters(HOSTS, slow=MORE))
def test_the_whole_way(host: Host, checkout: Path, command: Command, tmp_path: Path) -> None:
    """Unpatched, patched and off, patched and on through the host's own script (killed too, LaVie's), reverted."""
    manifest = patching.load(host.name)
    entry = own_arguments(command)
    vanilla = decoded(host, command, entry, "vanilla")
    patching.apply(manifest, checkout)
    off = decoded(host, command, entry, "off")
    assert len(off) == len(vanilla) > 0
    assert all(latents.isfinite().all() for latents in vanilla)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(off, vanilla, strict=True))
    assert_guided(host, command)
    if host.killed:
        assert_goes_on(host, command, tmp_path)
    patching.revert(manifest, checkout)
    assert git(checkout, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize("host", parameters(VARIANTS, slow=MORE))
def test_other_configurations(host: Host, checkout: Path, command: Command) -> None:
    patching.apply(patching.load(host.name), checkout)
    assert_guided(host, command)


@pytest.mark.slow
@pytest.mark.parametrize("host", parameters({name: HOSTS[name] for name in KILLED}))
def test_goes_on_after_a_kill(host: Host, checkout: Path, command: Command, tmp_path: Path) -> None:
    patching.apply(patching.load(host.name), checkout)
    assert_guided(host, command)
    assert_goes_on(host, command, tmp_path)
