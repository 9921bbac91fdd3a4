"""Every registered adapter against its host's real code with tiny random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mp_hooks.backbones import BACKBONES
from mp_hooks.patching import manifest
from mp_hooks.testing import ConformanceSuite
from mp_hooks.testing.lvdm import VideoCrafterCase


def checkout(name: str) -> Path:
    """The host's populated submodule; skips with the reason where it is empty."""
    folder = manifest.default_checkout(manifest.load(name))
    if not any(folder.glob("*.md")):
        pytest.skip(f"{folder.name} is not in third_party/; mp-patch {name} gets it")
    return folder


@pytest.mark.upstream
class TestVideoCrafter(ConformanceSuite):
    @pytest.fixture(scope="class", autouse=True)
    def _case(self, request: pytest.FixtureRequest) -> None:
        request.cls.case = VideoCrafterCase(checkout("videocrafter2"))


def test_every_adapter_is_held_to_the_kit() -> None:
    tested = {"videocrafter2": TestVideoCrafter}
    assert set(tested) == set(BACKBONES)
