"""The board's page served from the log, for runs that no page can carry whole.

Loopback only, GET and HEAD only, three addresses: the page, its columns, and the answers of one
case. A request under another host's name is refused, so that no web page elsewhere can read the
answers through the reader's own browser.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kn_bench.results.board import GROUP
from kn_bench.results.columns import frame_of, reading
from kn_bench.results.files import StoreError
from kn_bench.results.html import render
from kn_bench.results.loading import Runs
from kn_bench.results.log import LOG, lines
from kn_bench.results.payload import answers, every_verdict, packed, payload
from kn_bench.results.rows import kind_of
from kn_bench.results.shown import Cases, TextPool

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Serves the page of ``runs`` on loopback.

    Args:
        runs: what is shown.
        port: 0 for any that is free.

    Raises:
        StoreError: when the port is taken.
    """

    daemon_threads = True

    def __init__(self, runs: Runs, port: int = 0) -> None:
        self._runs = runs
        data = payload(runs, embedded=None)
        self.columns = packed(data)
        self.page = render("", connect="'self'").encode()
        self._lines = {
            tuple(line[name] for name in GROUP): i for i, line in enumerate(data["lines"])
        }
        self._verdicts = every_verdict(runs)
        self._cases = Cases(runs, self._verdicts, TextPool())
        self._ids = frozenset(case for _, case in self._cases.number)
        self._places = _places(runs)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise StoreError(
                f"--port {port}: expected a free port ({error.strerror}); give another, or 0"
            ) from None

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a reader who went away; what else fails is for the terminal."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def has(self, case: str) -> bool:
        """Tell whether ``case`` is among those that are shown."""
        return case in self._ids

    def answers(self, case: str) -> bytes:
        """Return all answers of ``case`` as JSON, read from the logs.

        Raises:
            StoreError: when a log cannot be read, or was altered.
        """
        texts = TextPool()
        frames = []
        for run, places in self._places.get(case, {}).items():
            log = self._runs.folders[run] / LOG
            with reading(log):
                part = frame_of(_lines_at(log, places), "measurement")
            frame = part.assign(run=run)
            frames.append(frame[frame["criterion"] != "overturn"])
        own = self._verdicts[self._verdicts["case"] == case]
        data = answers(frames, own, self._lines, self._cases, texts)
        return json.dumps({**data, "texts": texts.all}, ensure_ascii=False).encode()


def _lines_at(path: Path, places: Sequence[int]) -> list[bytes]:
    """Return the lines that begin at ``places`` of a log."""
    lines = []
    try:
        with path.open("rb") as log:
            for place in places:
                log.seek(place)
                lines.append(log.readline())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    return lines


def _places(runs: Runs) -> dict[str, dict[str, list[int]]]:
    """Return case -> run -> where its measurements begin in the log."""
    places: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
    for run, folder in runs.folders.items():
        at = 0
        with reading(folder / LOG):
            for _, line in lines(folder / LOG):
                if kind_of(line) == "measurement":
                    _, _, rest = line.partition(b'"case":')
                    case, _ = json.JSONDecoder().raw_decode(rest.decode())
                    places[str(case)].setdefault(run, []).append(at)
                at += len(line)
    return places


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "kn_bench"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one of the three addresses."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.FORBIDDEN, "this page is for this machine only")
            return
        try:
            address = urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST, "this is no address")
            return
        if address.path == "/":
            self._send(self.server.page, "text/html; charset=utf-8")
        elif address.path == "/data.gz":
            self._send(self.server.columns, "application/gzip")
        elif address.path == "/answers.json":
            (case, *_) = parse_qs(address.query).get("case", [""])
            self._send_answers(case)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self.do_GET()

    def _send_answers(self, case: str) -> None:
        if not self.server.has(case):
            self._send_text("expected a case of these runs", HTTPStatus.NOT_FOUND)
            return
        try:
            answers = self.server.answers(case)
        except StoreError as error:
            self._send_text(str(error), HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._send(answers, "application/json; charset=utf-8")

    def _send_text(self, text: str, status: HTTPStatus) -> None:
        self._send(f"{text}\n".encode(), "text/plain; charset=utf-8", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line a request would bury the address."""
