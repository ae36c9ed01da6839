"""Models from folders and from a hub: what loads, what is refused, which revision it is."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from kn_bench.model import embedded
from kn_bench.model.loading import load_model
from kn_bench.model.source import source_of

COMMITS = {"main": "a" * 40, "older": "b" * 40}
IDS = [[5, 6, 7, 8]]


def logits(lm):
    ids = torch.tensor(IDS)
    with torch.no_grad():
        return lm.forward(ids, torch.tensor([[3]]))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub on this machine with two revisions of ``acme/tiny``, and ``acme/pickled``."""
    files = tmp_path_factory.mktemp("hub")
    for revision, name in (("main", "tiny-gpt2"), ("older", "tiny-bert")):
        shutil.copytree(embedded.folder(name), files / "acme/tiny" / COMMITS[revision])
    pickled = files / "acme/pickled" / COMMITS["main"]
    shutil.copytree(embedded.folder("tiny-gpt2"), pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] == "api":  # nothing but files is needed
                return self.send(404, b"{}", body)
            repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            commit = COMMITS.get(revision, revision)
            folder = files / repository / commit
            extra = {"X-Repo-Commit": commit}
            if not folder.is_dir():
                known = (files / repository).is_dir()
                code = "RevisionNotFound" if known else "RepoNotFound"
                return self.send(404, b"", body, {"X-Error-Code": code})
            if not (folder / name).is_file():
                return self.send(404, b"", body, {**extra, "X-Error-Code": "EntryNotFound"})
            data = (folder / name).read_bytes()
            return self.send(200, data, body, {**extra, "ETag": f'"{commit}-{name}"'})

        def send(self, status, data, body, headers=()):
            self.send_response(status)
            for key, value in dict(headers).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def from_hub(hub: str, home: Path, name: str, offline: bool = False) -> dict[str, object]:
    """What a new process makes of ``name``: hubs and caches are read from the environment once."""
    code = f"""
import json, torch
from kn_bench.model.loading import load_model
from kn_bench.testing.models import fingerprint
found = {{}}
try:
    found["commit"] = fingerprint({name!r})
except ValueError as error:
    found["commit"] = str(error)
try:
    lm = load_model({name!r})
    with torch.no_grad():
        found["logits"] = lm.forward(torch.tensor({IDS}), torch.tensor([[3]])).tolist()
except ValueError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""
    environment = os.environ | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, object] = json.loads(process.stdout.splitlines()[-1])
    return found


def test_a_hub_gives_what_the_folder_gives_and_then_the_cache_does(hub, tmp_path):
    expected = logits(load_model("tiny-gpt2"))
    found = from_hub(hub, tmp_path, "acme/tiny")
    torch.testing.assert_close(torch.tensor(found["logits"]), expected)
    assert found["commit"] == COMMITS["main"]
    assert from_hub("http://127.0.0.1:9", tmp_path, "acme/tiny", offline=True) == found


def test_a_revision_can_be_named(hub, tmp_path):
    found = from_hub(hub, tmp_path, "acme/tiny@older")
    assert found["commit"] == COMMITS["older"]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits(load_model("tiny-bert")))
    missing = from_hub(hub, tmp_path, "acme/tiny@none")
    assert "none" in str(missing["error"])
    assert "logits" not in missing


def test_pickled_weights_on_the_hub_are_refused(hub, tmp_path):
    found = from_hub(hub, tmp_path, "acme/pickled")
    assert found["error"] == (
        "acme/pickled has no safetensors weights, and kn_bench unpickles none: convert it first"
    )


def test_what_the_hub_has_not_is_one_sentence(hub, tmp_path):
    found = from_hub(hub, tmp_path, "acme/nothing")
    for sentence in (str(found["error"]), str(found["commit"])):
        assert "tiny-gpt2, tiny-llama, tiny-bert" in sentence
        assert "\n" not in sentence


def test_names_have_sources(tmp_path):
    assert source_of("gpt2") == ("gpt2", None)
    assert source_of("acme/tiny@v1") == ("acme/tiny", "v1")
    assert source_of("tiny-bert") == (str(embedded.folder("tiny-bert")), None)
    with pytest.raises(ValueError, match="it has no config"):
        source_of(str(tmp_path))
    with pytest.raises(ValueError, match="the embedded models have no revisions, write tiny-bert"):
        source_of("tiny-bert@main")
    for name in ("./nothing", "~/model", "a/b/c"):
        with pytest.raises(ValueError, match="no model folder at"):
            source_of(name)


def test_attention_and_dtype_can_be_chosen():
    eager = load_model("tiny-gpt2", attention="eager", dtype="float64")
    assert eager.hf.config._attn_implementation == "eager"
    assert eager.dtype == torch.float64
    plain = load_model("tiny-gpt2", dtype="float64")
    torch.testing.assert_close(logits(eager), logits(plain), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="nonsense"):
        load_model("tiny-gpt2", attention="nonsense")


def test_several_gpus_need_accelerate(monkeypatch):
    monkeypatch.setattr("kn_bench.model.loading.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs accelerate: pip install 'kn_bench\[multi-gpu\]'"):
        load_model("tiny-gpt2", device="auto")


def test_a_model_that_accelerate_places_is_the_same():
    pytest.importorskip("accelerate")
    placed = load_model("tiny-gpt2", device="auto")
    torch.testing.assert_close(logits(placed), logits(load_model("tiny-gpt2")))
