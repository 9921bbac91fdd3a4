"""What `import mp_hooks` gives: names that an editor and a type checker see, torch only when it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mp_hooks
from mp_hooks import backbones
from mp_hooks.testing.diffusers import AnimateDiffCase

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_told() -> None:
    assert set(mp_hooks.__all__) <= set(dir(mp_hooks))
    for name in mp_hooks.__all__:
        assert getattr(mp_hooks, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mp_hooks.nothing


def test_the_configuration_comes_without_torch() -> None:
    code = (
        "import sys; from mp_hooks import MotionPromptConfig, MotionPromptError, load_config; "
        "assert load_config(preset='paper') != MotionPromptConfig(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_type_checker_knows_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    names = [name for name in mp_hooks.__all__ if name != "__version__"]
    (tmp_path / "user.py").write_text(
        f"from mp_hooks import {', '.join(names)}\n"
        "reveal_type(is_patched)\n"
        "reveal_type(load_config())\n"
        "MotionPromptConfig(tokens='two')\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path / "user.py")]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert [line.split("user.py:")[1].split(":")[0] for line in lines[:-1]] == ["2", "3", "4"], lines
    assert "-> bool" in lines[0] and "MotionPromptConfig" in lines[1] and "arg-type" in lines[2]


def test_every_host_is_told_by_the_class_that_its_adapter_takes() -> None:
    hosts = mp_hooks.supported_hosts()
    assert hosts.keys() == backbones.BACKBONES.keys()
    for name, kind in ((name, kind) for name, kinds in hosts.items() for kind in kinds.split(", ")):
        module, _, cls = kind.rpartition(".")
        if module == "diffusers":
            diffusers = pytest.importorskip("diffusers")
            host = object.__new__(getattr(diffusers, cls))
        else:
            host = type(cls, (), {"__module__": module})()
            if name == "dynamicrafter":  # VideoCrafter's class, of which it tells its own by this
                host.use_dynamic_rescale = True
        assert backbones.adapter_class(name).recognises(host), name


def test_a_patched_host_tells_what_is_hooked() -> None:
    case = AnimateDiffCase()
    with case.open() as pipe:
        assert mp_hooks.describe_patch(pipe) == "<AnimateDiffPipeline is not patched>"
        with mp_hooks.motionprompt(pipe, case.config):
            told = mp_hooks.describe_patch(pipe)
        assert told == (
            "<MotionPrompt (diffusers-animatediff) on AnimateDiffPipeline.__call__; "
            "while it samples on UNetMotionModel._call_impl, AnimateDiffPipeline.encode_prompt>"
        )
        assert mp_hooks.describe_patch(pipe) == "<AnimateDiffPipeline is not patched>"
