"""One self-contained HTML page: tables, clips, plots, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.lab.report.tables import Table
from mp_hooks.runs import versions


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; `url` is a data URL."""

    caption: str
    url: str


def write_page(
    path: Path,
    title: str,
    lead: str,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    columns: Sequence[str],
    plots: str,
    facts: Sequence[tuple[str, str]],
) -> None:
    """Write the page; `columns` name what each figure shows from left to right, `plots` is an SVG element or "".

    `facts` are names and values: configuration, and whatever a reader needs to repeat it; versions are added.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MotionPromptError("the page needs Jinja2: pip install 'mp_hooks[metrics]'") from error

    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    parts = {"title": title, "lead": lead, "tables": tables, "figures": figures, "columns": columns, "plots": plots}
    measured_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = page.render(**parts, facts=[*facts, ("measured with", measured_with)])
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
