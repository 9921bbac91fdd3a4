"""Line edits on bytes: insert our text beside an anchor, find it again, take it out again.

An edit holds our own text and a fragment of the line it belongs to, nothing else of the file. All work is on
bytes, so a file keeps its newlines, its encoding and its missing final newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mp_hooks.errors import MotionPromptError

PLACES = ("end", "before", "after")


@dataclass(frozen=True)
class Edit:
    """One insertion: at the `end` of the anchor's line, or as a line of its own `before` or `after` it.

    formerly: what earlier versions of ours inserted in its place; known again, so that it can be replaced.
    """

    place: str
    anchor: bytes
    insert: bytes
    formerly: tuple[bytes, ...] = ()

    def former(self) -> list[Edit]:
        """The same insertion as earlier versions made it."""
        return [Edit(self.place, self.anchor, insert) for insert in self.formerly]


class Line(NamedTuple):
    text: bytes
    ending: bytes


def count_applied(data: bytes, edits: Sequence[Edit]) -> int:
    """How many of `edits` are in `data`."""
    lines = _split(data)
    return sum(_standing(lines, edit) == edit for edit in edits)


def count_former(data: bytes, edits: Sequence[Edit]) -> int:
    """How many of `edits` are in `data` as an earlier version made them."""
    lines = _split(data)
    return sum(_standing(lines, edit) not in (None, edit) for edit in edits)


def apply_edits(data: bytes, edits: Sequence[Edit]) -> bytes:
    """`data` with every missing edit made; those already there stay where they are, former ones are replaced.

    Raises MotionPromptError when an anchor is not found exactly once.
    """
    lines = _split(data)
    for edit in edits:
        standing = _standing(lines, edit)
        if standing == edit:
            continue
        if standing:
            _take_out(lines, standing)
        _insert(lines, edit, _anchor(lines, edit, edits))
    return _join(lines)


def remove_edits(data: bytes, edits: Sequence[Edit]) -> bytes:
    """`data` without the text of `edits`, former ones included; whatever else was changed in it stays."""
    lines = _split(data)
    for edit in reversed(edits):
        standing = _standing(lines, edit)
        if standing:
            _take_out(lines, standing)
    return _join(lines)


def _split(data: bytes) -> list[Line]:
    lines = []
    for raw in data.splitlines(keepends=True):
        text = raw.rstrip(b"\r\n")
        lines.append(Line(text, raw[len(text) :]))
    return lines


def _join(lines: Sequence[Line]) -> bytes:
    return b"".join(text + ending for text, ending in lines)


def _carries(line: Line, edit: Edit) -> bool:
    if edit.place == "end":
        _, anchor, rest = line.text.partition(edit.anchor)
        return bool(anchor) and edit.insert in rest
    # Surrounding blanks do not count: a formatter may have indented our line anew.
    return line.text.strip() == edit.insert.strip()


def _find(lines: Sequence[Line], edit: Edit) -> int | None:
    found = [index for index, line in enumerate(lines) if _carries(line, edit)]
    if len(found) > 1:
        raise MotionPromptError(f"'{_show(edit.insert)}' stands there {len(found)} times; delete all but one by hand")
    return found[0] if found else None


def _standing(lines: Sequence[Line], edit: Edit) -> Edit | None:
    """Which of `edit` and its former versions is in `lines`; the longest, as one's text may hold another's."""
    versions = sorted((edit, *edit.former()), key=lambda version: -len(version.insert))
    return next((version for version in versions if _find(lines, version) is not None), None)


def _anchor(lines: Sequence[Line], edit: Edit, edits: Sequence[Edit]) -> int:
    """Index of the one line that holds the anchor; a line that is the anchor beats those that contain it."""
    found = [
        index
        for index, line in enumerate(lines)
        if edit.anchor in line.text and not any(_carries(line, other) for other in edits if other.place != "end")
    ]
    if len(found) > 1:
        found = [index for index in found if lines[index].text.strip() == edit.anchor.strip()] or found
    if len(found) != 1:
        raise MotionPromptError(f"'{_show(edit.anchor)}' marks the place of an edit and was found {len(found)} times")
    return found[0]


def _insert(lines: list[Line], edit: Edit, index: int) -> None:
    text, ending = lines[index]
    if edit.place == "end":
        if text.rstrip().endswith(b"\\"):
            raise MotionPromptError(f"the line of '{_show(edit.anchor)}' goes on in the next one, so it has no end")
        lines[index] = Line(text + edit.insert, ending)
    elif edit.place == "before":
        lines.insert(index, Line(edit.insert, ending or _newline(lines)))
    else:
        # After a last line without newline, ours becomes the last line without one.
        lines[index] = Line(text, ending or _newline(lines))
        lines.insert(index + 1, Line(edit.insert, ending))


def _take_out(lines: list[Line], edit: Edit) -> None:
    index = next(index for index, line in enumerate(lines) if _carries(line, edit))
    text, ending = lines[index]
    if edit.place == "end":
        before, anchor, rest = text.partition(edit.anchor)
        lines[index] = Line(before + anchor + rest.replace(edit.insert, b"", 1), ending)
        return
    del lines[index]
    if not ending and lines:
        lines[-1] = Line(lines[-1].text, b"")


def _newline(lines: Sequence[Line]) -> bytes:
    return lines[0].ending or b"\n"


def _show(text: bytes) -> str:
    return text.decode(errors="replace").strip()
