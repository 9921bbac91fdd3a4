"""The documentation shows the code that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_porting_guide_shows_the_code_that_is_there() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8") for part in ("mp_hooks", "tests") for path in (ROOT / part).rglob("*.py")
    )
    guide = (ROOT / "docs/porting.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", guide, re.S)
    assert len(shown) == 5
    for block in shown:
        assert block in code, block
