"""mp-patch killed, starved and raced at random moments: python tests/kills.py --kills 1000 --seed 0

Each trial works on copies of the files of a host, with newlines and edits as users have them. The operation runs in a
forked child, which dies at a line of Python drawn at random (its own or the standard library's, so that all system
calls are passed) or after a random time, or whose disk is full from a random write on. Whatever happened, the next
mp-patch must find the host untouched or patched whole, say which, and every edit of the user's must be there.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mp_hooks import patching
from mp_hooks.errors import MotionPromptError
from mp_hooks.patching import Manifest
from mp_hooks.patching.edit import Edit, apply_edits, remove_edits
from mp_hooks.patching.manifest import PatchedFile, Script

MINE = b"# mine, %d"
LONGEST = 0.03  # seconds until a kill by the clock: about as long as an operation takes
LINES = 25_000  # until a kill by count: about as many as an operation has
WRITING = 500  # the same of those that write
CALLS = 80  # the same of system calls
TOY = Manifest(
    name="toy",
    title="Toy",
    url="https://example.org/toy",
    commit="0123456789" * 4,
    folder="third_party/Toy",
    run="bash run.sh",
    script=Script("seed", "out", ("weights",), ("cuda_calls",)),
    files=(
        PatchedFile("run.sh", "", (Edit("end", b"--fps", b' "$@"'),)),
        PatchedFile("more/run.sh", "", (Edit("end", b"--fps", b' "$@"'),)),
        PatchedFile(
            "code/run.py",
            "",
            (Edit("after", b"import sys", b"import motionprompt"), Edit("before", b"def run(", b"@motionprompt.host")),
        ),
    ),
)
TOY_FILES = {
    "run.sh": b"python run.py --mode fast \\\n--fps 28\n",
    "more/run.sh": b"python run.py \\\n--fps 8",
    "code/run.py": b"import sys\r\n\r\ndef run(args):\r\n    return args\r\n\r\nrun(sys.argv)",
}


class Lost(AssertionError):
    """The host is not what it has to be."""


@dataclass
class Trial:
    """A checkout of `manifest`. bare: its files without our edits, as the user has them. older: as first patched."""

    manifest: Manifest
    older: Manifest
    root: Path
    bare: dict[str, bytes]

    def write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if name.endswith(".sh") else 0o644)

    def patched(self, manifest: Manifest) -> dict[str, bytes]:
        return {file.path: apply_edits(self.bare[file.path], file.edits) for file in manifest.files}

    def check(self) -> str:
        """The state that the next mp-patch tells, which must be the truth."""
        state = patching.status(self.manifest, self.root).state
        wholes = {
            patching.UNPATCHED: self.bare,
            patching.PATCHED: self.patched(self.manifest),
            patching.OUTDATED: self.patched(self.older),
        }
        found = {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        if state not in wholes or found != wholes[state]:
            wrong = {name for name in found | self.bare if found.get(name) != wholes.get(state, {}).get(name)}
            raise Lost(f"status says '{state}', which is not so of {', '.join(sorted(wrong)) or 'anything'}")
        for name in found:
            if (self.root / name).stat().st_mode & 0o777 != (0o755 if name.endswith(".sh") else 0o644):
                raise Lost(f"{self.root / name}: other permissions")
        return state


def hosts() -> list[tuple[Manifest, dict[str, bytes]]]:
    """Every host in third_party/ with its files as pinned, and a toy."""
    found = [(TOY, TOY_FILES)]
    for manifest in map(patching.load, patching.names()):
        folder = patching.default_checkout(manifest)
        if patching.is_present(folder):
            files = {file.path: remove_edits((folder / file.path).read_bytes(), file.edits) for file in manifest.files}
            if all(file.is_pristine(files[file.path]) for file in manifest.files):
                found.append((manifest, files))
    return found


def renewed(manifest: Manifest) -> tuple[Manifest, Manifest]:
    """(`manifest` with a former text for every edit, the manifest that had these texts)."""
    new, old = [], []
    for file in manifest.files:
        former = [edit.insert + (b" $old" if edit.place == "end" else b"  # old") for edit in file.edits]
        pairs = list(zip(file.edits, former, strict=True))
        new.append(replace(file, edits=tuple(replace(edit, formerly=(text,)) for edit, text in pairs)))
        old.append(replace(file, edits=tuple(replace(edit, insert=text) for edit, text in pairs)))
    return replace(manifest, files=tuple(new)), replace(manifest, files=tuple(old))


def build(rng: random.Random, root: Path, host: tuple[Manifest, dict[str, bytes]]) -> Trial:
    """A checkout in a random state that users have."""
    manifest, older = renewed(host[0])
    trial = Trial(manifest, older, root, dict(host[1]))
    for name in trial.bare:
        newline = rng.choice([None, None, b"\n", b"\r\n"])
        if newline:
            trial.bare[name] = trial.bare[name].replace(b"\r\n", b"\n").replace(b"\n", newline)
    edit_as_user(rng, trial, on_disk=False)
    trial.write(
        {"bare": trial.bare, "old": trial.patched(older), "new": trial.patched(manifest)}[
            rng.choice(["bare", "bare", "old", "new"])
        ]
    )
    return trial


def edit_as_user(rng: random.Random, trial: Trial, on_disk: bool = True) -> None:
    """Sometimes put a comment in front of a file."""
    if rng.random() < 0.5:
        name = rng.choice(sorted(trial.bare))
        line = MINE % rng.randrange(10**6) + (b"\r\n" if b"\r\n" in trial.bare[name] else b"\n")
        trial.bare[name] = line + trial.bare[name]
        if on_disk:
            (trial.root / name).write_bytes(line + (trial.root / name).read_bytes())


# --- what goes wrong in the child


def die_at_line(number: int, since: str = "") -> None:
    """At the given line of Python, counted from the call of the function `since`."""
    left, counts = number, not since

    def count(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal left, counts
        counts = counts or frame.f_code.co_name == since
        left -= counts and event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)


def die_at_call(number: int) -> None:
    """Before the given one of the system calls that Python reports."""
    left = number

    def count(_event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal left
        left -= 1
        if left == 0:  # killing is such a call, too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def fill_disk_at(number: int) -> None:
    """From the given one of the operation's changes to the file system on, all fail."""
    left = number

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        opens = event == "open" and not isinstance(arguments[0], int) and set(arguments[1] or "") & set("wax+")
        if opens or event in ("os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir"):
            left -= 1
            if left <= 0:
                raise OSError(28, "No space left on device")

    sys.addaudithook(refuse)


def limit_size(size: int) -> None:
    """No file can grow beyond `size` bytes, by the kernel."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def interrupt_at(number: int) -> None:
    """Ctrl-C at the given one of the operation's system calls that Python reports."""
    left = number

    def interrupt(_event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    sys.addaudithook(interrupt)


def start(operation: Callable[[], object], fault: Callable[[], object] = lambda: None) -> int:
    """Run `operation` in a child under `fault`; its process id. It ends with 0, 2 (a sentence) or 130 (Ctrl-C)."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        fault()
        operation()
        code = 0
    except MotionPromptError:
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(child: int) -> str:
    """How a child ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 1:
        raise Lost("a traceback")
    return {0: "completed", 2: "refused in a sentence", 130: "interrupted", -signal.SIGKILL: "killed"}[code]


def disturbed(rng: random.Random, trial: Trial) -> list[str]:
    """Run operations on the trial's checkout while something goes wrong; how they ended."""
    operations = [
        lambda: patching.apply(trial.manifest, trial.root, force=True),
        lambda: patching.revert(trial.manifest, trial.root),
        lambda: patching.status(trial.manifest, trial.root),
    ]
    operation = rng.choice(operations[:2])
    kind = rng.choice(
        ["line", "write", "write", "call", "call", "call", "clock", "clock", "full", "size", "interrupt", "race"]
    )
    if kind == "line":
        return [end(start(operation, lambda: die_at_line(rng.randrange(1, LINES))))]
    if kind == "write":
        return [end(start(operation, lambda: die_at_line(rng.randrange(1, WRITING), since="_write")))]
    if kind == "call":
        return [end(start(operation, lambda: die_at_call(rng.randrange(1, CALLS))))]
    if kind == "full":
        return [end(start(operation, lambda: fill_disk_at(rng.randrange(1, 12))))]
    if kind == "size":
        return [end(start(operation, lambda: limit_size(rng.randrange(0, 20_000))))]
    if kind == "interrupt":
        return [end(start(operation, lambda: interrupt_at(rng.randrange(1, CALLS))))]
    children = [start(rng.choice(operations)) for _ in range(3)] if kind == "race" else []
    first = start(operation)
    time.sleep(rng.random() * LONGEST)
    os.kill(first, signal.SIGKILL)
    return [end(child) for child in (first, *children)]


def kill(count: int, seed: int, folder: Path) -> Counter[str]:
    """Trials until `count` processes were killed; raises Lost, with the trial's number, at the first that loses."""
    figures: Counter[str] = Counter()
    available = hosts()
    with tqdm(total=count, desc="kills", disable=None) as bar:
        while figures["killed"] < count:
            number = figures["trials"]
            rng = random.Random(f"{seed} {number}")
            root = folder / str(number)
            trial = build(rng, root, rng.choice(available))
            try:
                outcomes = disturbed(rng, trial)
                # the next one is sometimes killed as well, while it undoes what the first has left
                while outcomes[-1] == "killed" and rng.random() < 0.5:
                    edit_as_user(rng, trial)
                    outcomes += disturbed(rng, trial)
                edit_as_user(rng, trial)
                figures["left half done, undone by the next"] += (root / ".mp-patch").is_dir()
                figures[f"found {trial.check()}"] += 1
                patching.apply(trial.manifest, root, force=True)
                if trial.check() != patching.PATCHED:
                    raise Lost("it could not be patched afterwards")
                patching.revert(trial.manifest, root)
                if trial.check() != patching.UNPATCHED:
                    raise Lost("it could not be reverted afterwards")
            except (Lost, MotionPromptError) as error:
                raise Lost(f"trial {number} of seed {seed}: {error}") from error
            shutil.rmtree(root)
            figures.update(outcomes)
            figures["trials"] += 1
            bar.update(min(outcomes.count("killed"), bar.total - bar.n))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    memory = Path("/dev/shm")  # where there is one: files are written through to the disk, which takes its time
    with tempfile.TemporaryDirectory(prefix="mp-kills-", dir=memory if memory.is_dir() else None) as folder:
        figures = kill(args.kills, args.seed, Path(folder))
    print(f"\nmp-patch, seed {args.seed}, hosts {', '.join(manifest.name for manifest, _ in hosts())}")
    for name, figure in sorted(figures.items()):
        print(f"  {figure:6d} {name}")
    print("       0 lost")


if __name__ == "__main__":
    main()
