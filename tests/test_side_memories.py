"""GRACE and WISE: what both side memories do to a model, and what they are not defined for."""

from __future__ import annotations

import pytest
import torch

from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import MemoryEdit, NotApplicable
from kn_bench.edits.grace import Grace, GraceSettings
from kn_bench.edits.wise import Wise, WiseSettings
from kn_bench.model.corpus import NamedCorpus, Texts
from tests.test_rome import REQUESTS
from tests.tiny_models import tiny_model

METHODS = {
    "GRACE": (Grace, GraceSettings(layer=1, n_iter=30, edit_lr=1.0, eps=1e-4)),
    "WISE": (
        Wise,
        WiseSettings(layer=1, n_iter=60, edit_lr=1.0, alpha=0.05, beta=2.0, gamma=1.0,
                     save_freq=2, merge_freq=4),
    ),
}  # fmt: skip
TEXTS = tuple(" ".join(f"w{5 + (i * j) % 59}" for j in range(3, 12)) for i in range(1, 40))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_the_answer_is_learnt_and_other_prompts_are_left_alone(name, family):
    lm = tiny_model(family)
    lm.corpus = NamedCorpus("made up", Texts(TEXTS))  # WISE compares with other texts
    before = lm.parameter_hash()
    kind, settings = METHODS[name]
    method = kind(lm, settings)
    (edit,) = method.edit(REQUESTS[:1])
    assert isinstance(edit, MemoryEdit)
    assert edit.whole
    (row,), (other,) = (method._rows([request]) for request in (REQUESTS[0], REQUESTS[3]))

    def log_p(text):
        with torch.no_grad():
            logits = lm.forward(lm.tensor([text.ids]), torch.tensor([text.reads]))
        return logits[0].log_softmax(1).gather(1, torch.tensor(text.targets)[:, None]).mean()

    plain, unrelated = log_p(row), log_p(other)
    with in_place(lm, edit):
        assert log_p(row) > plain + 1
        torch.testing.assert_close(log_p(other), unrelated)
    torch.testing.assert_close(log_p(row), plain)
    assert lm.parameter_hash() == before


@pytest.mark.parametrize("name", METHODS)
def test_masked_models_are_refused(name):
    kind, settings = METHODS[name]
    with pytest.raises(NotApplicable, match=f"{name} is defined here for causal models"):
        kind(tiny_model("bert"), settings).edit(REQUESTS)
