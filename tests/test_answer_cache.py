"""The unedited model's answers on disk: the same numbers, without asking again."""

import copy
import sqlite3
import warnings
from contextlib import closing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.measure.cache import AnswerCache, TargetScores, content_key
from kn_bench.measure.engine import Engine
from kn_bench.model.corpus import Texts
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.own_text import own_text
from kn_bench.model.scoring import Reading
from kn_bench.model.second_moment import second_moments
from tests.test_engine import Toy, _Nothing, assert_equal_rows, rows, toy_case
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_second_run_asks_nothing_and_reads_the_same(tmp_path, monkeypatch, dtype):
    lm = tiny_model("gpt2", dtype)
    cases = [toy_case(i) for i in range(6)]
    first = rows(Engine(lm, cache=tmp_path), _Nothing(), cases)
    second = Engine(lm, cache=tmp_path)

    def never(*_):
        raise AssertionError("the model was asked again")

    lm.memo.clear()
    monkeypatch.setattr(lm.batcher, "_halving", never)
    assert rows(second, _Nothing(), cases) == first


def test_edited_answers_never_come_from_the_cache(tmp_path):
    lm = tiny_model("gpt2", torch.float32)
    cases = [toy_case(i) for i in range(6)]
    rows(Engine(lm, cache=tmp_path), _Nothing(), cases)
    assert rows(Engine(lm, cache=tmp_path), Toy(lm), cases) == rows(Engine(lm), Toy(lm), cases)


def test_two_models_share_a_folder_and_no_answer(tmp_path):
    left, right = tiny_model("gpt2", torch.float32), tiny_model("gpt2", torch.float32, seed=1)
    cases = [toy_case(i) for i in range(3)]
    for lm in (left, right, left):
        assert rows(Engine(lm, cache=tmp_path), _Nothing(), cases) == rows(
            Engine(lm), _Nothing(), cases
        )


def test_equal_weights_under_another_config_share_no_answer_and_nothing_else_on_disk(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))
    plain, odd = (tiny_model.__wrapped__("llama", torch.float32) for _ in range(2))
    odd = LanguageModel(odd.name, _with_epsilon(odd.hf, 0.5), odd.tokens.tokenizer)
    assert plain.content_hash == odd.content_hash
    cases = [toy_case(i) for i in range(3)]
    for lm in (plain, odd, plain):
        assert rows(Engine(lm, cache=tmp_path), _Nothing(), cases) == rows(
            Engine(lm), _Nothing(), cases
        )
    texts = Texts(("w5 w6 w7", "w8 w9"))
    kept, other = (second_moments(lm, [1], texts, cache=tmp_path)[1].matrix for lm in (plain, odd))
    assert not torch.allclose(kept, other)
    assert own_text(plain, 8) != own_text(odd, 8)


def _with_epsilon(hf, epsilon):
    """The model as transformers builds it from a config with another epsilon of its norms."""
    config = copy.deepcopy(hf.config)
    config.rms_norm_eps = epsilon
    other = type(hf)(config).to(hf.dtype)
    other.load_state_dict(hf.state_dict())
    return other


SAID = r"^the cache .*sqlite cannot be used \(.*\): the unedited model is asked anew; remove"


def test_a_broken_file_is_done_without(tmp_path):
    lm = tiny_model("gpt2", torch.float32)
    cases = [toy_case(0)]
    path = tmp_path / f"{lm.content_hash}-{lm.behaviour_hash}-cpu.sqlite"
    path.write_bytes(b"this is no database, and longer than a header of sixteen bytes" * 20)
    with pytest.warns(UserWarning, match=SAID):
        assert rows(Engine(lm, cache=tmp_path), _Nothing(), cases)
    with pytest.warns(UserWarning, match="file is not a database"):
        assert not AnswerCache(tmp_path, f"{lm.content_hash}-{lm.behaviour_hash}-cpu").usable


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=SAID):
        assert not AnswerCache(tmp_path / "file" / "below", "x").usable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_kept_comes_back(tmp_path, dtype):
    cache = AnswerCache(tmp_path, "model")
    reading = Reading(torch.tensor([-0.1, float("-inf")], dtype=dtype), (3, 70000))
    score = TargetScores((-1.25, -3e-9), (True, False))
    cache.keep_readings([(b"a", reading)])
    cache.keep_scores([(b"b", score)])
    again = AnswerCache(tmp_path, "model")
    (kept,) = again.readings([b"a", b"absent"]).values()
    assert torch.equal(kept.log_probs, reading.log_probs)
    assert kept.log_probs.dtype == dtype
    assert kept.generated == reading.generated
    assert again.scores([b"b"]) == {b"b": score}


ALTERATIONS = {
    "a log-probability": "UPDATE readings SET log_probs = zeroblob(length(log_probs))",
    "a continuation": "UPDATE readings SET generated = zeroblob(length(generated))",
    "a hit": "UPDATE scores SET argmax = CASE argmax WHEN x'01' THEN x'00' ELSE x'01' END",
    "a shorter answer": "UPDATE scores SET log_probs = x''",
    "a text": "UPDATE readings SET log_probs = 'text'",
    "a null": "UPDATE scores SET argmax = NULL",
    "no checksum": "UPDATE readings SET checksum = NULL",
}


@pytest.mark.parametrize("statement", ALTERATIONS.values(), ids=ALTERATIONS)
def test_an_altered_answer_is_asked_anew_with_one_warning(tmp_path, statement):
    lm = tiny_model.__wrapped__("gpt2", torch.float32)
    cases = [toy_case(index) for index in range(4)]
    first = rows(Engine(lm, cache=tmp_path), _Nothing(), cases)
    file = tmp_path / f"{lm.content_hash}-{lm.behaviour_hash}-cpu.sqlite"
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(statement).rowcount > 1
    lm.memo.clear()
    with pytest.warns(UserWarning, match="altered since they were stored") as said:
        again = rows(Engine(lm, cache=tmp_path), _Nothing(), cases)
    # what is asked anew shares a pass with fewer prompts, and is rounded differently
    assert_equal_rows(again, first, 1e-6)
    assert len(said) == 1
    lm.memo.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was asked anew is stored in its place
        assert rows(Engine(lm, cache=tmp_path), _Nothing(), cases) == again


def test_an_answer_to_another_question_is_altered(tmp_path):
    first, second = TargetScores((-1.0,), (True,)), TargetScores((-2.0,), (False,))
    AnswerCache(tmp_path, "m").keep_scores([(b"a", first), (b"b", second)])
    with closing(sqlite3.connect(tmp_path / "m.sqlite")) as connection, connection:
        connection.execute("UPDATE scores SET key = x'63' WHERE key = x'61'")
    with pytest.warns(UserWarning, match="altered"):
        assert AnswerCache(tmp_path, "m").scores([b"b", b"c"]) == {b"b": second}


def test_answers_of_another_model_are_not_this_ones(tmp_path):
    AnswerCache(tmp_path, "one").keep_scores([(b"k", TargetScores((-1.0,), (True,)))])
    (tmp_path / "one.sqlite").rename(tmp_path / "other.sqlite")
    with pytest.warns(UserWarning, match="altered"):
        assert AnswerCache(tmp_path, "other").scores([b"k"]) == {}


def test_a_file_without_checksums_is_begun_anew(tmp_path):
    with closing(sqlite3.connect(tmp_path / "m.sqlite")) as connection, connection:
        connection.execute(
            "CREATE TABLE scores (key BLOB PRIMARY KEY, log_probs BLOB, argmax BLOB)"
        )
        connection.execute("INSERT INTO scores VALUES (x'6b', x'0000000000000000', x'01')")
    cache = AnswerCache(tmp_path, "m")
    assert cache.scores([b"k"]) == {}
    cache.keep_scores([(b"k", TargetScores((-1.0,), (True,)))])
    assert AnswerCache(tmp_path, "m").scores([b"k"]) == {b"k": TargetScores((-1.0,), (True,))}


ids = st.lists(st.integers(0, 1000), max_size=6).map(tuple)


@given(ids, ids, ids, ids)
def test_keys_tell_where_each_part_ends(a, b, c, d):
    assert (content_key(a, b) == content_key(c, d)) == ((a, b) == (c, d))
