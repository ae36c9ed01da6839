"""Texts that a model writes for ROME to put in front of its prompts."""

import pytest
import torch

from kn_bench.model import context_templates as contexts_module
from tests.tiny_models import tiny_model


def test_contexts_have_their_lengths_and_no_special_token():
    lm = tiny_model("gpt2")
    texts = contexts_module.contexts(lm, lengths=((3, 2), (6, 3)), seed=4)
    assert [len(text.removesuffix(". ").split()) for text in texts] == [3, 3, 6, 6, 6]
    assert all(text.endswith(". ") and "[" not in text for text in texts)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contexts_are_what_an_uncached_greedy_run_and_the_cached_one_write(family):
    lm = tiny_model(family)
    (text,) = contexts_module.contexts(lm, lengths=((6, 1),), top_k=1)
    assert lm.tokens.bos_id is not None
    start = lm.tensor([[lm.tokens.bos_id]])
    cached = lm.hf.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=6,
        do_sample=False,
        use_cache=True,
        bad_words_ids=[[token] for token in sorted(lm.tokens.special_ids)],
    )
    assert text == lm.tokens.decode(cached[0].tolist()).strip() + ". "


def test_a_masked_model_writes_no_contexts():
    with pytest.raises(ValueError, match="cannot continue a text"):
        contexts_module.contexts(tiny_model("bert"))
