"""The page's server: what it answers to any request, and what it says of readers who go away."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from kn_bench.cases.case import Criterion
from kn_bench.results.loading import load_runs
from kn_bench.results.serving import HOST, Server
from kn_bench.results.store import RunStore
from kn_bench.results.texts import write_texts
from tests.made_up import manifest, rows_of, whole_case

IDS = ("embedded/P36/short", *(f"embedded/P36/{'a' * n}" for n in (4081, 4082, 5000)))
AWAY = struct.pack("ii", 1, 0)
"""A connection with this option is reset when it is closed."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves a run of one case for each of ``IDS``."""
    outcomes: dict[Criterion, float] = {"reliability": 1.0, "locality": 0.5}
    with RunStore.create(tmp_path_factory.mktemp("runs"), manifest()) as store:
        made = [whole_case(outcomes, id=id, cluster=id) for id in IDS]
        for case, result in made:
            for text in rows_of(case, result, outcomes):
                store.append(text)
        write_texts(store.folder, [case for case, _ in made])
        store.finish({})
    with Server(load_runs([store.folder])) as opened:
        thread = threading.Thread(target=opened.serve_forever, daemon=True)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def asked(server: Server, path: str, method: str = "GET") -> tuple[int, bytes, int]:
    """Status, body and stated length of what is answered."""
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", server.address.split("/")[2])
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, int(answer.headers.get("Content-Length", 0))


def answers_of(case: str) -> str:
    return f"/answers.json?{urlencode({'case': case})}"


@pytest.mark.parametrize("case", IDS, ids=lambda id: str(len(id)))
def test_a_case_is_served_whatever_its_id_is(server: Server, case: str) -> None:
    status, body, _ = asked(server, answers_of(case))
    told = json.loads(body)
    assert status == 200
    assert len(told["after"]["line"]) == len(told["probes"]["id"]) == 5


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/?x=1", 200),
        ("/data.gz", 200),
        (answers_of(IDS[0]), 200),
        (answers_of("unknown"), 404),
        ("/answers.json", 404),
        ("/answers.json?case=%ff%00", 404),
        ("/favicon.ico", 404),
        ("http://[", 400),
        ("//[", 404),
        ("http://[::1", 400),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_address_has_its_status(
    server: Server, path: str, status: int, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, body, length = asked(server, path, method)
    assert found == status
    assert bool(body) == (method == "GET")
    assert length
    assert not capfd.readouterr().err


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"])
def test_a_reader_may_go_away(
    server: Server, sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    for _ in range(3):
        reader = socket.create_connection((HOST, server.server_address[1]))
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AWAY)
        reader.sendall(sent.replace(b"%s", server.address.encode().split(b"/")[2]))
        reader.close()
    assert asked(server, "/")[0] == 200
    for thread in threading.enumerate()[before:]:
        thread.join(timeout=10)
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("fault", "is_told"),
    [(ConnectionResetError, False), (BrokenPipeError, False), (ZeroDivisionError, True)],
)
def test_only_what_a_reader_did_is_not_told(
    server: Server,
    fault: type[Exception],
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(case: str) -> bytes:
        raise fault

    monkeypatch.setattr(server, "answers", fails)
    threads = set(threading.enumerate())
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        asked(server, answers_of(IDS[0]))
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
    assert ("Traceback" in capfd.readouterr().err) == is_told
