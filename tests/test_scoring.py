"""Rows are scored as one whole row after another is, by transformers itself."""

import pytest
import torch

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRank, LowRankEdit, NeuronEdit, NeuronScale, NoEdit
from kn_bench.model.precision import wide_dtype, widened
from kn_bench.model.rows import Following, Prompt, Row
from kn_bench.model.scoring import (
    log_prob_of,
    probability_and_gradient,
    read,
    score,
    share_of_two,
    target_log_probs,
)
from kn_bench.model.seeding import seeded
from tests.tiny_models import tiny_model

TEXTS = [(7, 9, 11, 13), (5, 6, 7, 8, 9), (40, 9, 11, 13), (5, 6, 7, 8, 10)]


def by_hand(lm, ids, position):
    return lm.hf(input_ids=lm.tensor([ids])).logits[0, position].log_softmax(-1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_scores_are_those_of_whole_rows(family, memory, monkeypatch):
    lm = tiny_model(family)
    monkeypatch.setattr(lm.batcher, "memory", memory)
    rows = [Row(ids, (1, 3), ((20, 21, 22), (23,)), first=1) for ids in TEXTS]
    scores = score(lm, rows)
    texts = target_log_probs(lm, rows)
    for ids, of_row, of_text in zip(TEXTS, scores, texts, strict=True):
        assert [len(targets) for targets in of_row] == [3, 1]
        for position, targets, tokens in zip((1, 3), of_row, ((20, 21, 22), (23,)), strict=True):
            expected = by_hand(lm, ids, position)
            for token, target in zip(tokens, targets, strict=True):
                assert target.log_prob == pytest.approx(float(expected[token]))
                assert target.rank == int((expected > expected[token]).sum())
                assert target.argmax == (target.rank == 0)
        firsts = [targets[0].log_prob for targets in of_row]
        assert of_text.tolist() == pytest.approx(firsts)


def test_each_row_runs_under_its_own_edit():
    lm = tiny_model("gpt2")
    generator = seeded(0, "edit")
    u = torch.randn(lm.d_mlp, 1, generator=generator, dtype=lm.dtype)
    v = torch.randn(1, lm.d_model, generator=generator, dtype=lm.dtype)
    scaled = NeuronEdit((NeuronScale(2, torch.tensor([3, 4]), 0.0),))
    edits = [NoEdit(), LowRankEdit(updates=(LowRank(1, u, v),)), scaled]
    row = Row(TEXTS[0], (3,), ((20,),), first=3)
    together = score(lm, [row._replace(edit=i) for i in range(3)], RowEdits(lm, edits))
    alone = [score(lm, [row], RowEdits(lm, [edit])) for edit in edits]
    values = [targets[0][0].log_prob for targets in together]
    assert values == pytest.approx([targets[0][0][0].log_prob for targets in alone])
    assert len({round(value, 6) for value in values}) == 3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_greedy_continuation_is_that_of_a_model_that_caches_nothing(family):
    lm = tiny_model(family)
    readings = read(lm, [Prompt(ids, len(ids) - 1) for ids in TEXTS], n_tokens=5)
    for ids, reading in zip(TEXTS, readings, strict=True):
        text = list(ids)
        for _ in range(5):
            text.append(int(by_hand(lm, text, -1).argmax()))
            if text[-1] in lm.end_ids:
                break
        assert list(reading.generated) == text[len(ids) :]
        torch.testing.assert_close(reading.log_probs, by_hand(lm, ids, -1))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3", "gemma", "olmo2"])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_what_follows_a_prompt_is_scored_as_in_whole_rows(family, memory, monkeypatch):
    lm = tiny_model(family)
    monkeypatch.setattr(lm.batcher, "memory", memory)
    generator = seeded(0, "edit")
    u = torch.randn(lm.d_mlp, 1, generator=generator, dtype=lm.dtype)
    v = torch.randn(1, lm.d_model, generator=generator, dtype=lm.dtype)
    scaled = NeuronEdit((NeuronScale(2, torch.tensor([3, 4]), 0.0),))
    edits = RowEdits(lm, [NoEdit(), LowRankEdit(updates=(LowRank(1, u, v),)), scaled])
    # read at the prompt and after each token, after the last alone, twice after one prompt
    following = {
        Prompt(TEXTS[0], 3, 0): [Following((20, 21), (0, 1, 2), (20, 21, 22)),
                                 Following((23,), (1,), (24,))],
        Prompt(TEXTS[1], 4, 1): [Following((20, 21, 22), (3,), (23,))],
        Prompt(TEXTS[2], 3, 2): [Following((30,), (0, 1), (30, 31))],
    }  # fmt: skip
    prompts = [*following, Prompt(TEXTS[3], 4, 2)]
    readings = read(lm, prompts, edits, n_tokens=3, following=following)
    plain = read(lm, prompts, edits, n_tokens=3)
    assert [r.generated for r in readings] == [r.generated for r in plain]
    assert not readings[3].followed
    for prompt, reading in zip(following, readings, strict=False):
        for each in following[prompt]:
            row = Row(
                prompt.ids + each.ids,
                tuple(prompt.position + at for at in each.reads),
                tuple((target,) for target in each.targets),
                first=prompt.position,
                edit=prompt.edit,
            )
            (expected,) = score(lm, [row], edits)
            scores = reading.followed[each]
            assert [s.log_prob for s in scores] == pytest.approx([s.log_prob for (s,) in expected])
            assert [(s.rank, s.argmax) for s in scores] == [(s.rank, s.argmax) for (s,) in expected]


def test_a_masked_model_gives_its_choice_at_the_mask():
    lm = tiny_model("bert")
    (reading,) = read(lm, [Prompt((1, 7, 3, 9, 2), 2)], n_tokens=5)
    assert reading.generated == (int(by_hand(lm, (1, 7, 3, 9, 2), 2).argmax()),)


def test_probability_gradient_and_share_are_those_of_autograd():
    logits = torch.randn(4, 9, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    tokens, rivals = torch.tensor([1, 2, 3, 8]), torch.tensor([0, 1, 5, 7])
    p = log_prob_of(logits, tokens).exp()
    torch.testing.assert_close(p, logits.softmax(1)[torch.arange(4), tokens])
    (expected,) = torch.autograd.grad(p.sum(), logits)
    probability, gradient = probability_and_gradient(logits.detach(), tokens)
    torch.testing.assert_close(probability, p.detach())
    torch.testing.assert_close(gradient, expected)
    both = logits.softmax(1)
    true, rival = (both[torch.arange(4), ids] for ids in (tokens, rivals))
    torch.testing.assert_close(share_of_two(logits, tokens, rivals), true / (true + rival))


def test_half_precision_is_read_in_float32_and_nothing_else_is_copied():
    assert wide_dtype(torch.float16) == wide_dtype(torch.bfloat16) == torch.float32
    assert wide_dtype(torch.float64) == torch.float64
    wide = torch.ones(3)
    assert widened(wide) is wide
    half = torch.zeros(2, 5, dtype=torch.bfloat16)
    assert log_prob_of(half, torch.zeros(2, dtype=torch.long)).dtype == torch.float32


def test_seeds_are_torch_s_own_or_of_content():
    same = torch.Generator().manual_seed(7)
    assert torch.equal(torch.randn(3, generator=seeded(7)), torch.randn(3, generator=same))
    draws = [torch.randn(1, generator=seeded(*parts)) for parts in ((0, "a"), (0, "b"), (0, "a"))]
    assert draws[0] == draws[2] != draws[1]
