"""mp-patch's engine on small files made here, and its operations on VideoCrafter's real ones."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from upstreams import commit_all, git, unpatched

from mp_hooks import patching
from mp_hooks.cli.patch import main
from mp_hooks.errors import MotionPromptError
from mp_hooks.patching.checkout import locked
from mp_hooks.patching.edit import Edit, apply_edits, count_applied, remove_edits

SCRIPT = b"echo start\npython run.py --mode fast \\\n--fps 28\n"
ENTRY = b"import sys\r\n\r\ndef run(args):\r\n    model.eval()\r\n    return args\r\n\r\nrun(sys.argv)"
TOY = {
    "name": "toy",
    "title": "Toy",
    "url": "https://example.org/toy",
    "commit": "0123456789" * 4,
    "folder": "third_party/Toy",
    "run": "bash run.sh",
    "script": {"seed": "seed", "output": "out", "files": ["weights"], "shims": ["cuda_calls"]},
    "files": [
        {
            "path": "run.sh",
            "sha256": hashlib.sha256(SCRIPT).hexdigest(),
            "edits": [{"place": "end", "anchor": "--fps", "insert": ' "$@"'}],
        },
        {
            "path": "code/run.py",
            "sha256": hashlib.sha256(ENTRY).hexdigest(),
            "edits": [
                {"place": "after", "anchor": "import sys", "insert": "import hook"},
                {"place": "before", "anchor": "def run(", "insert": "@hook.host"},
                {"place": "after", "anchor": "model.eval()", "insert": "    hook.install(model)"},
            ],
        },
    ],
}


@pytest.fixture
def toy(tmp_path: Path) -> patching.Manifest:
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return patching.read(path)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "Toy"
    (root / "code").mkdir(parents=True)
    (root / "run.sh").write_bytes(SCRIPT)
    (root / "run.sh").chmod(0o755)
    (root / "code/run.py").write_bytes(ENTRY)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the tree, hidden ones included."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


# --- edits on bytes


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("place", ["end", "before", "after"])
@pytest.mark.parametrize("anchor", [b"first", b"\xff middle", b"last"])
def test_removing_undoes_applying_byte_for_byte(newline: bytes, final: bool, place: str, anchor: bytes) -> None:
    data = newline.join([b"the first", b"\xff middle\tone", b"", b"the last"]) + (newline if final else b"")
    edits = [Edit(place, anchor, b"  ours")]
    applied = apply_edits(data, edits)
    assert applied != data
    assert len(applied) - len(data) == len(b"  ours") + (0 if place == "end" else len(newline))
    assert applied.count(b"\n") == applied.count(newline), "a newline of another kind came in"
    assert apply_edits(applied, edits) == applied
    assert remove_edits(applied, edits) == data


def test_where_the_text_goes() -> None:
    edits = [Edit("end", b"b", b"!"), Edit("before", b"b", b"above"), Edit("after", b"b", b"below")]
    assert apply_edits(b"a\nb\nc", edits) == b"a\nabove\nb!\nbelow\nc"


def test_a_line_that_is_the_anchor_beats_those_that_contain_it() -> None:
    edits = [Edit("end", b"--stride 3", b" more")]
    data = b"run --stride 3 \\\nend\n--stride 3\n"
    applied = apply_edits(data, edits)
    assert applied == b"run --stride 3 \\\nend\n--stride 3 more\n"
    assert remove_edits(applied, edits) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a.eval()\nb.eval()\n", "found 2 times"),
        (b"nothing\n", "found 0 times"),
    ],
)
def test_an_anchor_must_be_found_once(data: bytes, message: str) -> None:
    with pytest.raises(MotionPromptError, match=message):
        apply_edits(data, [Edit("after", b"eval()", b"ours()")])


def test_text_that_stands_twice_is_not_guessed_at() -> None:
    with pytest.raises(MotionPromptError, match="2 times"):
        remove_edits(b"ours\nx\nours\n", [Edit("after", b"x", b"ours")])


def test_a_line_that_goes_on_has_no_end() -> None:
    with pytest.raises(MotionPromptError, match="goes on"):
        apply_edits(b"run --fps 8 \\\n--seed 1\n", [Edit("end", b"--fps", b' "$@"')])


def test_our_line_is_known_again_after_a_formatter() -> None:
    edits = [Edit("after", b"eval()", b"    ours()")]
    assert count_applied(b"eval()\n\tours()  \n", edits) == 1


# --- checkouts


def test_apply_and_revert_leave_nothing_behind(toy: patching.Manifest, repo: Path) -> None:
    before, mode = contents(repo), (repo / "run.sh").stat().st_mode
    assert patching.status(toy, repo).state == patching.UNPATCHED
    assert patching.apply(toy, repo).state == patching.PATCHED
    patched = contents(repo)
    assert patched.keys() == before.keys()
    assert patched["run.sh"] == SCRIPT[:-1] + b' "$@"\n'
    assert patched["code/run.py"].count(b"\r\n") == ENTRY.count(b"\r\n") + 3
    assert (repo / "run.sh").stat().st_mode == mode
    patching.require_patched(toy, repo)
    assert patching.revert(toy, repo).state == patching.UNPATCHED
    assert contents(repo) == before
    assert (repo / "run.sh").stat().st_mode == mode


def test_apply_twice_is_once_and_writes_nothing(toy: patching.Manifest, repo: Path) -> None:
    patching.apply(toy, repo)
    first = {path: path.stat().st_ino for path in repo.rglob("*")}
    patching.apply(toy, repo)
    assert {path: path.stat().st_ino for path in repo.rglob("*")} == first


def test_diff_shows_the_edit_and_does_not_make_it(toy: patching.Manifest, repo: Path) -> None:
    before = contents(repo)
    lines = patching.diff(toy, repo).splitlines()
    assert [line for line in lines if line.startswith("+") and not line.startswith("+++")] == [
        '+--fps 28 "$@"',
        "+import hook",
        "+@hook.host",
        "+    hook.install(model)",
    ]
    assert contents(repo) == before
    patching.apply(toy, repo)
    assert patching.diff(toy, repo) == ""


def test_unknown_content_is_refused_and_force_keeps_it(toy: patching.Manifest, repo: Path) -> None:
    change(repo / "run.sh", b"--fps 28", b"--fps 8")
    change(repo / "code/run.py", b"return args", b"return args  # mine")
    before = contents(repo)
    with pytest.raises(MotionPromptError, match=r"run\.sh: its sha256 .*--force"):
        patching.apply(toy, repo)
    assert contents(repo) == before
    status = patching.apply(toy, repo, force=True)
    assert status.state == patching.PATCHED
    assert not status.is_as_pinned
    assert b'--fps 8 "$@"' in (repo / "run.sh").read_bytes()
    patching.revert(toy, repo)
    assert contents(repo) == before


def test_changes_made_after_patching_survive_the_revert(toy: patching.Manifest, repo: Path) -> None:
    patching.apply(toy, repo)
    change(repo / "run.sh", b'--fps 28 "$@"', b'--fps 16 "$@" --seed 7')
    change(repo / "code/run.py", b"    hook.install(model)", b"    model.half()\r\n    hook.install(model)")
    patching.require_patched(toy, repo)
    assert patching.apply(toy, repo).state == patching.PATCHED
    assert not patching.revert(toy, repo).is_as_pinned
    assert (repo / "run.sh").read_bytes() == SCRIPT.replace(b"--fps 28", b"--fps 16 --seed 7")
    assert (repo / "code/run.py").read_bytes() == ENTRY.replace(b"eval()\r\n", b"eval()\r\n    model.half()\r\n")


def test_another_version_is_said_to_be_one(toy: patching.Manifest, repo: Path) -> None:
    (repo / "code/run.py").write_bytes(b"import sys\nimport torch\n")
    assert [file.otherwise for file in patching.status(toy, repo).files] == ["as pinned", "another version"]
    before = contents(repo)
    with pytest.raises(MotionPromptError, match=r"code/run\.py: 'def run\(' marks .* found 0 times"):
        patching.apply(toy, repo, force=True)
    assert contents(repo) == before


@pytest.mark.parametrize("file", ["run.sh", "code/run.py"])
def test_a_half_patched_checkout_is_seen_and_completed(toy: patching.Manifest, repo: Path, file: str) -> None:
    before = contents(repo)
    patching.apply(toy, repo)
    patched = contents(repo)
    (repo / file).write_bytes(before[file])
    assert patching.status(toy, repo).state == patching.HALF_PATCHED
    with pytest.raises(MotionPromptError, match="half patched; run: mp-patch toy"):
        patching.require_patched(toy, repo)
    patching.apply(toy, repo)
    assert contents(repo) == patched
    (repo / file).write_bytes(before[file])
    patching.revert(toy, repo)
    assert contents(repo) == before


def test_one_missing_line_is_half_patched(toy: patching.Manifest, repo: Path) -> None:
    patching.apply(toy, repo)
    patched = contents(repo)
    change(repo / "code/run.py", b"@hook.host\r\n", b"")
    assert patching.status(toy, repo).state == patching.HALF_PATCHED
    patching.apply(toy, repo)
    assert contents(repo) == patched


def test_newlines_changed_by_the_checkout_are_still_upstream(toy: patching.Manifest, repo: Path) -> None:
    (repo / "run.sh").write_bytes(SCRIPT.replace(b"\n", b"\r\n"))
    (repo / "code/run.py").write_bytes(ENTRY.replace(b"\r\n", b"\n"))
    before = contents(repo)
    assert patching.apply(toy, repo).is_as_pinned
    assert (repo / "run.sh").read_bytes().endswith(b'--fps 28 "$@"\r\n')
    assert b"\r" not in (repo / "code/run.py").read_bytes()
    patching.revert(toy, repo)
    assert contents(repo) == before


def test_an_edit_made_while_we_write_is_not_lost(
    toy: patching.Manifest, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ENTRY + b"  # saved by an editor"
    monkeypatch.setattr(os, "fsync", lambda _: (repo / "code/run.py").write_bytes(mine))
    with pytest.raises(MotionPromptError, match="changed by someone else"):
        patching.apply(toy, repo)
    assert contents(repo) == {"run.sh": SCRIPT, "code/run.py": mine}


def test_what_would_not_parse_is_not_written(toy: patching.Manifest, repo: Path) -> None:
    # Moved to the top level by the user, the anchor no longer takes an indented line after it.
    change(repo / "code/run.py", b"    model.eval()\r\n    return args", b"    pass\r\nmodel.eval()")
    before = contents(repo)
    with pytest.raises(MotionPromptError, match="no longer parse"):
        patching.apply(toy, repo, force=True)
    assert contents(repo) == before


OLD_SCRIPT, OLD_ENTRY = b' "$@" --old', b"import hook  # 0.0"


@pytest.fixture
def renewed(toy: patching.Manifest) -> patching.Manifest:
    """Toy, of which an earlier version inserted other lines in two places."""
    script, entry = toy.files
    first, *rest = entry.edits
    return replace(
        toy,
        files=(
            replace(script, edits=(replace(script.edits[0], formerly=(b" $*", OLD_SCRIPT)),)),
            replace(entry, edits=(replace(first, formerly=(OLD_ENTRY,)), *rest)),
        ),
    )


def test_what_an_earlier_version_added_is_renewed(
    toy: patching.Manifest, renewed: patching.Manifest, repo: Path
) -> None:
    before = contents(repo)
    patching.apply(toy, repo)
    change(repo / "run.sh", b' "$@"', OLD_SCRIPT)
    change(repo / "code/run.py", b"import hook\r\n", OLD_ENTRY + b"\r\n")
    change(repo / "code/run.py", b"return args", b"return args  # mine")
    status = patching.status(renewed, repo)
    assert status.state == patching.OUTDATED
    with pytest.raises(MotionPromptError, match="earlier mp_hooks; run: mp-patch toy"):
        patching.require_patched(renewed, repo)
    old = contents(repo)
    with pytest.raises(MotionPromptError, match="--force"):
        patching.apply(renewed, repo)
    assert contents(repo) == old
    assert patching.apply(renewed, repo, force=True).state == patching.PATCHED
    assert contents(repo)["run.sh"] == SCRIPT[:-1] + b' "$@"\n'
    assert contents(repo)["code/run.py"].count(b"import hook") == 1
    (repo / "run.sh").write_bytes(old["run.sh"])
    patching.revert(renewed, repo)
    assert contents(repo) == {**before, "code/run.py": ENTRY.replace(b"return args", b"return args  # mine")}


def test_unknown_lines_of_ours_are_not_doubled(toy: patching.Manifest, repo: Path) -> None:
    change(repo / "code/run.py", b"import sys", b"import sys\r\nfrom mp_hooks import motionprompt  # 9.9")
    before = contents(repo)
    for force in (False, True):
        with pytest.raises(MotionPromptError, match="'motionprompt' stands in lines that this version did not add"):
            patching.apply(toy, repo, force=force)
    assert contents(repo) == before


def test_a_read_only_file_is_refused(toy: patching.Manifest, repo: Path) -> None:
    (repo / "code/run.py").chmod(0o444)
    before = contents(repo)
    with pytest.raises(MotionPromptError, match=r"read-only; allow writing with: chmod u\+w"):
        patching.apply(toy, repo)
    assert contents(repo) == before


def test_links_out_of_the_checkout_are_refused(toy: patching.Manifest, repo: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(repo)
    assert patching.apply(toy, link).state == patching.PATCHED, "the checkout itself may be reached through a link"
    patching.revert(toy, link)
    (repo / "code").rename(tmp_path / "elsewhere")
    (repo / "code").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MotionPromptError, match="symbolic link"):
        patching.apply(toy, repo)
    assert (repo / "run.sh").read_bytes() == SCRIPT


def test_a_folder_that_is_no_checkout(toy: patching.Manifest, tmp_path: Path) -> None:
    with pytest.raises(MotionPromptError, match=r"not a checkout of Toy: it has no run\.sh"):
        patching.status(toy, tmp_path)
    with pytest.raises(MotionPromptError, match="there is no folder"):
        patching.apply(toy, tmp_path / "absent")


def _hold_lock(root: Path, held: multiprocessing.synchronize.Event, seconds: float) -> None:
    with locked(root):
        held.set()
        time.sleep(seconds)


def test_a_second_mp_patch_waits_for_the_first(toy: patching.Manifest, repo: Path) -> None:
    pytest.importorskip("fcntl", reason="no lock on folders here")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=_hold_lock, args=(repo, held, 2.0))
    other.start()
    assert held.wait(120)
    began = time.monotonic()
    patching.apply(toy, repo)
    assert time.monotonic() - began > 0.5
    other.join()
    assert contents(repo).keys() == {"run.sh", "code/run.py"}


def test_waiting_for_another_mp_patch_has_an_end(
    toy: patching.Manifest, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mp_hooks.patching.checkout.PATIENCE", 0.1)
    with locked(repo), pytest.raises(MotionPromptError, match="another mp-patch is at work"):
        patching.status(toy, repo)


# --- manifests


def test_every_manifest_of_the_project_is_sound() -> None:
    assert "videocrafter2" in patching.names()
    for name in patching.names():
        manifest = patching.load(name)
        assert manifest.name == name
        assert manifest.folder.startswith("third_party/")
        assert "torch==" in patching.requirements(name).read_text(encoding="utf-8")


def test_an_unknown_host_is_answered_with_the_known_ones() -> None:
    with pytest.raises(MotionPromptError, match="videocrafter2"):
        patching.load("../patches")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("commit",), "main"),
        (("url",), "ext::sh -c true"),
        (("folder",), "../outside"),
        (("name",), None),
        (("surprise",), "x"),
        (("script", "seed"), 7),
        (("files",), []),
        (("files", 0, "path"), "/etc/passwd"),
        (("files", 0, "path"), "a/../../b"),
        (("files", 0, "sha256"), "abc"),
        (("files", 0, "edits"), "text"),
        (("files", 0, "edits", 0, "place"), "middle"),
        (("files", 0, "edits", 0, "anchor"), " "),
        (("files", 0, "edits", 0, "insert"), "two\nlines"),
        (("files", 0, "edits", 0, "formerly"), [" "]),
        (("files", 0, "edits", 0, "formerly"), [1]),
    ],
)
def test_a_faulty_manifest_is_one_sentence(tmp_path: Path, where: tuple[str | int, ...], value: object) -> None:
    tree = yaml.safe_load(yaml.safe_dump(TOY))
    spot = tree
    for key in where[:-1]:
        spot = spot[key]
    spot[where[-1]] = value
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(MotionPromptError, match="faulty manifest"):
        patching.read(path)


# --- getting a host


@pytest.fixture
def origin(tmp_path: Path, toy: patching.Manifest) -> patching.Manifest:
    """Toy, served by a local git repository with a demo video in it."""
    source = tmp_path / "origin"
    (source / "code").mkdir(parents=True)
    (source / "run.sh").write_bytes(SCRIPT)
    (source / "code/run.py").write_bytes(ENTRY)
    (source / "code/demo.gif").write_bytes(b"GIF89a")
    commit = commit_all(source)
    return replace(toy, url=str(source), commit=commit)


def test_fetch_gets_the_commit_without_media(origin: patching.Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "third_party/Toy"
    folder.mkdir(parents=True)
    patching.fetch(origin, folder)
    assert contents(folder) == {"run.sh": SCRIPT, "code/run.py": ENTRY}
    assert git(folder, "status", "--porcelain") == ""
    assert [path.name for path in folder.parent.iterdir()] == ["Toy"]
    patching.apply(origin, folder)
    patched = contents(folder)
    patching.fetch(origin, folder)
    assert contents(folder) == patched, "what is there already must be left alone"


def test_what_a_killed_fetch_left_is_removed(origin: patching.Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "third_party/Toy"
    (folder.parent / ".Toy-x1y2z3/.git").mkdir(parents=True)
    patching.fetch(origin, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["Toy"]


@pytest.mark.parametrize("fault", [{"commit": "f" * 40}, {"url": "/nowhere/at/all"}])
def test_a_fetch_that_fails_leaves_nothing(origin: patching.Manifest, tmp_path: Path, fault: dict[str, str]) -> None:
    folder = tmp_path / "third_party/Toy"
    with pytest.raises(MotionPromptError, match=r"could not get Toy .*fatal.*mp-patch toy --repo DIR"):
        patching.fetch(replace(origin, **fault), folder)
    assert list(folder.parent.iterdir()) == []


def test_a_fetch_that_takes_too_long_is_given_up(
    origin: patching.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin/git"
    slow.parent.mkdir()
    late = tmp_path / "late"
    slow.write_text(f"#!/bin/sh\n(sleep 1; touch '{late}') &\nsleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    began = time.monotonic()
    with pytest.raises(MotionPromptError, match=r"no answer within 0\.3 s"):
        patching.fetch(origin, tmp_path / "third_party/Toy", timeout=0.3)
    assert time.monotonic() - began < 10
    assert list((tmp_path / "third_party").iterdir()) == []
    time.sleep(max(0.0, began + 1.5 - time.monotonic()))
    assert not late.exists(), "what git had started went on without it"


# --- VideoCrafter itself


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return unpatched("videocrafter2", tmp_path / "VideoCrafter")


@pytest.mark.upstream("videocrafter2")
def test_videocrafter_from_the_command_line(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(host)
    repo = ["videocrafter2", "--repo", str(host)]
    assert main([*repo, "--check"]) == 0
    assert contents(host) == before
    assert '+--fps 28 "$@"' in capsys.readouterr().out
    assert main([*repo, "--status"]) == 0
    assert "unpatched" in capsys.readouterr().out
    assert main(repo) == 0
    assert "run_text2video.sh --motionprompt" in capsys.readouterr().out
    assert main([*repo, "--status"]) == 0
    after = contents(host)
    assert {name for name in after if after[name] != before[name]} == {
        "scripts/run_text2video.sh",
        "scripts/run_image2video.sh",
        "scripts/evaluation/inference.py",
        "gradio_app.py",
    }
    assert main(repo) == 0
    assert contents(host) == after
    assert main([*repo, "--revert"]) == 0
    assert contents(host) == before
    assert git(host, "status", "--porcelain") == ""


@pytest.mark.upstream("videocrafter2")
def test_videocrafter_keeps_its_newlines(host: Path) -> None:
    patching.apply(patching.load("videocrafter2"), host)
    entry = (host / "scripts/evaluation/inference.py").read_bytes()
    assert entry.count(b"\n") == entry.count(b"\r\n")
    assert not entry.endswith(b"\n")
    assert b"\r" not in (host / "scripts/run_text2video.sh").read_bytes()


@pytest.mark.upstream("videocrafter2")
def test_videocrafter_script_passes_every_argument_on(host: Path, tmp_path: Path) -> None:
    """The host's own script, with a python3 that prints what it is given."""
    patching.apply(patching.load("videocrafter2"), host)
    fake = tmp_path / "bin/python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    told = subprocess.run(
        ["bash", "scripts/run_text2video.sh", "--motionprompt", "--mp-word", "two words"],
        cwd=host,
        env={**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert told[0] == "scripts/evaluation/inference.py"
    assert told[-5:] == ["--fps", "28", "--motionprompt", "--mp-word", "two words"]


@pytest.mark.upstream("videocrafter2")
def test_what_is_printed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder whose name a shell would take apart, with scripts as an editor on Windows leaves them."""
    repo = unpatched("videocrafter2", tmp_path / "mes vidéos (2) & $more's/VideoCrafter")
    for script in (repo / "scripts").glob("*.sh"):
        script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    assert main(["videocrafter2", "--repo", str(repo)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any("CRLF" in line for line in said)
    mend = next(line for line in said if "perl" in line)
    change_folder = next(line for line in said if line.startswith("  cd "))
    subprocess.run(["bash", "-c", f"{mend} && {change_folder} && ! grep -q $'\\r' scripts/*.sh"], check=True)
    change(repo / "scripts/evaluation/inference.py", b"motionprompt.install(model, args)", b"pass")
    assert main(["videocrafter2", "--repo", str(repo), "--status"]) == 2
    said = capsys.readouterr()
    assert "CRLF" not in said.out
    for remedy in re.search("complete it with: (.*), or undo it with: (.*)", said.err).groups():
        assert main(shlex.split(remedy)[1:]) == 0
        capsys.readouterr()


COMMANDS = {
    "videocrafter2": ["bash scripts/run_text2video.sh", "bash scripts/run_image2video.sh", "python gradio_app.py"],
    "dynamicrafter": [
        "bash scripts/run.sh 512",
        "bash scripts/run_mp.sh 1024",
        "bash scripts/run_application.sh interp",
        "bash scripts/run_application.sh loop",
        "sh scripts/run_application.sh loop",
    ],
    "lavie": ["bash pipelines/sample.sh"],
    "animatediff": ["python app.py"],
}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        pytest.param(name, command, marks=pytest.mark.upstream(name))
        for name, commands in COMMANDS.items()
        for command in commands
    ],
)
def test_commands_of_a_host_take_the_flag_or_refuse_it(name: str, command: str, tmp_path: Path) -> None:
    """Those that its README names and that would drop it. Without the flag, scripts do what they did."""
    manifest = patching.load(name)
    root = tmp_path / "host"
    for file in manifest.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_bytes((patching.default_checkout(manifest) / file.path).read_bytes())
    patching.revert(manifest, root)
    (tmp_path / "bin").mkdir()
    is_script = command.split()[1].endswith(".sh")
    for python in ("python", "python3") if is_script else ():
        (tmp_path / "bin" / python).write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
        (tmp_path / "bin" / python).chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        folder = root / "base" if name == "lavie" else root
        path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        words = [*command.split(), *arguments]
        return subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)

    patching.apply(manifest, root)
    on = run("--motionprompt", "--mp-trace", "a b")
    if not is_script:
        assert on.returncode
        assert "does not take --motionprompt" in on.stderr
        return
    off = run()
    patching.revert(manifest, root)
    vanilla = run()
    assert (off.returncode, off.stdout) == (vanilla.returncode, vanilla.stdout)
    assert on.returncode or on.stdout == vanilla.stdout + "[--motionprompt][--mp-trace][a b]"
    assert not (on.returncode and command.startswith("bash"))


@pytest.mark.upstream("videocrafter2")
def test_half_patched_videocrafter_is_exit_2(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repo = ["videocrafter2", "--repo", str(host)]
    assert main(repo) == 0
    change(host / "scripts/run_text2video.sh", b' "$@"', b"")
    capsys.readouterr()
    assert main([*repo, "--status"]) == 2
    said = capsys.readouterr()
    assert "half patched" in said.err
    assert said.err.count("\n") == 1
    assert main(repo) == 0
    assert main([*repo, "--status"]) == 0


# --- a host that loads packs of nodes


@pytest.fixture
def with_packs(tmp_path: Path) -> Path:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "main.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("links", [True, False])
def test_a_pack_is_linked_or_copied_and_taken_out_again(
    with_packs: Path, links: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError("symbolic links are not allowed here")

    if not links:
        monkeypatch.setattr(Path, "symlink_to", no_link)
    place, command = with_packs / "custom_nodes/motionprompt", ["comfyui", "--repo", str(with_packs)]
    for _ in range(2):
        assert main(command) == 0
        assert place.is_symlink() == links
        assert (place / "nodes.py").is_file()
    if not links:
        (place / "nodes.py").write_text("")
        assert patching.PACKS["comfyui"].status(with_packs) == "a copy of another version"
        assert main(command) == 0
        assert patching.PACKS["comfyui"].status(with_packs) == "copied"
    capsys.readouterr()
    assert main([*command, "--check"]) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert main([*command, "--revert"]) == 0
    assert not os.path.lexists(place)
    assert main([*command, "--status"]) == 0
    assert "not linked" in capsys.readouterr().out


def test_another_pack_in_its_place_stays(with_packs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = with_packs / "custom_nodes/motionprompt/nodes.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    command = ["comfyui", "--repo", str(with_packs)]
    assert main(command) == 2
    assert "something else" in capsys.readouterr().err
    assert main([*command, "--revert"]) == 0
    assert mine.read_text() == "mine"


# --- the command on bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "videocrafter2"),
        (["videocrafter2", "--repo", "absent"], "there is no folder absent"),
        (["videocrafter2", "--repo", "."], "not a checkout of VideoCrafter"),
        (["videocrafter2", "--repo", "absent", "--status"], "no checkout of VideoCrafter in absent"),
        (["videocrafter2", "--repo", "absent", "--revert"], "no checkout of VideoCrafter in absent"),
        (["comfyui", "--repo", "absent"], "no checkout of ComfyUI in absent"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_list_names_every_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*patching.names(), *patching.PACKS]
