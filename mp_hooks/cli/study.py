"""`motionprompt study`: a blind side-by-side user study, from two folders of clips to the tally."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `study make | serve | tally` to the command line."""
    parser = subparsers.add_parser("study", help="a blind side-by-side user study in the browser")
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    make = commands.add_parser("make", help="a static page from two folders of clips")
    make.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the baseline's clips, then the other's")
    make.add_argument("--suffixes", nargs=2, metavar="SUFFIX", help="take pairs by the end of their name instead")
    make.add_argument("--out", type=Path, required=True, metavar="SITE", help="folder to publish; its key lies beside")
    make.add_argument("--question", metavar="TEXT", help="what voters are asked")
    make.add_argument("--checks", type=int, default=2, help="attention checks (default: %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of the attention checks (default: %(default)s)")
    make.set_defaults(run=_make)

    serve = commands.add_parser("serve", help="serve the page and keep the answers that voters send")
    serve.add_argument("site", type=Path, metavar="SITE")
    serve.add_argument("--answers", type=Path, required=True, metavar="DIR", help="folder the ballots are written to")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for others on the network (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    serve.set_defaults(run=_serve)

    tally = commands.add_parser("tally", help="win, tie and lose with intervals, and the voters' agreement")
    tally.add_argument("key", type=Path, metavar="KEY", help="SITE.key.json, which lies beside the site")
    tally.add_argument("answers", nargs="+", type=Path, metavar="ANSWERS", help="ballots, or folders of them")
    tally.set_defaults(run=_tally)


def _make(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab.metrics import groups_of_folders, groups_of_suffixes
    from mp_hooks.lab.study.make import QUESTION, make

    if args.checks < 0:
        raise MotionPromptError(f"--checks is {args.checks}; it must be at least 0")
    groups = groups_of_suffixes(args.folders, args.suffixes) if args.suffixes else groups_of_folders(args.folders)
    key = make(groups, args.out, args.question or QUESTION, args.checks, args.seed)
    print(f"page: {args.out / 'index.html'}  (open it, put the folder on any web server, or: motionprompt study serve)")
    print(f"key, not to be published: {key}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.lab.study.serve import server

    try:
        running = server(args.site, args.answers, args.host, args.port)
    except OSError as error:
        raise MotionPromptError(f"cannot listen on {args.host}:{args.port}: {error}; choose another --port") from error
    with running:
        print(f"http://{args.host}:{running.server_port}/  answers go to {args.answers}; Ctrl-C ends it", flush=True)
        running.serve_forever()
    return 0


def _tally(args: argparse.Namespace) -> int:
    from mp_hooks.lab.study.tally import tally

    result = tally(args.key, args.answers)
    print(result.table().text())
    print(
        f"agreement: {result.agreement:.1%} of two votes on a pair are equal, Krippendorff's alpha {result.alpha:.3f}"
    )
    print(f"left out for a failed attention check: {result.excluded} voters")
    return 0
