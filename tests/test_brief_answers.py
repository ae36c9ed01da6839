"""Answers that nobody is shown end as soon as no verdict depends on what follows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.cases import sources
from kn_bench.cases.normalise import is_settled, same_answer, starts_with_answer, words
from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.measure.answers import ALL, PAIRS, Asker, Question
from kn_bench.measure.encoding import EncodedCase, encode_cases
from kn_bench.model.loading import load_model

PIECES = st.sampled_from(
    [
        " Paris",
        " the",
        " St.",
        "Louis",
        ".",
        "!",
        "\n",
        " U.",
        "S.",
        " is",
        "ian",
        " a",
        " ",
        "+",
        " लोम",
        "े",
    ]
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "n_words", "sentence", "settled"),
    [
        (" Paris", 1, False, False),  # Parisian
        (" Paris is", 1, False, True),
        (" Paris is", 1, True, False),
        (" Paris.", 1, True, False),  # Paris.com
        (" Paris. The", 1, True, True),
        (" Paris. Lond", 2, True, False),  # Paris London, where the answer is of two words
        (" Paris. London is", 2, True, True),
        (" St. Louis", 1, True, False),
        ("\n Paris", 1, True, False),  # the line break before an answer is none of its own
        (" Paris\n", 1, True, True),
        (" the the", 1, False, False),  # the the Paris
        (" The. Paris is", 1, True, True),
    ],
)
def test_where_an_answer_ends(text, n_words, sentence, settled):
    assert is_settled(text, n_words, sentence=sentence) == settled


@given(text=TEXTS, more=TEXTS, answer=TEXTS, other=TEXTS)
def test_what_follows_a_settled_text_changes_no_comparison(text, more, answer, other):
    n_words = len(words(answer))
    whole = text + more
    if n_words and is_settled(text, n_words, sentence=False):
        assert starts_with_answer(whole, answer) == starts_with_answer(text, answer)
    if is_settled(text, 0, sentence=True):
        assert same_answer(whole, other) == same_answer(text, other)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-bert"])
def test_brief_answers_say_the_same_in_fewer_tokens(name):
    lm = load_model(name)
    cases = [
        *sources.load("embedded", limit=3, relations=["P36", "P1376"]).cases,
        *sources.load(
            "embedded", limit=2, relations=["distractor_agreement_relational_noun"]
        ).cases,
    ]
    encoded = [c for c in encode_cases(cases, lm.tokens) if isinstance(c, EncodedCase)]
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(8, n, generator=generator) for n in (lm.d_mlp, lm.d_model))
    edits = [
        LowRankEdit(updates=(LowRank(1, u[i][:, None] / 9, v[i][None] / 9),)) for i in range(8)
    ]
    questions = [Question(p, i % 8) for i, case in enumerate(encoded) for p in case.probes]
    full, pairs, brief = (
        Asker(lm).ask(questions, RowEdits(lm, edits), brief=brief) for brief in ((), PAIRS, ALL)
    )
    saved = 0
    for question, (whole, log_probs), (shown, _), (part, same) in zip(
        questions, full, pairs, brief, strict=True
    ):
        assert shown == (whole if question.probe.probe.task == "fact" else part)
        torch.testing.assert_close(same, log_probs)
        assert whole.generated.startswith(part.generated)
        saved += len(whole.generated) - len(part.generated)
        assert part.gives_expected == whole.gives_expected
        assert part.gives_rejected == whole.gives_rejected
        if question.probe.probe.task == "fact":
            assert same_answer(part.generated, whole.generated)
    assert (saved > 0) == lm.is_causal
