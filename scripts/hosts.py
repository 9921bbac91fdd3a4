"""Write the hosts of the registry into README.md and docs/hosts.md, between their marks; --check only compares.

python scripts/hosts.py
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from mp_hooks import backbones
from mp_hooks.backbones.diffusers.unguided import UNGUIDED
from mp_hooks.files import replacing

ROOT = Path(__file__).parents[1]
FAMILIES = [name for name in backbones.BACKBONES if name.startswith("diffusers-")]


def pipelines(name: str) -> tuple[str, ...]:
    return backbones.adapter_class(name).pipelines  # type: ignore[attr-defined]


def sub_clip(name: str) -> str:
    """Whether a part of the clip can be had alone."""
    return "yes" if backbones.adapter_class(name).parts else "no"  # type: ignore[attr-defined]


def summary() -> str:
    """The README's sentence."""
    count = sum(len(pipelines(name)) for name in FAMILIES)
    first = ", ".join(pipelines(name)[0].removesuffix("Pipeline") for name in FAMILIES)
    return textwrap.fill(
        f"And [{count} video pipelines of diffusers](docs/hosts.md#diffusers-pipelines), by their text-, image- and "
        f"video-to-video classes: {first}. Tested by the kit; {len(UNGUIDED)} others have a reason why not.",
        width=120,
        break_long_words=False,
        break_on_hyphens=False,
    )


def guided() -> str:
    """The table of pipelines that are guided."""
    rows = ["| adapter | pipelines | how it samples | sub-clip |", "|---|---|---|---|"]
    for name in FAMILIES:
        told = (backbones.adapter_class(name).__doc__ or "").split("\n\n")[0]
        rows.append(f"| `{name}` | {', '.join(pipelines(name))} | {' '.join(told.split())} | {sub_clip(name)} |")
    return "\n".join(rows)


def unguided() -> str:
    """The table of those that are not."""
    reasons: dict[str, list[str]] = {}
    for name, reason in UNGUIDED.items():
        reasons.setdefault(reason, []).append(name)
    rows = ["| not guided | because |", "|---|---|"]
    return "\n".join([*rows, *(f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items())])


def filled(text: str) -> str:
    """The page with every marked part as the registry has it."""
    for part in (summary, guided, unguided):
        mark = re.compile(rf"(<!-- {part.__name__}: scripts/hosts.py -->\n).*?(\n<!-- -->)", re.S)
        text = mark.sub(lambda found, part=part: found[1] + part() + found[2], text)
    return text


def main() -> int:
    stale = 0
    for page in (ROOT / "README.md", ROOT / "docs/hosts.md"):
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        stale += after != before
        if after != before and "--check" not in sys.argv:
            with replacing(page) as new:
                new.write_text(after, encoding="utf-8")
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
