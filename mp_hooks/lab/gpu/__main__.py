"""`python -m mp_hooks.lab.gpu`: the lines one after the other, each with a time limit; JSON and a table of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mp_hooks.errors import MotionPromptError, exits_cleanly, unknown_name
from mp_hooks.files import replacing
from mp_hooks.lab.gpu.lines import LINES
from mp_hooks.runs import versions
from mp_hooks.testing.doctor import environment

PATIENCE = 20  # times the limit on a GPU is the one on a CPU
DONE = ("passed", "skipped")


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Run the lines; 1 where one of them fails."""
    parser = argparse.ArgumentParser(prog="scripts/gpu.sh", description=__doc__)
    parser.add_argument("lines", nargs="*", metavar="LINE", help=f"of {', '.join(LINES)} (default: all)")
    parser.add_argument("--cpu", action="store_true", help="the same lines on tiny hosts, without a GPU")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="of the results (default: runs/gpu)"
    )
    args = parser.parse_args(argv)
    for name in args.lines:
        if name not in LINES:
            raise unknown_name("line", name, list(LINES))
    if not args.cpu and not torch.cuda.is_available():
        raise MotionPromptError("torch finds no GPU here; --cpu runs the same lines on tiny hosts")
    machine = about_machine(args.cpu)
    chosen = args.lines or list(LINES)
    for name in chosen:
        known = read(args.out / f"{name}.json")
        if not args.lines and known and known["machine"] == machine and known["status"] in DONE:
            print(f"== {name}: kept from {args.out}; name the line to run it again")
            continue
        show(run(name, "cpu" if args.cpu else "cuda", args.out, machine))
    results = [found for name in LINES if (found := read(args.out / f"{name}.json"))]
    with replacing(args.out / "table.md") as temporary:
        temporary.write_text(table(results), encoding="utf-8")
    print(f"== {args.out / 'table.md'}")
    return int(any(found["status"] not in DONE for found in results if found["line"] in chosen))


def about_machine(cpu: bool) -> dict[str, Any]:
    """The card, or processor, and versions: what a figure depends on."""
    card = platform.processor() or platform.machine()
    if not cpu:
        properties = torch.cuda.get_device_properties(0)
        card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return {"card": card, **versions()}


def run(name: str, device: str, out: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """One line in a process of its own; what it found so far is kept where its time runs out."""
    line, file, part, log = LINES[name], out / f"{name}.json", out / f".{name}.json", out / f"{name}.log"
    limit = line.limit if device == "cuda" else PATIENCE * line.limit
    print(f"== {name}: {line.what} (at most {limit} s)", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "mp_hooks.lab.gpu.lines", name, device, str(part)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
    found = {"rows": [], "failures": [], "skipped": [], **(read(part) or {})}
    part.unlink(missing_ok=True)
    if code is None:
        found["failures"].append(f"it took more than {limit} s")
    elif code:
        found["failures"].append(f"it ended with exit code {code}; its last words are in {log}")
    status = "failed" if found["failures"] else "passed" if found["rows"] else "skipped"
    seconds = round(time.perf_counter() - began, 1)
    found = {"line": name, "what": line.what, "status": status, "seconds": seconds, "machine": machine, **found}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def read(file: Path) -> dict[str, Any] | None:
    """What a file holds; None where there is none that is whole."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def show(found: dict[str, Any]) -> None:
    """A result on the terminal."""
    print(f"   {found['status']} in {found['seconds']} s, {len(found['rows'])} rows")
    for kind in ("failures", "skipped"):
        for what in found[kind]:
            print(f"   {kind}: {what}")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Every result as Markdown, with the machine that each was found on."""
    text = ["# The check on a GPU"]
    for found in results:
        machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
        text.append(f"## {found['line']}: {found['what']}\n\n{found['status']} in {found['seconds']} s; {machine}")
        text += [f"- {kind}: {what}" for kind in ("failures", "skipped") for what in found[kind]]
        if found["rows"]:
            heads = list(dict.fromkeys(head for row in found["rows"] for head in row))
            rows = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in found["rows"])]
            text.append(
                "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows)
            )
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
