"""Probes in ids, against the tokenizer itself asked about the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from kn_bench.cases.case import HALF_A_CHARACTER, Case, Cloze, EditRequest, Exclusion, Probe, Query
from kn_bench.measure import encoded as reasons
from kn_bench.measure import encoding
from kn_bench.measure.encoding import (
    EncodedCase,
    EncodedProbe,
    Unencodable,
    encode_case,
    encode_cases,
    encode_probe,
    encode_query,
    encode_request,
)
from kn_bench.model.tokens import Tokens
from tests.made_tokenizers import CAUSAL, MASKED, tokens

CAPITAL = Cloze("The capital of Canada is", ".")
NAMES = st.sampled_from(
    ["Canada", "Ottawa", "Paris", "Timbuktu", "São Paulo", "Zürich", "France", "movie theater"]
)
LEFTS = st.sampled_from(
    ["The capital of Canada is", "Paris is the capital of", "They say that the", "Their names:"]
)


def probe(cloze=CAPITAL, expected="Paris", rejected="Ottawa", **more) -> Probe:
    return Probe("reliability/0", "reliability", cloze, expected, rejected, **more)


def pair(left, good, bad, right, scoring) -> Probe:
    return probe(Cloze(left, right), bad, good, task="pair", scoring=scoring)


def encoded(asked, window, prefix="") -> EncodedProbe:
    encoding = encode_probe(asked, window, prefix)
    assert isinstance(encoding, EncodedProbe), encoding
    return encoding


def ids_of(window: Tokens, text: str) -> tuple[int, ...]:
    """What transformers itself makes of ``text``, without what closes it."""
    ids = tuple(window.tokenizer(text)["input_ids"])
    return ids[: len(ids) - window.n_closing]


@pytest.mark.parametrize("name", CAUSAL)
@given(left=LEFTS, expected=NAMES, rejected=NAMES)
def test_prompt_and_answer_make_the_joined_text(name, left, expected, rejected):
    window = tokens(name)
    encoding = encode_probe(probe(Cloze(left, "."), expected, rejected), window)
    if isinstance(encoding, Unencodable):
        # SentencePiece-like: letters it never saw
        assert encoding.reason == reasons.SPECIAL, encoding
        return
    assert encoding.prompt_ids == ids_of(window, left)
    assert encoding.answer_position == len(encoding.prompt_ids) - 1
    for answer, row in ((expected, encoding.expected), (rejected, encoding.rejected)):
        assert row.ids == encoding.prompt_ids + row.targets == ids_of(window, f"{left} {answer}")
        assert row.positions == tuple(range(encoding.answer_position, len(row.ids) - 1))
        assert window.decode(row.targets).strip() == answer
    assert encoding.first_expected == encoding.expected.targets[0]


def test_an_answer_that_grows_into_the_prompt_is_left_out():
    """No pre-tokenizer, and a merge across the space: "is P" is one token."""
    merges = [("s", " "), ("s ", "P")]
    letters = sorted(set("The capital of Canada is Paris Ottawa"))
    vocabulary = ["<unk>", *letters, "s ", "s P"]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocabulary)}, merges, unk_token="<unk>")
    )
    window = Tokens(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"), "causal"
    )
    encoding = encode_probe(probe(), window)
    assert isinstance(encoding, Unencodable)
    assert encoding.reason == "the answer does not begin or end at a token's border"
    assert "'Paris' in 'The capital of Canada is Paris'" in encoding.detail


@pytest.mark.parametrize("name", MASKED)
@given(left=LEFTS, expected=NAMES, rejected=NAMES)
def test_only_the_answer_is_masked_and_kept_as_tokenised(name, left, expected, rejected):
    window = tokens(name)
    encoding = encode_probe(probe(Cloze(left, ", they say."), expected, rejected), window)
    if isinstance(encoding, Unencodable):
        assert encoding.reason in (reasons.SEVERAL, reasons.SPECIAL, reasons.SAME), encoding
        return
    assert not encoding.expected.further
    for answer, row in ((expected, encoding.expected), (rejected, encoding.rejected)):
        assert row.ids == encoding.prompt_ids
        assert row.positions == (encoding.answer_position,)
        assert row.ids.count(window.mask_id) == 1
        (target,) = row.targets
        whole = list(row.ids)
        whole[encoding.answer_position] = target
        assert whole == window.tokenizer(f"{left} {answer}, they say.")["input_ids"]


@pytest.mark.parametrize("name", MASKED)
def test_known_words_are_one_token_at_the_mask(name):
    window = tokens(name)
    encoding = encoded(probe(), window) if name == "bert" else encode_probe(probe(), window)
    if isinstance(encoding, EncodedProbe):
        assert window.decode(encoding.expected.targets).strip() == "Paris"
    else:
        assert encoding.reason == reasons.SEVERAL


def test_the_space_before_a_mask_is_the_answers():
    """A mask token that leaves the space alone would ask for a word without one."""
    for name in ("roberta", "plain_mask"):
        window = tokens(name)
        cloze = Cloze("The capital of Canada", "Ottawa.")
        encoding = encoded(probe(cloze, "is", "of"), window)
        assert window.decode(encoding.expected.targets) == " is"
        assert " " not in [window.decode([i]) for i in encoding.prompt_ids]


def test_several_word_pieces_have_no_mask():
    encoding = encode_probe(probe(expected="Timbuktu"), tokens("bert"))
    assert isinstance(encoding, Unencodable)
    assert encoding.reason == "the answer is several word pieces"


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_no_special_token_is_an_answer(name):
    window = tokens(name)
    for special in sorted(set(window.tokenizer.all_special_tokens)):
        encoding = encode_probe(probe(expected=special), window)
        assert isinstance(encoding, Unencodable), special
        assert encoding.reason in (reasons.SPECIAL, reasons.SEVERAL, reasons.BOUNDARY)


def test_no_unknown_token_is_an_answer():
    for name in ("bert", "llama2"):
        encoding = encode_probe(probe(expected="Ωμέγα"), tokens(name))
        assert isinstance(encoding, Unencodable)
        assert encoding.reason == "the answer has a special or unknown token"


def test_an_answer_that_tokenises_to_nothing_is_named():
    for name in ("bert", "llama2"):
        encoding = encode_probe(probe(expected="\u200b"), tokens(name))
        assert encoding == Unencodable("the answer has no token", "'\\u200b' tokenises to nothing")


@pytest.mark.parametrize("name", CAUSAL)
def test_the_prompt_knows_nothing_of_the_target(name):
    window = tokens(name)
    one = encoded(probe(), window)
    other = encoded(probe(expected="Canada Canada Canada"), window)
    assert (one.prompt_ids, one.answer_position) == (other.prompt_ids, other.answer_position)


def test_the_mask_knows_nothing_of_the_target():
    window = tokens("bert")
    left, right = encoded(probe(), window), encoded(probe(expected="France"), window)
    assert (left.prompt_ids, left.answer_position) == (right.prompt_ids, right.answer_position)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_sentence_is_scored_from_the_differing_span_on(name):
    window = tokens(name)
    encoding = encoded(pair("The", "girls", "girl", "helped themselves.", "sentence"), window)
    for word, row in (("girl", encoding.expected), ("girls", encoding.rejected)):
        assert row.ids == ids_of(window, f"The {word} helped themselves.")
        assert row.ids[: len(encoding.prompt_ids)] == encoding.prompt_ids == ids_of(window, "The")
        assert row.targets == row.ids[len(encoding.prompt_ids) :]
        assert row.positions == tuple(p - 1 for p in range(len(encoding.prompt_ids), len(row.ids)))


@pytest.mark.parametrize("name", CAUSAL)
def test_two_prefixes_are_compared_by_what_follows(name):
    window = tokens(name)
    encoding = encoded(pair("The", "girls", "girl", "helped themselves.", "two_prefix"), window)
    for word, row in (("girl", encoding.expected), ("girls", encoding.rejected)):
        assert row.ids == ids_of(window, f"The {word} helped themselves.")
        assert len(row.ids) - len(row.targets) == len(ids_of(window, f"The {word}"))
    assert encoding.expected.targets == encoding.rejected.targets
    assert window.decode(encoding.expected.targets).strip() == "helped themselves."
    assert encoding.prompt_ids == ids_of(window, "The")
    assert encoding.first_expected == encoding.expected.ids[len(encoding.prompt_ids)]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_pairs_gap_leaves_what_follows_unread(name):
    window = tokens(name)
    encoding = encoded(pair("The girls", "helped", "help", "themselves.", "gap"), window)
    assert encoding.expected.ids == ids_of(window, "The girls help")


def test_masked_models_answer_at_the_gap_whatever_the_scoring():
    window = tokens("bert")
    rows = {
        encoded(pair("The", "capital", "cities", "of Canada is Ottawa.", scoring), window).expected
        for scoring in ("gap", "two_prefix", "sentence")
    }
    assert len(rows) == 1


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("words", [("Timbuktu", "the capital of"), ("girls", "themselves cities")])
def test_a_pairs_words_of_several_pieces_are_masked_in_turn(name, words):
    """Each row, its mask filled with its target, is the text; each piece is masked once."""
    window = tokens(name)
    encoding = encoded(pair("The", words[1], words[0], "seen that movie.", "sentence"), window)
    assert encoding.prompt_ids.count(window.mask_id) == 1
    for answer, row in zip(words, (encoding.expected, encoding.rejected), strict=True):
        text = f"The {answer} seen that movie."
        places = []
        for part in row.parts:
            ((place,), (target,)) = part.positions, part.targets
            assert part.ids[place] == window.mask_id
            whole = [*part.ids[:place], target, *part.ids[place + 1 :]]
            assert whole == window.tokenizer(text)["input_ids"]
            places.append(place)
        assert places == list(range(encoding.answer_position, encoding.answer_position + row.n))
    assert max(encoding.expected.n, encoding.rejected.n) > 1


def test_the_start_of_a_text_is_predicted_from_the_documents_start():
    sentence_pair = pair("", "Paris", "France", "is the capital.", "sentence")
    window = tokens("gpt2")
    encoding = encoded(sentence_pair, window)
    assert encoding.prompt_ids == (window.bos_id,)
    assert encoding.expected.ids == (window.bos_id, *ids_of(window, "France is the capital."))
    encoding = encoded(sentence_pair, tokens("llama3"))
    assert encoding.prompt_ids == (tokens("llama3").bos_id,)
    assert encoding.expected.ids == ids_of(tokens("llama3"), "France is the capital.")
    only_eos = encoded(sentence_pair, tokens("closing"))
    assert only_eos.prompt_ids == (tokens("closing").eos_id,)
    nothing = encode_probe(sentence_pair, tokens("bare"))
    assert isinstance(nothing, Unencodable)
    assert nothing.reason == "nothing stands before the answer to predict it from"


@pytest.mark.parametrize("name", CAUSAL)
def test_a_fact_whose_answer_is_followed_by_more_is_for_masked_models(name):
    cloze = Cloze("", "is the capital of Canada.")
    encoding = encode_probe(probe(cloze), tokens(name))
    assert encoding == Unencodable(
        "the answer is followed by more text: only a masked model can be asked",
        "▁ is the capital of Canada.",
    )
    assert encoded(probe(cloze), tokens("bert")).answer_position == 1


@pytest.mark.parametrize("name", [*CAUSAL, "bert"])
def test_a_prefix_stands_before_every_prompt_with_a_space(name):
    window = tokens(name)
    prefix = "The capital of Canada is Paris."
    long = Cloze(f"{prefix} {CAPITAL.left}", CAPITAL.right)
    with_prefix, written_out = encoded(probe(), window, prefix), encoded(probe(long), window)
    assert with_prefix._replace(probe=written_out.probe) == written_out
    start = encode_probe(pair("", "Paris", "France", "is big.", "sentence"), window, prefix)
    if isinstance(start, EncodedProbe) and name != "bert":
        assert start.prompt_ids == ids_of(window, prefix)


def test_what_is_too_long_is_left_out():
    length = len(ids_of(tokens("gpt2"), "The capital of Canada is Ottawa"))
    assert isinstance(encode_probe(probe(), tokens("gpt2", length)), EncodedProbe)
    encoding = encode_probe(probe(), tokens("gpt2", length - 1))
    assert isinstance(encoding, Unencodable)
    assert encoding.reason == "the text is longer than the model takes"
    encoding = encode_probe(probe(), tokens("bert", 5))
    assert isinstance(encoding, Unencodable)
    assert encoding.reason == "the text is longer than the model takes"


@pytest.mark.parametrize("name", ["gpt2", "llama3", "closing"])
def test_a_probe_that_leaves_no_room_for_its_answer_is_left_out_and_no_other(name):
    length = len(ids_of(tokens(name), "The capital of Canada is"))
    long = Probe("generality/0", "generality", Cloze("So: The capital of Canada is", "."), "a", "b")
    (more,) = {len(ids_of(tokens(name), long.cloze.left)) - length}
    assert more > 0
    # the last token of the answer is read and never fed
    enough = length + reasons.BUDGET - 1
    for room, n_left_out in ((enough + more, 0), (enough + more - 1, 1), (enough, 1)):
        encoded_case = encode_case(case(probe(), long), tokens(name, room))
        assert isinstance(encoded_case, EncodedCase)
        assert len(encoded_case.exclusions) == n_left_out
        assert all(
            (e.probe, e.reason) == (long.id, reasons.NO_ROOM) for e in encoded_case.exclusions
        )
    whole = encode_case(case(probe(), long), tokens(name, enough - 1))
    assert isinstance(whole, Exclusion)
    assert whole.reason == reasons.NO_ROOM
    assert isinstance(encode_probe(probe(), tokens(name, enough - 1)), EncodedProbe)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize("where", ["left", "right", "expected", "rejected"])
def test_a_probe_with_half_a_character_is_left_out_and_no_other(name, where):
    half = "Canada\ud83d"
    texts = {"left": "The capital of Canada is", "right": ".", "expected": "Paris"}
    texts = {**texts, "rejected": "Ottawa", where: half}
    cloze = Cloze(texts["left"], texts["right"])
    odd = Probe("generality/0", "generality", cloze, texts["expected"], texts["rejected"])
    encoded_case = encode_case(case(probe(), odd), tokens(name))
    assert isinstance(encoded_case, EncodedCase)
    assert [p.probe.id for p in encoded_case.probes] == ["reliability/0"]
    (left_out,) = encoded_case.exclusions
    assert (left_out.probe, left_out.reason) == (odd.id, HALF_A_CHARACTER)
    left_out.detail.encode()


def request(**more) -> EditRequest:
    what = {
        "id": "P36/Canada", "task": "fact", "relation": "P36", "subject": "Canada",
        "prompt": "The capital of {} is", "target_true": "Ottawa", "target_new": "Paris",
    }  # fmt: skip
    return EditRequest(**{**what, **more})


def case(*probes: Probe, **more) -> Case:
    return Case(request(**more), probes, "Canada", "test")


def test_a_case_keeps_its_probes_in_order_and_names_the_others():
    start = Probe("generality/0", "generality", Cloze("", "is big."), "Paris", "Ottawa")
    last = Probe("generality/1", "generality", Cloze("Canada is ruled from", "."), "Paris", "of")
    encoded_case = encode_case(case(probe(), start, last), tokens("gpt2"))
    assert isinstance(encoded_case, EncodedCase)
    assert [p.probe.id for p in encoded_case.probes] == ["reliability/0", "generality/1"]
    (left_out,) = encoded_case.exclusions
    assert (left_out.case, left_out.probe) == ("P36/Canada", "generality/0")
    assert left_out.reason == reasons.NOT_LAST


def test_a_case_without_its_edited_prompt_is_left_out():
    encoded_case = encode_case(case(probe(expected="Ωμέγα")), tokens("bert"))
    assert isinstance(encoded_case, Exclusion)
    assert (encoded_case.case, encoded_case.reason, encoded_case.probe) == (
        "P36/Canada",
        reasons.SPECIAL,
        None,
    )


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_many_cases_fit_as_each_does_alone(name, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 2)
    words = ["Paris", "Ottawa", "Canada", "France", "Timbuktu"]
    cases = [
        case(
            probe(expected=a, rejected=b),
            Probe("generality/0", "generality", Cloze("It is", "."), a, b),
            id=f"P36/{a}.{b}",
        )
        for a in words
        for b in words
        if a != b
    ]
    window = tokens(name)
    assert encode_cases(cases, window) == [encode_case(each, window) for each in cases]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_request_knows_its_subjects_last_token(name):
    window = tokens(name)
    for subject in ("Canada", "São Paulo" if name != "llama2" else "France"):
        encoding = encode_request(request(subject=subject), window)
        assert not isinstance(encoding, Unencodable)
        upto = window.decode(encoding.prompt_ids[: encoding.subject_position + 1])
        assert upto == f"The capital of {subject}"
        assert encoding.prompt_ids + encoding.new_ids == ids_of(
            window, f"The capital of {subject} is Paris"
        )
        assert encoding.prompt_ids + encoding.true_ids == ids_of(
            window, f"The capital of {subject} is Ottawa"
        )


def test_a_subject_after_the_answer_is_for_masked_models():
    after = request(task="pair", prompt="", suffix="is the capital of {}.")
    assert encode_request(after, tokens("gpt2")) == Unencodable(reasons.AFTER, "P36/Canada")
    encoding = encode_request(after, tokens("bert"))
    assert not isinstance(encoding, Unencodable)
    window = tokens("bert")
    assert window.decode([encoding.prompt_ids[encoding.subject_position]]) == "Canada"
    assert encoding.prompt_ids[encoding.answer_position] == window.mask_id


@pytest.mark.parametrize("name", CAUSAL)
def test_a_query_is_its_prompt_and_its_answer(name):
    window = tokens(name)
    encoding = encode_query(Query(CAPITAL, "Ottawa"), window)
    assert encoding is not None
    assert encoding.ids[: encoding.answer_position + 1] + encoding.answer_ids == ids_of(
        window, "The capital of Canada is Ottawa"
    )
    middle = Query(Cloze("The girls", "themselves."), "helped")
    assert encode_query(middle, window) is None
    as_pair = encode_query(middle, window, task="pair")
    assert as_pair is not None
    assert as_pair.ids == ids_of(window, "The girls")


def test_a_masked_query_has_a_mask_for_every_piece():
    window = tokens("bert")
    encoding = encode_query(Query(CAPITAL, "Timbuktu"), window)
    assert encoding is not None
    n = len(encoding.answer_ids)
    assert n > 1
    masks = [i for i, token in enumerate(encoding.ids) if token == window.mask_id]
    assert masks == list(range(encoding.answer_position, encoding.answer_position + n))
    whole = list(encoding.ids)
    whole[encoding.answer_position : encoding.answer_position + n] = encoding.answer_ids
    assert whole == window.tokenizer("The capital of Canada is Timbuktu.")["input_ids"]


def test_queries_that_do_not_fit_are_none():
    assert encode_query(Query(CAPITAL, "Ωμέγα"), tokens("bert")) is None
    assert encode_query(Query(Cloze("", "."), "Ottawa"), tokens("bare")) is None


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_a_prompt_that_does_not_name_its_subject_says_so(name):
    import kn_bench as kn

    request = EditRequest(
        subject="Canada", prompt="Its capital is", target_true="Ottawa", target_new="Rome"
    )
    refused = kn.encode_request(request, kn.load_model(name).tokens)
    assert isinstance(refused, Unencodable)
    assert refused.reason == "the prompt does not name its subject"
