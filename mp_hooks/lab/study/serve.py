"""`study serve`: the site, and a place to send answers to; nothing else can be read or written.

A small server for a study among people one knows. On the open internet put it behind a server that speaks HTTPS.
"""

from __future__ import annotations

import json
import re
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mp_hooks.files import replacing
from mp_hooks.lab.study.ballots import Study, parse_ballot, read_study

LARGEST_BALLOT = 1_000_000  # bytes
SECONDS = 30  # a connection may be silent
FILES = re.compile(r"/(index\.html|study\.json|clips/[0-9a-f]{16}\.mp4)?")


class Handler(SimpleHTTPRequestHandler):
    """GET of the site's own files, with byte ranges, which phones ask videos in; POST of a ballot to /answers."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS
    server_version, sys_version = "motionprompt", ""

    def __init__(self, *args, study: Study, site: Path, answers: Path, **kwargs) -> None:
        self.study, self.answers = study, answers
        super().__init__(*args, directory=str(site), **kwargs)

    def do_GET(self) -> None:
        if self.path == "/answers":  # asked by the page, to learn that answers can be sent
            self._say(HTTPStatus.NO_CONTENT)
        elif not FILES.fullmatch(self.path):
            self._say(HTTPStatus.NOT_FOUND, "no such page")
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            self._send_range(int(wanted[1]), int(wanted[2]) if wanted[2] else None)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if FILES.fullmatch(self.path):
            super().do_HEAD()
        else:
            self._say(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # a body that is refused is not read
        if self.path != "/answers" or self.headers.get_content_type() != "application/json":
            self._say(HTTPStatus.NOT_FOUND, "answers are posted to /answers, as JSON")
        elif not length.isdecimal() or int(length) > LARGEST_BALLOT:
            self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long for a ballot")
        else:
            try:
                content = json.loads(self.rfile.read(int(length)))
                ballot = parse_ballot(content, self.study)
            except (ValueError, RecursionError) as error:
                self._say(HTTPStatus.BAD_REQUEST, str(error))
                return
            with replacing(self.answers / f"{ballot.voter}.json") as temporary:
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            self._say(HTTPStatus.NO_CONTENT)

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def _say(self, status: HTTPStatus, text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_range(self, first: int, last: int | None) -> None:
        path = Path(self.translate_path(self.path))
        content = path.read_bytes() if path.is_file() else b""
        last = len(content) - 1 if last is None else min(last, len(content) - 1)
        if first > last:
            self._say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


def server(site: Path, answers: Path, host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """A server of a study's site that keeps ballots in `answers`; call its serve_forever().

    Raises MotionPromptError where the site holds no study, and OSError for a port that cannot be had.
    """
    return ThreadingHTTPServer((host, port), partial(Handler, study=read_study(site), site=site, answers=answers))
