"""The shape of the package: imports run one way and in no circle, hosts are met late, modules stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "mp_hooks").rglob("*.py"))
}
# Each line may import from itself and from those below; the last one is what belongs to no part, as errors and config.
LAYERS = (
    {"cli"},
    {"lab"},
    {"testing"},  # of adapters, for porters too
    {"entry", "generation", "backbones", "patching", "compat"},
    {"guidance"},
    {"discriminator", "flow"},
    {""},
)
HOSTS = {"diffusers", "lvdm", "animatediff", "comfy"}
LONGEST = 350  # lines
FORMER_WORD = re.compile(r"\bjudge\b", re.IGNORECASE)
MAY_SAY_IT = {"tests/test_structure.py"}  # and files that read keys of old results


def part(module: str) -> str:
    """The part of the package that a module belongs to, "" for what every part may use."""
    name = module.split(".")[1] if "." in module else ""
    return name if any(name in parts for parts in LAYERS) else ""


def layer(module: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part(module) in parts)


@cache
def imports(module: str) -> list[tuple[str, bool]]:
    """(what is imported, whether at import time) of a module, those for the type checker alone left out."""
    return list(_imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), True))


def _imports(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(ast.Module(child.orelse, []), at_import)
        elif isinstance(child, ast.Import):
            yield from ((name.name, at_import) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for name in child.names:
                whole = f"{child.module}.{name.name}"
                yield (whole if whole in MODULES else str(child.module), at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, at_import and not inside)


def ours(module: str) -> set[str]:
    """Modules of the package that a module imports, in functions too."""
    return {name for name, _ in imports(module) if name in MODULES}


def test_imports_run_one_way() -> None:
    """From the laboratory to the core and never back, in functions too."""
    upwards = {f"{module} -> {other}" for module in MODULES for other in ours(module) if layer(other) < layer(module)}
    assert not upwards


def reached(module: str) -> set[str]:
    """Every module that a module imports, directly or by way of others."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        new = ours(ahead.pop()) - found
        found |= new
        ahead += new
    return found


def test_there_is_no_circle() -> None:
    assert not [module for module in MODULES if module in reached(module)]


def test_hosts_are_imported_in_functions_and_by_guidance_not_at_all() -> None:
    """But for TAESD's decoder, a network of diffusers that guidance builds when it is asked for."""
    of_hosts = [
        (module, at_import) for module in MODULES for name, at_import in imports(module) if name.split(".")[0] in HOSTS
    ]
    assert not [module for module, at_import in of_hosts if at_import]
    assert {module for module, _ in of_hosts if part(module) == "guidance"} <= {"mp_hooks.guidance.decoder"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mp_hooks", "torch"),
        ("import mp_hooks.entry, mp_hooks.cli.main as main; main.build_parser()", "torch"),
        ("from mp_hooks import motionprompt; import mp_hooks.discriminator, mp_hooks.flow, mp_hooks.patching", "lab"),
    ],
)
def test_what_is_imported_late_is_not_there_at_once(statement: str, absent: str) -> None:
    tops = "{name.split('.')[1] if name.startswith('mp_hooks.') else name for name in sys.modules}"
    code = f"import sys\n{statement}\nprint(*({tops} & {{'{absent}', 'diffusers', 'lvdm'}}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not found.strip()


def test_modules_of_the_method_and_the_adapters_are_short() -> None:
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
        if part(module) in {"guidance", "backbones"}
    }
    assert not {module: lines for module, lines in lengths.items() if lines > LONGEST}


def test_the_discriminator_is_called_that() -> None:
    folders = ("mp_hooks", "docs", "patches", "scripts", "tests", "comfyui")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [ROOT / name for name in ("README.md", "CHANGELOG.md", "setup.py", "pyproject.toml")]
    texts = [path for path in files if path.suffix in {".py", ".md", ".html", ".json", ".yaml", ".toml", ".sh"}]
    saying = {str(path.relative_to(ROOT)) for path in texts if FORMER_WORD.search(path.read_text(encoding="utf-8"))}
    assert saying <= MAY_SAY_IT
