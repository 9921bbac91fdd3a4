"""The documentation shows what is there: every command, flag, default, link, path and piece of code in it is read."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from PIL import Image

from mp_hooks import entry, patching
from mp_hooks.cli import main, patch
from mp_hooks.config import PRESETS, MotionPromptConfig

ROOT = Path(__file__).parents[1]
README, OPTIONS = ROOT / "README.md", ROOT / "docs/options.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

TOOLS = {"bash", "cd", "cp", "motionprompt", "mp-patch", "pip", "pytest", "python", "torchrun"}
FOLDERS = (
    "mp_hooks",
    "docs",
    "tests",
    "scripts",
    "patches",
    "comfyui",
)  # what lies in them is ours, or a host's script
OTHERS = {"mypy", "pytest", "ruff"}  # modules that are run and not ours
BANNED = r"\.\./shared|\bjudge\w*|\bprove[sd]?\b|\barms?\b"


# What is there.


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """Our commands' parsers."""
    return {"motionprompt": main.build_parser(), "mp-patch": patch.build_parser()}


@cache
def host_flags() -> argparse.ArgumentParser:
    """What a patched host's script takes of ours."""
    parser = argparse.ArgumentParser(add_help=False)
    entry.add_arguments(parser)
    return parser


@cache
def our_flags() -> set[str]:
    """Every flag that some command or script of ours has."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mp_hooks").rglob("*.py"))
    shell = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("*.sh"))
    flags = re.findall(r'"(--[a-z][\w-]*)"', code) + re.findall(r"--[a-z][\w-]*", shell)
    return {*flags, *host_flags()._option_string_actions}


@cache
def host_scripts() -> set[str]:
    """The files that mp-patch edits, as paths and by the names they are run by."""
    files = [file.path for name in patching.names() for file in patching.load(name).files]
    tails = {"/".join(Path(file).parts[-2:]) for file in files}
    return {*map(str, files), *tails, *(tail.removesuffix(".py").replace("/", ".") for tail in tails)}


@cache
def file_names() -> set[str]:
    """The bare names of our files and of the hosts' scripts."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return {Path(path).name for path in [*ROOT.iterdir(), *inside, *host_scripts()]}


def names_a_host(text: str) -> bool:
    return any(script in text for script in host_scripts())


def default_of(flag: str) -> object:
    """An option's default: the configuration's, else the flag's own."""
    own = {"--mp-" + option.name.replace("_", "-"): option.default for option in fields(MotionPromptConfig)}
    return own.get(flag, host_flags()._option_string_actions[flag].default)


@cache
def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# What is told.


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def passages(text: str) -> list[str]:
    """Paragraphs, items and table rows outside fences, a line each."""
    text = re.sub(r"^```.*?^```\n?", "\n", text, flags=re.M | re.S)
    return [" ".join(part.split()) for part in re.split(r"\n(?=\s*(?:[-|#>]|\d+\.)\s?)|\n\s*\n", text) if part.strip()]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every table's rows, without the line under the head."""
    found = re.findall(r"(?:^\|.*\|\n?)+", text, re.M)
    rows = [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in rows]


def spans(passage: str) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`]+)`", passage)


def faults(page: Path, text: str) -> Iterator[str]:
    """What `text`, as a page, tells that is not there."""
    for language, code in fences(text):
        if language == "python":
            yield from faults_of_code(code) if page.name != "porting.md" else []  # which has a test of its own
            continue
        for line in code.replace("\\\n", " ").splitlines():
            yield from faults_of_line(line)
            yield from faults_of_paths(line)
    for passage in passages(text):
        for span in spans(passage):
            yield from faults_of_paths(span)
            if span.split()[0] in TOOLS and " " in span:
                yield from faults_of_line(span)
            else:
                flags = {flag for flag in flags_of(span.split()) if flag not in our_flags()}
                yield from (f"no flag {flag}" for flag in flags if flag[:5] == "--mp-" or not names_a_host(passage))
    for head, *rows in tables(text):
        if "default" in head:
            for row in rows:
                yield from faults_of_defaults(re.findall(r"`(--[\w-]+)", row[0]), row[head.index("default")])
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not link.startswith("https://") and not target.exists():
            yield f"no target of the link {link}"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"no heading for the link {link}"
    yield from (f"the word {word}" for word in re.findall(BANNED, text, re.I))


def flags_of(words: list[str]) -> list[str]:
    """The flags among words; --mp-* and --mp-... stand for any."""
    flags = [re.match(r"[\w-]+", word)[0] for word in words if re.match(r"--\w", word)]
    return [flag for flag in flags if flag != "--mp-"]


def faults_of_line(line: str) -> Iterator[str]:
    """A line of shell: commands joined by &&."""
    for joined, command in groupby(shlex.split(line, comments=True), "&&".__eq__):
        words = [] if joined else list(command)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] == "torchrun" and "motionprompt" in words:
            words = words[words.index("motionprompt") :]
        if words:
            yield from faults_of_command(*words)


def faults_of_command(tool: str, *words: str) -> Iterator[str]:
    if tool not in TOOLS:
        yield f"no command {tool}"
    elif tool in commands():
        yield from faults_of_ours(commands()[tool], list(words))
    elif tool == "bash":
        yield from faults_of_script(words[0], list(words))
    elif tool == "python" and words[0] == "-m":
        yield from faults_of_module(words[1], list(words[2:]))
    elif tool == "pip":
        known = re.findall(r'^    "(\w+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M)
        asked = [extra for word in words for extra in re.findall(r"\[(.+)\]", word)]
        yield from (f"no extra {name}" for extra in asked for name in extra.split(",") if name not in known)


def faults_of_ours(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[str]:
    """A command of ours: its subcommands, its flags, and their values where these are a choice."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0][:1] != "-":
            if words[0] in action.choices:
                yield from faults_of_ours(action.choices[words[0]], words[1:])
            else:
                yield f"no subcommand {words[0]}"
            return
    for flag in flags_of(words):
        if flag not in parser._option_string_actions:
            yield f"no flag {flag} of {parser.prog}"
    for flag, value in pairwise(words):
        known = parser._option_string_actions.get(flag)
        if known and known.choices and value[0] != "-" and not value.isupper() and value not in known.choices:
            yield f"{flag} cannot be {value}"
    if (
        parser.prog == "mp-patch"
        and words
        and words[0] not in {"NAME", *patching.names(), *patching.PACKS}
        and words[0][:1] != "-"
    ):
        yield f"no host {words[0]}"


def faults_of_script(script: str, words: list[str]) -> Iterator[str]:
    """A shell script: ours, whose flags its text or a module it runs must know, or a host's, which has its own."""
    if not (ROOT / script).is_file() and script not in host_scripts():
        yield f"no script {script}"
    elif script in host_scripts():
        yield from (f"no flag {flag}" for flag in flags_of(words) if flag[:5] == "--mp-" and flag not in our_flags())
    else:
        text = (ROOT / script).read_text(encoding="utf-8")
        text += "".join(source(module) or "" for module in re.findall(r"-m (mp_hooks[\w.]+)", text))
        yield from (f"no flag {flag} of {script}" for flag in flags_of(words) if flag not in text)


def faults_of_module(module: str, words: list[str]) -> Iterator[str]:
    text = source(module)
    if text is None and module not in OTHERS | host_scripts():
        yield f"no module {module}"
    for flag in flags_of(words) if text is not None else []:
        if f'"{flag}"' not in text and not ("add_config_flags" in text and flag in host_flags()._option_string_actions):
            yield f"no flag {flag} of {module}"


def source(module: str) -> str | None:
    """Text of a module of ours; None where there is none."""
    path = ROOT / module.replace(".", "/")
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return files[0].read_text(encoding="utf-8") if module.startswith("mp_hooks") and files else None


def faults_of_paths(code: str) -> Iterator[str]:
    """Paths, files and dotted names of ours in a piece of code; a word in capitals stands for any name."""
    for word in re.findall(r"[\w./*-]+", code):
        pattern = re.sub(r"\b[A-Z]{3,}\b", "*", word).rstrip("./")
        inside = "/" in word and word.split("/")[0] in FOLDERS
        if inside and not any(ROOT.glob(pattern)) and word not in host_scripts():
            yield f"no path {word}"
        if re.fullmatch(r"\w+\.(py|sh|md)", word) and word not in file_names():
            yield f"no file {word}"
        if re.fullmatch(r"mp_hooks(\.\w+)+", word) and source(word) is None:
            module, _, name = word.rpartition(".")
            if name not in (source(module) or ""):
                yield f"no name {word}"


def faults_of_defaults(flags: list[str], told: str) -> Iterator[str]:
    """A row of a table with a column of defaults."""
    words = {None: "none", True: "on", False: "off"}
    for flag, value in zip(flags, told.split(", "), strict=True):
        if flag not in host_flags()._option_string_actions:
            continue  # told as a flag that is not there
        default = default_of(flag)
        number = isinstance(default, float) or type(default) is int
        if float(value) != default if number else value != words.get(default, default):
            yield f"the default of {flag} is {default}, not {value}"


def faults_of_code(code: str) -> Iterator[str]:
    """Python: names that come from mp_hooks, and the configuration's options."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mp_hooks":
            for name in (alias.name for alias in node.names):
                known = re.findall(r"\w+", source(node.module) or "")
                if name not in known and source(f"{node.module}.{name}") is None:
                    yield f"no name {name} in {node.module}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MotionPromptConfig":
            known = {option.name for option in fields(MotionPromptConfig)}
            yield from (f"no option {keyword.arg}" for keyword in node.keywords if keyword.arg not in known)


# The tests.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_tells_is_there(page: Path) -> None:
    assert list(faults(page, page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```\nmotionpromt doctor NAME\n```", "no command motionpromt"),
        ("```\nmp-patch lavie --chek && motionprompt evalute A B\n```", "no flag --chek of mp-patch"),
        ("```\nmp-patch lavie && motionprompt evalute A B\n```", "no subcommand evalute"),
        ("```\nmp-patch lavi\n```", "no host lavi"),
        ("```\nmotionprompt flow drawn VIDEO\n```", "no subcommand drawn"),
        ("```\nmotionprompt generate --prompt 'a b' \\\n    --mp-lambda-fotos 3\n```", "no flag --mp-lambda-fotos"),
        ("with `motionprompt cost NAME --mp-preset fastest`", "--mp-preset cannot be fastest"),
        ("```\ntorchrun --no-python motionprompt flow extract --out DIR --shards 3\n```", "no flag --shards"),
        ("```\nbash scripts/demos.sh\n```", "no script scripts/demos.sh"),
        ("```\nbash scripts/train_mini.sh --out DIR --hours 3\n```", "no flag --hours of scripts/train_mini.sh"),
        ("```\nbash scripts/run_text2video.sh --motionprompt --mp-iteration 3\n```", "no flag --mp-iteration"),
        ("```\npython -m mp_hooks.mini.train\n```", "no module mp_hooks.mini.train"),
        ("```\npython -m mp_hooks.testing.precision lavie --half\n```", "no flag --half"),
        ("```\npip install -e '.[test,lavi]'\n```", "no extra lavi"),
        ("the option `--photo`", "no flag --photo"),
        ("the option\n`--mp-photo 3` of `scripts/run.sh`", "no flag --mp-photo"),
        ("| option | default |\n|---|---|\n| `--mp-iterations` | 4 |\n", "the default of --mp-iterations is 3, not 4"),
        ("| option | default |\n|---|---|\n| `--mp-progress` | off |\n", "the default of --mp-progress is True"),
        ("see [there](docs/there.md)", "no target of the link docs/there.md"),
        ("see [there](docs/cost.md#the-price)", "no heading for the link"),
        ("in `mp_hooks/mini/model.py`", "no path mp_hooks/mini/model.py"),
        ("in `patches/NAME/manifest.yml`", "no path patches/NAME/manifest.yml"),
        ("in `conftests.py`", "no file conftests.py"),
        ("`mp_hooks.backbones.base.Adaptor` is", "no name mp_hooks.backbones.base.Adaptor"),
        ("```python\nfrom mp_hooks import apply_patches\n```", "no name apply_patches in mp_hooks"),
        ("```python\nMotionPromptConfig(lambda_foto=3)\n```", "no option lambda_foto"),
        ("clips in ../shared/data", "the word ../shared"),
        ("a judged clip", "the word judged"),
    ],
)
def test_what_is_not_there_is_found(text: str, found: str) -> None:
    assert any(fault.startswith(found) for fault in faults(README, text))


@pytest.mark.parametrize(
    "text",
    [
        "```\nOMP_NUM_THREADS=1 motionprompt cost mini --mp-...   # or another; --nothing\n```",
        "of the host's `scripts/run.sh`: `--loop`, and `--mp-device cpu`",
        "`bash scripts/test.sh -k flow`, `python -m mypy` and `patches/NAME/manifest.yaml`",
        "| option | default |\n|---|---|\n| `--mp-start`, `--mp-stop` | 0.08, 0.30 |\n",
    ],
)
def test_what_is_there_is_no_fault(text: str) -> None:
    assert list(faults(README, text)) == []


def test_every_option_and_preset_is_told() -> None:
    told = tables(OPTIONS.read_text(encoding="utf-8"))
    flags = {flag for table in told for row in table for flag in re.findall(r"^`(--[\w-]+)", row[0])}
    assert flags == {action.option_strings[0] for action in host_flags()._actions}
    (presets,) = [table for table in told if table[0][0] == "preset"]
    assert {row[0].strip("`") for row in presets[1:]} == set(PRESETS)


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert {f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)\)", index)} == {
        str(page.relative_to(ROOT)) for page in PAGES if page.parent.name == "docs" and page.name != "README.md"
    }


def test_the_first_screen() -> None:
    """One screen: the clips, the two commands, which scripts/matrix.sh runs, and not many lines after that."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    (clips,) = re.findall(r"^!\[.+\]\((.+)\)$", "\n".join(lines[:19]), re.M)
    assert (ROOT / clips).stat().st_size < 1e6
    with Image.open(ROOT / clips) as image:
        assert image.n_frames > 1
    (taken,) = re.findall(r"\$\((awk .+ README\.md)\)", (ROOT / "scripts/matrix.sh").read_text(encoding="utf-8"))
    run = subprocess.run(["bash", "-c", taken], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split("#")[0].strip() for line in run.splitlines()] == ["bash scripts/demo.sh", "bash scripts/test.sh"]


def test_what_draws_the_clips_imports_what_is_there() -> None:
    assert list(faults_of_code((ROOT / "scripts/teaser.py").read_text(encoding="utf-8"))) == []


def test_the_porting_guide_shows_the_code_that_is_there() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8") for part in ("mp_hooks", "tests") for path in (ROOT / part).rglob("*.py")
    )
    guide = (ROOT / "docs/porting.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", guide, re.S)
    assert len(shown) == 5
    for block in shown:
        assert block in code, block
