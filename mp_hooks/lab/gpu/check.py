"""What a line of the check finds, in a file of its own."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.testing.case import MissingPackage


class Check:
    """Rows of figures, what does not hold, and what could not be tried and why; written at once, so that none is lost.

    device: "cuda", where hosts have their full size, or "cpu", where they are tiny.
    """

    def __init__(self, file: Path, device: str) -> None:
        self.file, self.device, self.tiny = file, device, device == "cpu"
        self.rows: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.skipped: list[str] = []

    def row(self, **cells: Any) -> None:
        """Figures that belong together, by the heads of their columns."""
        self.rows.append(cells)
        self._write()

    def expect(self, holds: bool, what: str) -> None:
        """Note `what` as a failure unless it holds."""
        if not holds:
            self.failures.append(what)
            self._write()

    def skip(self, what: str) -> None:
        """Note what was not tried, and why."""
        self.skipped.append(what)
        self._write()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is raised inside is noted, and the line goes on with its next part."""
        try:
            yield
        except MissingPackage as missing:
            self.skip(f"{name}: {missing}")
        except Exception as error:
            if not isinstance(error, MotionPromptError):
                traceback.print_exc()
            self.expect(False, f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")

    def _write(self) -> None:
        found = {"rows": self.rows, "failures": self.failures, "skipped": self.skipped}
        with replacing(self.file) as temporary:
            Path(temporary).write_text(json.dumps(found), encoding="utf-8")
