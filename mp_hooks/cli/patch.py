"""The `mp-patch` command: get a host, edit it, say what it is, undo it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from mp_hooks import patching
from mp_hooks.errors import MotionPromptError, exits_cleanly


def build_parser() -> argparse.ArgumentParser:
    """The command line of `mp-patch`."""
    parser = argparse.ArgumentParser(
        prog="mp-patch",
        description="Let a text-to-video codebase take --motionprompt: gets its pinned version and makes a small edit.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the host, one of those --list shows")
    parser.add_argument("--repo", type=Path, metavar="DIR", help="your own checkout, instead of the one in third_party")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="the hosts, their versions and whether they are patched")
    action.add_argument("--check", action="store_true", help="show the edit without making it")
    action.add_argument("--status", action="store_true", help="say what is patched")
    action.add_argument("--revert", action="store_true", help="undo the edit; your own changes stay")
    parser.add_argument("--force", action="store_true", help="edit files of another version or with changes of yours")
    return parser


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list:
        return _list()
    if args.name is None:
        parser.error("give the NAME of a host; mp-patch --list shows them")
    if args.name in patching.PACKS:
        return _pack(patching.PACKS[args.name], args)
    manifest = patching.load(args.name)
    repo = args.repo or patching.default_checkout(manifest)
    if args.status:
        return _status(manifest, _existing(manifest, repo))
    if args.check:
        print(patching.diff(manifest, _existing(manifest, repo), force=args.force) or "nothing to change\n", end="")
        return 0
    if args.revert:
        _report("reverted", manifest, repo, patching.revert(manifest, _existing(manifest, repo)))
        return 0
    if args.repo is None:
        _get(manifest, repo)
    _report("patched", manifest, repo, patching.apply(manifest, repo, force=args.force))
    requirements = quote(str(patching.requirements(manifest.name)))
    libraries = f"pip install -r {requirements}  # if the host does not run with yours"
    print(f"next:\n  {libraries}\n  cd {quote(str(repo))}\n  {manifest.run}")
    return 0


def _pack(pack: patching.Pack, args: argparse.Namespace) -> int:
    """The same for a host that loads packs of nodes: ours is linked into it."""
    repo = args.repo or patching.default_checkout(pack)
    if args.repo is None and not (args.status or args.check or args.revert):
        _get(pack, repo)
    state, place = pack.status(_existing(pack, repo)), repo / pack.place
    if args.status:
        print(f"{pack.name} in {repo}: {state}")
    elif args.check:
        print("nothing to change" if state in ("linked", "copied") else f"links {place} to the nodes of mp_hooks")
    elif args.revert:
        pack.unlink(repo)
        print(f"reverted: {pack.title} in {repo} has no nodes of mp_hooks")
    else:
        print(f"{pack.link(repo)}: {place}; undo: mp-patch {pack.name} --repo {quote(str(repo))} --revert")
        print(f"next, with mp_hooks installed into {pack.title}'s Python:\n  cd {quote(str(repo))}\n  {pack.run}")
    return 0


def _get(upstream: patching.Upstream, repo: Path) -> None:
    if not patching.is_present(repo):
        print(f"getting {upstream.title} {upstream.commit[:7]} from {upstream.url}", flush=True)
        patching.fetch(upstream, repo)


def _existing(manifest: patching.Upstream, repo: Path) -> Path:
    if not patching.is_present(repo):
        raise MotionPromptError(
            f"no checkout of {manifest.title} in {repo}; get one with: mp-patch {manifest.name}, or give --repo DIR"
        )
    return repo


def _status(manifest: patching.Manifest, repo: Path) -> int:
    status = patching.status(manifest, repo)
    print(f"{manifest.name} in {repo}: {status.state}")
    _print_files(status, repo)
    if status.state == patching.OUTDATED:
        print(f"renew it with: {patching.completing(manifest, repo, status)}")
    if status.state == patching.HALF_PATCHED:
        raise MotionPromptError(
            f"{repo} is half patched; complete it with: {patching.completing(manifest, repo, status)}, "
            f"or undo it with: mp-patch {manifest.name} --repo {quote(str(repo))} --revert"
        )
    return 0


def _report(done: str, manifest: patching.Manifest, repo: Path, status: patching.Status) -> None:
    print(f"{done}: {manifest.title} in {repo}" + ("" if status.is_as_pinned else " (your other changes are kept)"))
    _print_files(status, repo)


def _print_files(status: patching.Status, repo: Path) -> None:
    for file in status.files:
        print(f"  {file}")
    if unread := [quote(str(repo / file.path)) for file in status.files if not file.runs]:
        print("bash cannot run scripts with Windows' line endings (CRLF), patched or not; take them out with:")
        print(f"  perl -pi -e 's/\\r$//' {' '.join(unread)}")


def _list() -> int:
    for name in patching.names():
        manifest = patching.load(name)
        repo = patching.default_checkout(manifest)
        state = patching.status(manifest, repo).state if patching.is_present(repo) else "not fetched"
        print(f"{name:16} {manifest.title:16} {manifest.commit[:7]}  {state}")
    for name, pack in patching.PACKS.items():
        repo = patching.default_checkout(pack)
        state = pack.status(repo) if patching.is_present(repo) else "not fetched"
        print(f"{name:16} {pack.title:16} {pack.commit[:7]}  {state}")
    return 0
