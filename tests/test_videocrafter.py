"""VideoCrafter2 end to end: the host's real code and scripts, tiny random weights."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mp_hooks import backbones, patching
from mp_hooks.guidance import MotionPrompt
from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing.conformance import patched
from mp_hooks.testing.lvdm import VideoCrafterCase, importable, write_tiny
from mp_hooks.video import video_info

pytestmark = pytest.mark.upstream
HOST = patching.load("videocrafter2")
SMALL = ["--height", "128", "--width", "128", "--ddim_steps", "10"]

# Runs the host's own entry and keeps the latents its sampler returns; an unpatched host gets the shims from here.
RUNNER = """
import contextlib, runpy, sys
import torch
from mp_hooks import patching
from mp_hooks.compat import shims
out, patched, *arguments = sys.argv[1:]
entry = "scripts/evaluation/inference.py"
sys.path[:0] = ["scripts/evaluation", "."]
sys.argv = [entry, *arguments]
names = patching.load("videocrafter2").script.shims
with contextlib.nullcontext() if patched == "patched" else shims(names, "cpu"):
    from lvdm.models.samplers.ddim import DDIMSampler
    latents, sample = [], DDIMSampler.sample
    def keep(self, *args, **kwargs):
        result = sample(self, *args, **kwargs)
        latents.append(result[0])
        return result
    DDIMSampler.sample = keep
    runpy.run_path(entry, run_name="__main__")
torch.save(latents, out)
"""


@pytest.fixture(scope="module")
def upstream() -> Path:
    folder = patching.default_checkout(HOST)
    if not patching.is_present(folder):
        pytest.skip(f"{folder.name} is not in third_party/; mp-patch videocrafter2 gets it")
    return folder


@pytest.fixture(scope="module")
def checkout(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpatched copy under git, with a tiny checkpoint."""
    root = tmp_path_factory.mktemp("host") / "VideoCrafter"
    shutil.copytree(upstream, root, ignore=shutil.ignore_patterns(".git", "results", "__pycache__"))
    patching.revert(HOST, root)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "core.autocrlf=false", "commit", "-qm", "upstream"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command], cwd=root, check=True)
    write_tiny(root, root.parent)
    return root


def tiny(checkout: Path) -> list[str]:
    return ["--config", str(checkout.parent / "tiny.yaml"), "--ckpt_path", str(checkout.parent / "tiny.ckpt")]


def run(command: list[str], checkout: Path) -> subprocess.CompletedProcess[str]:
    repository = str(Path(backbones.__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": repository,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def latents(checkout: Path, state: str) -> list[torch.Tensor]:
    out = checkout.parent / f"{state}.pt"
    host_arguments = "--seed 123 --mode base --savedir results/run --unconditional_guidance_scale 12.0 --ddim_eta 1.0"
    arguments = [*host_arguments.split(), "--prompt_file", "prompts/test_prompts.txt", *tiny(checkout), *SMALL]
    if state == "patched":
        arguments += ["--mp-device", "cpu"]
    result = run([sys.executable, "-c", RUNNER, str(out), state, *arguments], checkout)
    assert result.returncode == 0, result.stderr
    return torch.load(out, weights_only=True)


def test_the_whole_way(checkout: Path) -> None:
    """Unpatched, patched and off, patched and on through the host's script, reverted."""
    vanilla = latents(checkout, "vanilla")
    patching.apply(HOST, checkout)

    off = latents(checkout, "patched")
    assert len(off) == len(vanilla) == 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(off, vanilla, strict=True))

    script = ["bash", "scripts/run_text2video.sh", *tiny(checkout), *SMALL, "--mp-device", "cpu"]
    result = run([*script, "--motionprompt"], checkout)
    assert result.returncode == 0, result.stderr
    results = checkout / "results" / "base_512_v2"
    assert sorted(path.name for path in results.glob("*.mp4")) == ["0001.mp4", "0002.mp4"]
    assert video_info(results / "0001.mp4").frames == 16
    records = read_trace(results / "motionprompt" / "trace.jsonl")
    prompts = (checkout / "prompts/test_prompts.txt").read_text().splitlines()
    assert [record["prompts"][0] for record in records if record["event"] == "run"] == [p.strip() for p in prompts]
    iterations = [record for record in records if record["event"] == "iteration"]
    assert len(iterations) == 2 * 2 * 3  # prompts, guided steps of ten, K
    assert all(torch.tensor(record["loss"]).isfinite().all() for record in iterations)
    assert all(record["updated"] == [True] for record in iterations)
    assert all(record["cosine"][0] < 1 for record in iterations)
    assert (results / "motionprompt" / "config.yaml").is_file()

    patching.revert(HOST, checkout)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True)
    assert not [line for line in status.stdout.splitlines() if "results" not in line and "__pycache__" not in line]


@pytest.fixture(scope="module")
def entry(checkout: Path) -> Iterator[ModuleType]:
    """The patched entry as a module, so that many wrong command lines cost one import of the host."""
    patching.apply(HOST, checkout)
    path = checkout / "scripts/evaluation/inference.py"
    with importable(checkout), importable(path.parent):
        specification = importlib.util.spec_from_file_location("inference", path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--mp-discriminator", "nowhere"], "no discriminator in nowhere"),
        (["--mp-flow", "raft_small", "--mp-flow-weights", "nowhere.pth"], "nowhere.pth"),
        (["--mp-flow", "psychic"], "pyramid, raft_large, raft_small"),
        (["--mp-placement", "middle"], "end"),
        (["--mp-iterations", "0"], "at least 1"),
        (["--mp-config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_sentence(
    entry: ModuleType,
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    patching.apply(HOST, checkout)
    monkeypatch.chdir(checkout)
    fixed = ["--savedir", "results", "--prompt_file", "prompts/test_prompts.txt", "--mp-device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        args = entry.get_parser().parse_args([*fixed, *tiny(checkout), "--motionprompt", *arguments])
        entry.run_inference(args, 1, 0)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_bad_input_from_the_shell(checkout: Path) -> None:
    patching.apply(HOST, checkout)
    script = ["bash", "scripts/run_text2video.sh", *tiny(checkout), "--mp-device", "cpu", "--motionprompt"]
    result = run([*script, "--mp-discriminator", "nowhere"], checkout)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "no discriminator in nowhere" in result.stderr.splitlines()[-1]


def test_half_patched_is_one_sentence(entry: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patching.apply(HOST, checkout)
    script = checkout / "scripts/run_text2video.sh"
    script.write_bytes(script.read_bytes().replace(b' "$@"', b""))
    with pytest.raises(SystemExit) as stopped:
        entry.run_inference(entry.get_parser().parse_args(["--motionprompt", "--mp-device", "cpu"]), 1, 0)
    patching.apply(HOST, checkout)
    assert stopped.value.code == 2
    assert "half patched; run: mp-patch videocrafter2" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def case(upstream: Path) -> VideoCrafterCase:
    return VideoCrafterCase(upstream)


@pytest.fixture(scope="module")
def host(case: VideoCrafterCase) -> Iterator[Any]:
    with case.open() as model:
        yield model


def test_a_prompt_of_a_hundred_words_is_warned_of_and_runs(case: VideoCrafterCase, host: Any) -> None:
    method = MotionPrompt(case.config)
    with patched(host, method), pytest.warns(UserWarning, match="last 1 tokens make room"):
        guided = case.sample(host, ["word " * 100], seed=7)
    assert guided.isfinite().all()


def test_unguided_memory_is_what_it_was(case: VideoCrafterCase, host: Any) -> None:
    def peak() -> int:
        """Bytes by which one unguided sampling raises the resident size."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = memory("VmRSS")
        case.sample(host, case.prompts, seed=7)
        return memory("VmHWM") - before

    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux's resettable peak of the resident size")
    case.sample(host, case.prompts, seed=7)
    before = peak()
    with backbones.motionprompt(host, case.config):
        case.sample(host, case.prompts, seed=7)
    assert peak() < 1.1 * before + 2**24


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
