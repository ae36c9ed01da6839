"""Text and ids: every kind of tokenizer behind one window."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.model import embedded
from kn_bench.model.loading import load_model
from kn_bench.model.tokens import Encoding, Span, Tokens, last_token_of
from tests.made_tokenizers import CAUSAL, MASKED, TEXTS, tokens

ALL = (*CAUSAL, *MASKED)
BYTE_LEVEL = ("bare", "gpt2", "llama3", "closing", "roberta", "plain_mask")


@pytest.mark.parametrize("name", ALL)
def test_many_are_encoded_as_one_is(name):
    window = tokens(name)
    assert window.encode_many(TEXTS) == [window.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(text=st.text(max_size=40))
def test_a_byte_level_text_comes_back_from_its_ids(name, text):
    window = tokens(name)
    if any(special in text for special in window.tokenizer.all_special_tokens):
        return
    assert window.decode(window.encode(text).ids) == text


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_are_the_tokenizers_own(name):
    window = tokens(name)
    ids = window.encode("The capital of Canada is").ids
    of_transformers = window.tokenizer("The capital of Canada is")["input_ids"]
    assert list(ids) == of_transformers
    assert window.n_closing == {"closing": 1, "bert": 1, "roberta": 1, "plain_mask": 1}.get(name, 0)
    assert window.pad_id in range(len(window.tokenizer))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("subject", ["Canada", "Ottawa", "Zürich", "São Paulo", "the capital"])
def test_the_token_found_ends_the_subject(name, subject):
    window = tokens(name)
    text = f"They say that {subject} is seldom Canada."
    start = text.index(subject)
    encoding = window.encode(text)
    at = last_token_of(encoding, start, start + len(subject))
    upto = window.decode(encoding.ids[: at + 1]).rstrip()
    if name == "bert":  # word pieces are put together with single spaces
        upto = " ".join(upto.split())
    assert upto.endswith(subject)
    # the one after it does not belong to the subject any more
    assert not window.decode(encoding.ids[at + 1 : at + 2]).strip().startswith(subject[-1])


def test_the_bos_shifts_the_index():
    text, subject = "The capital of Canada is", "Canada"
    start = text.index(subject)
    without, with_bos = (tokens(name).encode(text) for name in ("gpt2", "llama3"))
    span = (start, start + len(subject))
    difference = len(with_bos.ids) - len(without.ids)
    assert difference == 1
    assert last_token_of(with_bos, *span) == last_token_of(without, *span) + 1


def test_a_span_without_token_is_refused():
    with pytest.raises(
        ValueError, match=r"^characters 3 to 9 of the text: expected a token that covers them$"
    ):
        last_token_of(Encoding((5,), ((0, 3),)), 3, 9)


@pytest.mark.parametrize("name", ALL)
def test_a_stretch_is_found_with_its_space_and_all_its_bytes(name):
    window = tokens(name)
    for left, word, right in (
        ("The capital of Canada is", "Ottawa", "."),
        ("They live in", "Zürich", "."),
        ("Their", "São", "Paulo."),
        ("The", "woman", "hasn't."),
    ):
        text = f"{left} {word}{'' if right == '.' else ' '}{right}"
        gap = len(left)
        ids, first, last, whole = window.encode_spans(
            [text], [Span(gap, gap + 1, gap + 1 + len(word))]
        )[0]
        assert whole, text
        assert window.decode(ids[first : last + 1]).replace(" ", "") == word
        before = window.decode(ids[:first]).replace(" ", "")
        assert before == left.replace(" ", "")


def test_a_stretch_inside_a_token_is_not_whole():
    window = tokens("bert")
    text = "The capital of Canada is Ottawa."
    start = text.index("apita")
    (spanned,) = window.encode_spans([text], [Span(start, start, start + 5)])
    assert not spanned.whole


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(
        ValueError, match=r"^Slow: expected a fast tokenizer with a tokenizer\.json"
    ):
        Tokens(Slow(), "causal")


def test_a_masked_model_needs_a_mask():
    with pytest.raises(ValueError, match=r"expected a mask token, as tokenizers of masked"):
        Tokens(tokens("gpt2").tokenizer, "masked")


def test_padding_falls_back_on_what_there_is():
    assert tokens("gpt2").pad_id == tokens("gpt2").eos_id
    assert tokens("bert").pad_id == 0


def test_a_stated_length_limits():
    assert tokens("gpt2").max_length == 1 << 30
    assert tokens("gpt2", 12).max_length == 12


def test_truncation_set_on_the_shared_tokenizer_does_not_reach_us():
    window = tokens("bert")
    before = window.encode(TEXTS[1]).ids
    window.tokenizer(TEXTS[1], truncation=True, max_length=4)
    assert window.encode(TEXTS[1]).ids == before


def test_a_model_folder_without_a_tokenizer(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(embedded.folder("tiny-gpt2") / name, tmp_path)
    with pytest.raises(
        ValueError, match=r"expected tokens for plain text; add its tokenizer\.json"
    ):
        load_model(str(tmp_path))
