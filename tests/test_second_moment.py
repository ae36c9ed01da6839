"""C = E[k k^T] by streaming: against one plain sum, resumed, cached, never shared by models."""

import io
import sys
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kn_bench.model import second_moment
from kn_bench.model.corpus import TextFile, Texts
from kn_bench.model.second_moment import second_moments
from tests.tiny_models import tiny_model

TEXTS = tuple(
    " ".join(f"w{5 + (3 * i + 11 * j) % 58}" for j in range(1 + i % 7)) for i in range(40)
)


def plain(lm, layer, texts):
    """One document at a time, every token's outer product."""
    total, n = torch.zeros(lm.d_mlp, lm.d_mlp, dtype=lm.dtype), 0
    for text in texts:
        ids = lm.tokens.encode(text).ids
        for key in lm.neurons(lm.tensor([ids]), [layer])[layer][0]:
            total = total + torch.outer(key, key)
            n += 1
    return total / n, n


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bert", "albert"])
def test_streamed_in_batches_it_is_the_plain_mean(family, monkeypatch):
    monkeypatch.setattr(second_moment, "CHUNK", 7)
    monkeypatch.setattr(second_moment, "PRODUCT_TOKENS", 5)
    lm = tiny_model(family)
    row = second_moment._row_bytes(lm, 6, 2)
    monkeypatch.setattr(lm.batcher, "memory", 2 * 3 * row)  # a pass takes three rows of 6 tokens
    moments = second_moments(lm, [2, 0], Texts(TEXTS))
    assert sorted(moments) == [0, 2]
    for layer, moment in moments.items():
        matrix, n = plain(lm, layer, TEXTS)
        assert moment.n_tokens == n
        torch.testing.assert_close(moment.matrix, matrix)
        torch.testing.assert_close(moment.matrix, moment.matrix.T)
        assert torch.linalg.eigvalsh(moment.matrix).min() > -1e-10


def test_it_reads_as_many_tokens_as_asked():
    lm = tiny_model("gpt2")
    moment = second_moments(lm, [1], Texts(TEXTS), max_tokens=23)[1]
    words = " ".join(TEXTS).split()
    assert moment.n_tokens == 23
    cut, left = [], 23
    for text in TEXTS:
        cut.append(" ".join(text.split()[:left]))
        left -= len(cut[-1].split())
    matrix, n = plain(lm, 1, [text for text in cut if text])
    assert n == 23 < len(words)
    torch.testing.assert_close(moment.matrix, matrix)


def test_float32_accumulators_are_close_and_said_so():
    lm = tiny_model("gpt2", torch.float32)
    exact = second_moments(lm, [1], Texts(TEXTS))[1]
    rough = second_moments(lm, [1], Texts(TEXTS), dtype=torch.float32)[1]
    assert (exact.matrix.dtype, rough.matrix.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(rough.matrix.double(), exact.matrix, rtol=1e-5, atol=1e-5)


def test_a_file_and_a_list_of_its_lines_give_the_same(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    lm = tiny_model("gpt2")
    from_file = second_moments(lm, [0], TextFile(path))[0].matrix
    assert torch.equal(from_file, second_moments(lm, [0], Texts(TEXTS))[0].matrix)


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(second_moment, "CHUNK", 5)
    monkeypatch.setattr(second_moment, "SAVE_EVERY", -1.0)
    lm = tiny_model("gpt2")
    whole = second_moments(lm, [0, 1], Texts(TEXTS))
    chunks: list[list[str]] = []
    add = second_moment._add_chunk

    def failing(lm, state, chunk, left, advance):
        if len(chunks) == 3:
            raise KeyboardInterrupt
        chunks.append(chunk)
        add(lm, state, chunk, left, advance)

    monkeypatch.setattr(second_moment, "_add_chunk", failing)
    with pytest.raises(KeyboardInterrupt):
        second_moments(lm, [0, 1], Texts(TEXTS), cache=tmp_path)
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["partial"]

    def counting(lm, state, chunk, left, advance):
        chunks.append(chunk)
        add(lm, state, chunk, left, advance)

    monkeypatch.setattr(second_moment, "_add_chunk", counting)
    resumed = second_moments(lm, [0, 1], Texts(TEXTS), cache=tmp_path)
    assert [text for chunk in chunks for text in chunk] == list(TEXTS)
    for layer, moment in whole.items():
        assert torch.equal(resumed[layer].matrix, moment.matrix)
        assert resumed[layer].n_tokens == moment.n_tokens
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", [b"junk", b"", b"\xff" * 4096])
def test_a_spoilt_file_of_the_cache_is_computed_anew_with_a_sentence(tmp_path, content):
    lm = tiny_model("gpt2")
    first = second_moments(lm, [0], Texts(TEXTS), cache=tmp_path)[0]
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=rf"^{path}: expected a file that .* \(.*\); it is computed again$"
    ):
        again = second_moments(lm, [0], Texts(TEXTS), cache=tmp_path)[0]
    assert torch.equal(again.matrix, first.matrix)
    assert torch.equal(
        second_moments(lm, [0], Texts(TEXTS), cache=tmp_path)[0].matrix, first.matrix
    )


@pytest.mark.parametrize("keep", ["the checksum", "no checksum"])
def test_an_altered_file_of_the_cache_is_computed_anew(tmp_path, keep):
    lm = tiny_model("gpt2")
    first = second_moments(lm, [0], Texts(TEXTS), cache=tmp_path)[0]
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        matrix, numbers = file.get_tensor("C"), file.metadata()
    if keep == "no checksum":
        del numbers[second_moment.CHECKSUM]
    save_file({"C": matrix * 1.01}, path, metadata=numbers)
    with pytest.warns(UserWarning, match=r"(\(altered|\(no checksum).* computed again"):
        again = second_moments(lm, [0], Texts(TEXTS), cache=tmp_path)[0]
    assert torch.equal(again.matrix, first.matrix)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.warns(UserWarning, match=r": expected a writable file \(.*\); it is not kept$"):
        moments = second_moments(tiny_model("gpt2"), [0], Texts(TEXTS), cache=tmp_path / "file")
    assert moments[0].n_tokens
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_cache_tells_models_layers_texts_and_counts_apart(tmp_path, monkeypatch):
    passes = []
    accumulate = second_moment._accumulate

    def counted(*args):
        passes.append(args)
        return accumulate(*args)

    monkeypatch.setattr(second_moment, "_accumulate", counted)
    first, second = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    float32 = tiny_model("gpt2", torch.float32)
    asked: list[tuple[Any, int, tuple[str, ...], dict[str, Any]]] = [
        (first, 0, TEXTS, {}),
        (second, 0, TEXTS, {}),
        (float32, 0, TEXTS, {}),
        (first, 1, TEXTS, {}),
        (first, 0, TEXTS[1:], {}),
        (first, 0, TEXTS, {"max_tokens": 50}),
        (first, 0, TEXTS, {"dtype": torch.float32}),
    ]
    matrices = [
        second_moments(lm, [layer], Texts(texts), cache=tmp_path, **options)[layer].matrix
        for lm, layer, texts, options in asked
    ]
    assert len(passes) == len(asked)
    for (lm, layer, texts, options), before in zip(asked, matrices, strict=True):
        again = second_moments(lm, [layer], Texts(texts), cache=tmp_path, **options)[layer]
        assert torch.equal(again.matrix, before)
        fresh = second_moments(lm, [layer], Texts(texts), **options)[layer]
        torch.testing.assert_close(fresh.matrix, before)
    assert len(passes) == 2 * len(asked)


def test_only_missing_layers_are_measured(tmp_path, monkeypatch):
    lm = tiny_model("gpt2")
    second_moments(lm, [0], Texts(TEXTS), cache=tmp_path)
    accumulate, layers = second_moment._accumulate, []

    def noted(lm, wanted, *rest):
        layers.append(list(wanted))
        return accumulate(lm, wanted, *rest)

    monkeypatch.setattr(second_moment, "_accumulate", noted)
    assert sorted(second_moments(lm, [0, 2], Texts(TEXTS), cache=tmp_path)) == [0, 2]
    assert layers == [[2]]


def test_nothing_is_shown_where_no_one_watches(monkeypatch, capsys):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    second_moments(tiny_model("gpt2"), [0], Texts(TEXTS))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert written.getvalue() == ""


def test_a_corpus_without_text_is_refused():
    with pytest.raises(ValueError, match="the corpus for the second moment: expected text; give a"):
        second_moments(tiny_model("gpt2"), [0], Texts(()))
