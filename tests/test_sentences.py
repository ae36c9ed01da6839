"""Whole sentences: against one forward pass a token, on every family, and a model that is known."""

import numpy as np
import pytest
import torch

from kn_bench.measure.sentences import preferred, sentence_log_probs
from kn_bench.model.language_model import LanguageModel

from .tiny_models import FAMILIES, tiny_model

TEXTS = ["w5 w9 w7", "w8", "w30 w6 w6 w40 w11", "w7 w9 w5"]


def by_hand(lm, text):
    """The sum over tokens, each from a whole forward pass of its own."""
    ids = lm.tokens.tokenizer(text)["input_ids"]
    if lm.is_causal:
        ids = ids if ids[0] == lm.tokens.bos_id else [lm.tokens.bos_id, *ids]
        asked = [(ids[:i], i - 1, ids[i]) for i in range(1, len(ids))]
    else:
        hide = [[*ids[:i], lm.tokens.mask_id, *ids[i + 1 :]] for i in range(len(ids))]
        asked = [(hide[i], i, ids[i]) for i in range(1, len(ids) - 1)]
    total = 0.0
    with torch.no_grad():
        for row, place, target in asked:
            logits = lm.hf(input_ids=torch.tensor([row])).logits[0, place]
            total += logits.log_softmax(-1)[target].item()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_pass_a_token(family):
    lm = tiny_model(family)
    wanted = [by_hand(lm, text) for text in TEXTS]
    np.testing.assert_allclose(sentence_log_probs(lm, TEXTS), wanted, rtol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_size_of_batches_changes_nothing(family, monkeypatch):
    lm = tiny_model(family)
    wanted = sentence_log_probs(lm, TEXTS)
    rows: list[int] = []
    forward = LanguageModel.forward

    def counting(lm, ids, *rest):
        rows.append(len(ids))
        return forward(lm, ids, *rest)

    monkeypatch.setattr(lm.batcher, "memory", 1)
    monkeypatch.setattr(LanguageModel, "forward", counting)
    np.testing.assert_allclose(sentence_log_probs(lm, TEXTS), wanted, rtol=1e-12)
    assert set(rows) == {1}
    assert len(rows) == (len(TEXTS) if lm.is_causal else sum(len(t.split()) for t in TEXTS))


def test_a_tie_is_no_preference():
    lm = tiny_model("gpt2", torch.float32)
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(5, 40)] + ["w8 w6"]
    assert not preferred(lm, texts, texts).any()
    forth, back = preferred(lm, texts, texts[::-1]), preferred(lm, texts[::-1], texts)
    assert (forth != back).all()


def test_a_sentence_without_tokens_is_named():
    with pytest.raises(ValueError, match=r"^text '': expected at least one token$"):
        sentence_log_probs(tiny_model("bert"), ["w5", ""])
