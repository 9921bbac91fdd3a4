"""One table in four notations: text, CSV, LaTeX, and rows for a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Header cells, and rows of cells whose first names the row; a row of one cell heads those below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def text(self) -> str:
        """Aligned columns for a terminal."""
        lines = [self.header, *(row for row in self.rows if len(row) > 1)]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.header))]

        def line(row: Sequence[str]) -> str:
            cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=len(row) > 1)]
            return "  ".join([f"{row[0]:{widths[0]}}", *cells]).rstrip()

        return "\n".join([*([self.title] if self.title else []), line(self.header), *map(line, self.rows)])

    def csv(self) -> str:
        """Comma-separated values, without the title."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.header, *self.rows])
        return stream.getvalue()

    def latex(self) -> str:
        """A tabular environment for the booktabs package."""
        lines = [" & ".join(map(_escaped, self.header)) + r" \\", r"\midrule"]
        for row in self.rows:
            cells = [_escaped(cell) for cell in row]
            if len(row) == 1:
                cells = [rf"\multicolumn{{{len(self.header)}}}{{l}}{{\textbf{{{cells[0]}}}}}"]
            lines.append(" & ".join(cells) + r" \\")
        columns = "l" + "r" * (len(self.header) - 1)
        body = "\n".join(lines)
        return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _escaped(cell: str) -> str:
    text = cell.replace("\\", r"\textbackslash ")
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text.replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
