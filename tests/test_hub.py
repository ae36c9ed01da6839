"""Whether the hub answers is asked once, and not six times over half a minute."""

import socket

import pytest

from kn_bench.model import hub
from kn_bench.model.source import not_to_be_had


@pytest.fixture
def port(monkeypatch):
    """A port of this machine at which nothing listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_a_hub_that_does_not_answer_is_not_asked_for_models(port, tmp_path, monkeypatch):
    assert not hub.is_reachable()
    assert hub.cached_only("someone/model")
    assert not hub.cached_only(str(tmp_path))  # a folder needs no hub
    port.listen()
    assert hub.is_reachable()
    assert not hub.cached_only("someone/model")


@pytest.mark.parametrize("endpoint", ["http://no.such.host.invalid", "https://", "http://x..y"])
def test_an_address_that_is_none_does_not_answer(port, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert not hub.is_reachable()


def test_a_proxy_is_left_to_the_hubs_own_client(port, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert hub.is_reachable()


def test_a_hub_that_is_not_to_be_asked_is_not_looked_for(port, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("asked"))
    assert not hub.cached_only("someone/model")  # its own client says so


def test_the_sentence_does_not_blame_an_option_that_nobody_set():
    error = OSError("Cannot find the requested files. Set 'local_files_only' to False.")
    assert "the hub cannot be reached, and its cache has no such model" in not_to_be_had(error)
