"""Models from folders and from a hub: what loads, what is refused, which revision it is."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers

from kn_bench.model import embedded
from kn_bench.model.loading import load_model
from kn_bench.model.source import source_of

COMMITS = {"main": "a" * 40, "older": "b" * 40}
IDS = [[5, 6, 7, 8]]
ROOT = Path(__file__).parent.parent


def logits(lm):
    ids = torch.tensor(IDS)
    with torch.no_grad():
        return lm.forward(ids, torch.tensor([[3]])).cpu()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub on this machine with two revisions of ``acme/tiny``, and ``acme/pickled``.

    The branch of ``acme/moving`` is another commit from the second question on.
    """
    files = tmp_path_factory.mktemp("hub")
    for revision, name in (("main", "tiny-gpt2"), ("older", "tiny-bert")):
        shutil.copytree(embedded.folder(name), files / "acme/tiny" / COMMITS[revision])
    pickled = files / "acme/pickled" / COMMITS["main"]
    shutil.copytree(embedded.folder("tiny-gpt2"), pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    shutil.copytree(files / "acme/tiny", files / "acme/moving")
    asked = []

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
            if (repository, revision) == ("acme/moving", "main"):
                asked.extend([] if body else [name])
                commit = COMMITS["main" if len(asked) == 1 else "older"]
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


def hub_environment(hub: str, home: Path, *, offline: bool = False) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


Answer = dict[str, object]


def from_hub(hub: str, home: Path, *names: str, offline: bool = False) -> dict[str, Answer]:
    """What a new process makes of ``names``: hubs and caches are read from the environment once."""
    code = f"""
import json, torch
from kn_bench.model.loading import load_model
from kn_bench.testing.models import fingerprint
answers = {{}}
for name in {names!r}:
    answer = answers[name] = {{}}
    try:
        answer["commit"] = fingerprint(name)
    except ValueError as error:
        answer["commit"] = str(error)
    try:
        lm = load_model(name)
        with torch.no_grad():
            answer["logits"] = lm.forward(torch.tensor({IDS}), torch.tensor([[3]])).tolist()
    except ValueError as error:
        answer["error"] = str(error)
print(json.dumps(answers))
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=hub_environment(hub, home, offline=offline),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answers: dict[str, Answer] = json.loads(process.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The cache that :func:`online` fills."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub, home):
    names = ("tiny", "tiny@older", "tiny@none", "pickled", "nothing")
    return from_hub(hub, home, *(f"acme/{name}" for name in names))


def test_a_hub_gives_what_the_folder_gives_and_then_the_cache_does(online, home):
    answer = online["acme/tiny"]
    expected = logits(load_model("tiny-gpt2"))
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected)
    assert answer["commit"] == COMMITS["main"]
    cached = from_hub("http://127.0.0.1:9", home, "acme/tiny", offline=True)
    assert cached["acme/tiny"] == answer


def test_a_revision_can_be_named(online):
    answer = online["acme/tiny@older"]
    assert answer["commit"] == COMMITS["older"]
    torch.testing.assert_close(torch.tensor(answer["logits"]), logits(load_model("tiny-bert")))
    missing = online["acme/tiny@none"]
    assert "unknown model 'acme/tiny@none'" in str(missing["commit"])
    assert "'acme/tiny@none'" in str(missing["error"])
    assert "logits" not in missing


def test_all_processes_load_the_commit_of_the_manifest(hub, tmp_path):
    """Also when the branch moves while they start; the other commit is a masked model."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1"]
    command += ["suites", "--model", "acme/moving", "--relation", "P36", "--limit", "1"]
    command += ["--method", "rome-no-c", "--reports", str(tmp_path / "reports")]
    environment = hub_environment(hub, tmp_path / "home") | {"KN_BENCH_CACHE": str(tmp_path)}
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert process.returncode == 0, process.stdout
    (manifest,) = tmp_path.glob("reports/runs/*/manifest.json")
    assert COMMITS["main"] in manifest.read_text()
    # of a masked model ROME's tests would be skipped
    assert re.search(r"\d (passed|missed)", process.stdout)
    assert "skipped" not in process.stdout


def test_pickled_weights_on_the_hub_are_refused(online):
    assert online["acme/pickled"]["error"] == (
        "acme/pickled: expected safetensors weights, and kn_bench never unpickles; convert it first"
    )


def test_what_the_hub_has_not_is_one_sentence(online):
    answer = online["acme/nothing"]
    for sentence in (str(answer["error"]), str(answer["commit"])):
        assert "tiny-gpt2, tiny-llama, tiny-bert" in sentence
        assert "\n" not in sentence


def test_names_have_sources(tmp_path):
    assert source_of("gpt2") == ("gpt2", None)
    assert source_of("acme/tiny@v1") == ("acme/tiny", "v1")
    assert source_of("tiny-bert") == (str(embedded.folder("tiny-bert")), None)
    with pytest.raises(ValueError, match="expected a model folder with a config"):
        source_of(str(tmp_path))
    with pytest.raises(
        ValueError, match="expected an embedded model without a revision; write tiny"
    ):
        source_of("tiny-bert@main")
    for name in ("./nothing", "~/model", "a/b/c"):
        with pytest.raises(
            ValueError, match="expected a model folder, and the path does not exist"
        ):
            source_of(name)


def test_attention_and_dtype_can_be_chosen():
    eager = load_model("tiny-gpt2", attention="eager", dtype="float64")
    assert eager.hf.config._attn_implementation == "eager"
    assert eager.dtype == torch.float64
    plain = load_model("tiny-gpt2", dtype="float64")
    torch.testing.assert_close(logits(eager), logits(plain), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="nonsense"):
        load_model("tiny-gpt2", attention="nonsense")


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        (
            "cuda:99",
            r"--device cuda:99: expected one of the \d+ GPUs that torch sees; use --device",
        ),
        ("nonsense", "--device nonsense: expected cpu, cuda, cuda:N or auto"),
        ("meta", "--device meta: expected cpu, cuda, cuda:N or auto"),
        *(
            (d, f"--device {d}: expected a device that can hold 'tiny-gpt2'")
            for d in ("xpu", "hpu")
        ),
    ],
)
def test_devices_that_are_not_there_are_one_sentence(device, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as refused:
        load_model("tiny-gpt2", device=device)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_broken_files_are_one_sentence(broken, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(embedded.folder("tiny-gpt2"), folder)
    with (folder / broken).open("r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"download it again$") as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)


def test_several_gpus_need_accelerate(monkeypatch):
    monkeypatch.setattr("kn_bench.model.loading.find_spec", lambda _: None)
    with pytest.raises(
        ValueError,
        match=r"expected accelerate to be installed; pip install 'kn_bench\[multi-gpu\]'",
    ):
        load_model("tiny-gpt2", device="auto")


def test_gpus_without_room_for_the_model_are_refused(monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    whole = transformers.AutoModelForCausalLM.from_pretrained

    def offloaded(*args, device_map, **more):
        assert device_map == "auto"
        hf, info = whole(*args, **more)
        return accelerate.cpu_offload(hf, execution_device="cpu"), info

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", offloaded)
    with pytest.raises(
        ValueError, match="'tiny-gpt2': expected GPUs with room for the whole model; use"
    ):
        load_model("tiny-gpt2", device="auto")


def test_a_model_that_accelerate_places_is_the_same():
    pytest.importorskip("accelerate")
    encode_one = load_model("tiny-gpt2", device="auto")
    torch.testing.assert_close(logits(encode_one), logits(load_model("tiny-gpt2")))
