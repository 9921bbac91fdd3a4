"""Broken inputs of every kind, read as the commands read them: python tests/fuzz.py --inputs 20000 --seed 0

An input is one that is right, cut, mixed and spoilt at random. Each must be read, or refused in one sentence, within
`PATIENCE` seconds, and nothing may be written outside the folder of outputs, started or unpickled meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from kills import TOY, TOY_FILES
from tqdm import tqdm

from mp_hooks import patching
from mp_hooks.config import MotionPromptConfig, add_config_flags, config_from_flags, load_config
from mp_hooks.discriminator import FlowDiscriminator
from mp_hooks.discriminator.model import CONFIG_FILE, WEIGHTS_FILE, DiscriminatorConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.generation import clips_of, read_prompts
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.study.ballots import Study, parse_ballot
from mp_hooks.patching.edit import apply_edits, count_applied, remove_edits
from mp_hooks.video import read_frames, video_info, write_video

PATIENCE = 20
NASTY = [
    *("", "\0", "\n", "\r\n", "..", "../../../../tmp/outside", "/etc/passwd", "~/x", "C:\\x", "\ud7ff", "😀", "\u2028"),
    *("nan", "inf", "-1", "0", "1e999", "9" * 400, "99999999999999", "true", "null", "1_000", "2001-99-99", "0x", "::"),
    *("!!python/object/apply:os.system ['touch outside']", "!!python/name:os.system", "!!binary x", "!!timestamp x"),
    *("!!int x", "!!float x", "&a [*a, *a]", "*a", "<<: *a", "? ", "- ", "{", "}", "[", "]", '"', "'", "#"),
    *("${oc.env:HOME}", "${a}", "${", "$(touch outside)", "`touch outside`", "; touch outside", "--mp-config"),
    *("word " * 1000, "|", ">", "%", "[" * 3000, "{a: " * 300, "<|endoftext|>", "a-0.mp4", "\t", "\\"),
]  # fmt: skip
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class", "os.fork")
BASH = ("bash", "-n")  # what mp-patch itself starts


class Bad(AssertionError):
    """An input that was not dealt with as it must be."""


def spoil(rng: random.Random, data: bytes) -> bytes:
    """`data` after a few random accidents."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(4)):
        at, to = sorted(rng.randrange(len(spoilt) + 1) for _ in range(2))
        accident = rng.randrange(6)
        if accident == 0:
            spoilt[at : at + 1] = bytes([rng.randrange(256)])
        elif accident == 1:
            del spoilt[at:to]
        elif accident == 2:
            spoilt[at:at] = spoilt[at:to]
        elif accident == 3:
            del spoilt[at:]
        else:
            spoilt[at : at if accident == 4 else to] = rng.choice(NASTY).encode()
    return bytes(spoilt)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that YAML or JSON can hold."""
    plain = [None, True, -1, 0, 1, 3, 10**30, 0.5, float("nan"), "word", rng.choice(NASTY), "end", "adam", "small"]
    if depth < 3 and rng.random() < 0.2:
        items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return items if rng.random() < 0.5 else {str(item)[:20]: item for item in items}
    return rng.choice(plain)


def mixed(rng: random.Random, tree: Any) -> Any:
    """`tree` with some values exchanged, left out or added."""
    if isinstance(tree, dict):
        kept = {key: mixed(rng, item) for key, item in tree.items() if rng.random() > 0.02}
        return kept if rng.random() > 0.05 else {**kept, rng.choice(NASTY)[:50]: value(rng)}
    if isinstance(tree, list):
        return [mixed(rng, item) for item in tree]
    return value(rng) if rng.random() < 0.05 else tree


# --- the kinds: each reads one input, made with `rng`, in the folder `where`


def configuration(rng: random.Random, where: Path) -> None:
    names = list(vars(MotionPromptConfig()))
    tree = {name: getattr(MotionPromptConfig(), name) for name in rng.sample(names, rng.randrange(len(names)))}
    path = write(where / "config.yaml", spoil(rng, yaml.safe_dump(mixed(rng, tree), allow_unicode=True).encode()))
    load_config(path).save(where / "out" / "config.yaml")


def flags(rng: random.Random, where: Path) -> None:
    parser = ArgumentParser()
    add_config_flags(parser)
    given = []
    for name in rng.sample(list(vars(MotionPromptConfig())), 3):
        given += [f"--mp-{name.replace('_', '-')}", str(value(rng))]
    try:
        config_from_flags(parser.parse_args(given))
    except SystemExit as ended:
        if ended.code == 2:  # argparse's own sentence
            raise MotionPromptError("refused") from ended
        raise


def manifest(rng: random.Random, where: Path) -> None:
    text = rng.choice(sorted(patching.manifest._patches().glob("*/manifest.yaml"))).read_text(encoding="utf-8")
    if rng.random() < 0.5:
        text = yaml.safe_dump(mixed(rng, yaml.safe_load(text)), allow_unicode=True)
    patching.read(write(where / "manifest.yaml", spoil(rng, text.encode())))


def host(rng: random.Random, where: Path) -> None:
    """A host's file as nobody expects it: what is put in comes out, or is refused."""
    file = rng.choice(TOY.files)
    data = spoil(rng, TOY_FILES[file.path])
    if count_applied(data, file.edits) == 0:
        patched = apply_edits(data, file.edits)
        if count_applied(patched, file.edits) != len(file.edits) or remove_edits(patched, file.edits) != data:
            raise Bad("an edit that cannot be undone")
    for one in TOY.files:
        write(where / "host" / one.path, spoil(rng, TOY_FILES[one.path]))
    patching.status(TOY, where / "host")


def trace(rng: random.Random, where: Path) -> None:
    records = [
        {"event": "run", "run": 0, "prompts": ["a", "b"], "seed": 3},
        *({"event": "iteration", "run": 0, "step": step, "loss": [0.5, 0.1], "pairs": [[0, 1]]} for step in range(5)),
        {"event": "end", "run": 0, "skipped": 0},
    ]
    lines = "".join(json.dumps(mixed(rng, record)) + "\n" for record in records)
    for record in read_trace(write(where / "trace.jsonl", spoil(rng, lines.encode()))):
        record["event"].strip()


def discriminator(rng: random.Random, where: Path) -> None:
    header = json.dumps(
        mixed(rng, {"model": "FlowDiscriminator", **vars(DiscriminatorConfig(width=8, depth=1, heads=2))})
    )
    write(where / "discriminator" / CONFIG_FILE, spoil(rng, header.encode()) if rng.random() < 0.5 else header.encode())
    weights = tiny_weights()
    write(where / "discriminator" / WEIGHTS_FILE, spoil(rng, weights) if rng.random() < 0.5 else weights)
    with torch.no_grad():
        FlowDiscriminator.from_pretrained(where / "discriminator")(torch.zeros(1, 2, 16, 16))


def ballot(rng: random.Random, where: Path) -> None:
    study = Study("s", {"one": ("a", "b"), "two": ("c", "d")})
    answers = [{"trial": "one", "left": "a", "right": "b", "choice": "left"}]
    content = mixed(rng, {"study": "s", "voter": "0" * 32, "answers": answers})
    try:
        parse_ballot(content, study)
    except ValueError as error:
        raise MotionPromptError(str(error)) from error


def prompts(rng: random.Random, where: Path) -> None:
    lines = "\n".join(rng.choice(["a boat", "a tiger", *NASTY]) for _ in range(rng.randrange(5)))
    path = write(where / "prompts.txt", spoil(rng, lines.encode()))
    if rng.random() < 0.5:
        entries = [{"prompt_en": line, "image_name": rng.choice(["x.jpg", line])} for line in lines.splitlines()]
        path = write(where / "prompts.json", spoil(rng, json.dumps(mixed(rng, entries)).encode()))
    for name in (clip.name for clip in clips_of(read_prompts(path), samples=2)):
        if (where / "out" / name).parent != where / "out" or name in (".", ".."):
            raise Bad(f"a clip outside the folder: {name!r}")
        (where / "out" / name).write_bytes(b"")
        (where / "out" / name).unlink()


def video(rng: random.Random, where: Path) -> None:
    suffix = rng.choice([".mp4", ".gif"])
    path = write(where / f"clip{suffix}", spoil(rng, tiny_video(suffix)))
    video_info(path)
    read_frames(path, size=16)


KINDS: dict[Callable[[random.Random, Path], None], int] = {
    configuration: 25, flags: 15, manifest: 15, host: 15, trace: 10, ballot: 8, prompts: 8, discriminator: 3, video: 1
}  # fmt: skip
_made: dict[str, bytes] = {}


def tiny_weights() -> bytes:
    if "weights" not in _made:
        with tempfile.TemporaryDirectory() as folder:
            FlowDiscriminator(DiscriminatorConfig(width=8, depth=1, heads=2)).save_pretrained(folder)
            _made["weights"] = (Path(folder) / WEIGHTS_FILE).read_bytes()
    return _made["weights"]


def tiny_video(suffix: str) -> bytes:
    if suffix not in _made:
        with tempfile.TemporaryDirectory() as folder:
            frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
            write_video(Path(folder) / f"clip{suffix}", frames, fps=8)
            _made[suffix] = (Path(folder) / f"clip{suffix}").read_bytes()
    return _made[suffix]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- the watch


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Yields what was done that must not be done, filled in as it happens; ends what takes too long."""
    seen: list[str] = []
    inside = str(folder.resolve())
    active = True

    def notice(event: str, arguments: tuple[Any, ...]) -> None:
        if not active:
            return
        if event in FORBIDDEN and not (event == "subprocess.Popen" and tuple(arguments[1])[1:] == BASH[1:]):
            seen.append(f"{event} {arguments}")
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.truncate")
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            writes = not isinstance(arguments[0], int)
        if writes and not os.path.abspath(os.fspath(arguments[0])).startswith(inside):  # noqa: PTH100 (no links here)
            seen.append(f"{event} {arguments}")

    def too_long(*_: Any) -> None:
        raise Bad(f"longer than {PATIENCE} s")

    sys.addaudithook(notice)
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        yield seen
    finally:
        active = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(count: int, seed: int, folder: Path) -> Counter[str]:
    """Read `count` inputs; what came of them. Raises Bad, with the input's number, at the first that is not."""
    figures: Counter[str] = Counter()
    (folder / "out").mkdir()
    tiny_weights(), tiny_video(".mp4"), tiny_video(".gif")
    with watched(folder) as seen:
        for number in tqdm(range(count), desc="inputs", disable=None):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            try:
                with redirect_stderr(StringIO()):
                    kind(rng, folder)
                outcome = "read"
            except MotionPromptError as error:
                outcome = "refused"
                if "\n" in str(error) or len(str(error)) > 5000:
                    raise Bad(f"input {number} of seed {seed}, {kind.__name__}: no sentence: {error}") from error
            except Exception as error:
                traceback.print_exc()
                raise Bad(f"input {number} of seed {seed}, {kind.__name__}: {type(error).__name__}") from error
            signal.setitimer(signal.ITIMER_REAL, 0)
            if seen:
                raise Bad(f"input {number} of seed {seed}, {kind.__name__}: {seen}")
            figures[f"{kind.__name__} {outcome}"] += 1
            slowest = int(1000 * (time.monotonic() - began))
            figures["slowest, ms"] = max(figures["slowest, ms"], slowest)
    if set(folder.parent.glob("outside*")) | set(Path.cwd().glob("outside*")):
        raise Bad("something was written outside")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mp-fuzz-") as folder:
        figures = fuzz(args.inputs, args.seed, Path(folder))
    print(f"\ninputs, seed {args.seed}")
    for name, figure in sorted(figures.items()):
        print(f"  {figure:6d} {name}")
    print("       0 lost: no traceback, no hang, no file outside, nothing started")


if __name__ == "__main__":
    main()
