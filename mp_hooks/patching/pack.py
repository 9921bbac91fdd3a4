"""A host that loads packs of nodes: ours is linked into its folder for them, and nothing of the host is edited."""

from __future__ import annotations

import filecmp
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mp_hooks.errors import MotionPromptError
from mp_hooks.patching.manifest import Upstream, packaged


@dataclass(frozen=True)
class Pack(Upstream):
    """A host and our pack of nodes for it.

    source: the pack's folder in this repository. place: where the host wants it, relative to its checkout.
    """

    source: str
    place: str

    def status(self, repo: Path) -> str:
        """One of "linked", "copied", "a copy of another version" and "not linked"."""
        place = self._place(repo)
        if place.is_symlink() and place.resolve() == self._source():
            return "linked"
        if not self._is_copy(place):
            return "not linked"
        return "copied" if _same(self._source(), place) else "a copy of another version"

    def link(self, repo: Path) -> str:
        """Put the pack in its place, as a link, or as a copy where there can be none; the new status."""
        place = self._place(repo)
        if self.status(repo) == "linked":
            return "linked"
        self.unlink(repo)
        if os.path.lexists(place):
            raise MotionPromptError(f"there is something else in {place}; move it away")
        try:
            try:
                place.symlink_to(self._source(), target_is_directory=True)
            except OSError:  # Windows without developer mode, some network file systems
                shutil.copytree(self._source(), place, ignore=shutil.ignore_patterns("__pycache__"))
        except OSError as error:
            raise MotionPromptError(f"cannot write in {place.parent}: {error.strerror}") from error
        return self.status(repo)

    def unlink(self, repo: Path) -> None:
        """Take the pack out again; anything else is left alone."""
        place = self._place(repo)
        if place.is_symlink() and (place.resolve() == self._source() or not place.exists()):
            place.unlink()
        elif self._is_copy(place):
            shutil.rmtree(place)

    def _place(self, repo: Path) -> Path:
        place = repo / self.place
        if not (repo / "main.py").is_file() or not place.parent.is_dir():
            raise MotionPromptError(
                f"{repo} is not a checkout of {self.title}: it has no main.py and {Path(self.place).parent}"
            )
        return place

    def _source(self) -> Path:
        return packaged(self.source)

    def _is_copy(self, place: Path) -> bool:
        named = place / "pyproject.toml"
        return not place.is_symlink() and named.is_file() and 'name = "motionprompt"' in named.read_text("utf-8")


def _same(ours: Path, theirs: Path) -> bool:
    files = [path.relative_to(ours) for path in ours.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return not any(filecmp.cmpfiles(ours, theirs, files, shallow=False)[1:])


PACKS = {
    "comfyui": Pack(
        name="comfyui",
        title="ComfyUI",
        url="https://github.com/comfyanonymous/ComfyUI",
        commit="a125cd84b054a57729b5eecab930ca9408719832",  # 0.3.64
        folder="third_party/ComfyUI",
        source="comfyui",
        place="custom_nodes/motionprompt",
        run="python main.py",
    )
}
