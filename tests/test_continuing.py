"""Prompts of unequal length are continued together as each is alone."""

import pytest
import torch

import kn_bench as kn
from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRank, LowRankEdit, NeuronEdit, NeuronScale, NoEdit
from kn_bench.model.continuing import may_be_padded
from kn_bench.model.rows import Prompt
from kn_bench.model.scoring import read
from kn_bench.model.seeding import seeded
from tests.tiny_models import FAMILIES, tiny_model

CAUSAL = [family for family in FAMILIES if tiny_model(family).is_causal]
LENGTHS = (3, 6, 4, 6, 5, 3)
N_TOKENS = 5


def prompts(seed):
    generator = seeded(seed, "prompts")
    texts = [tuple(torch.randint(5, 60, (n,), generator=generator).tolist()) for n in LENGTHS]
    return [Prompt(ids, len(ids) - 1, edit=i % 3) for i, ids in enumerate(texts)]


def edits(lm):
    generator = seeded(1, "edit")
    u, v = (torch.randn(n, 1, generator=generator).double() for n in (lm.d_mlp, lm.d_model))
    scaled = NeuronEdit((NeuronScale(0, torch.tensor([3, 4]), 0.0),))
    return [NoEdit(), LowRankEdit(updates=(LowRank(1, u, v.T),)), scaled]


def settled(prompt, generated):
    """Every prompt has a number of tokens of its own."""
    return len(generated) >= 1 + prompt.ids[0] % N_TOKENS


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("until", [None, settled])
def test_together_as_alone(family, until):
    lm = tiny_model(family)
    rows = RowEdits(lm, edits(lm))
    asked = prompts(0)
    together = read(lm, asked, rows, n_tokens=N_TOKENS, settled=until)
    for prompt, reading in zip(asked, together, strict=True):
        (alone,) = read(lm, [prompt], rows, n_tokens=N_TOKENS, settled=until)
        assert reading.generated == alone.generated
        torch.testing.assert_close(reading.log_probs, alone.log_probs)
        if until is not None:
            ended = reading.generated[-1] in lm.end_ids
            assert ended or len(reading.generated) == 1 + prompt.ids[0] % N_TOKENS


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_of_all_lengths_share_the_passes_of_what_follows(family, monkeypatch):
    lm = tiny_model(family)
    assert may_be_padded(lm)
    widths = []
    hidden = lm.hidden

    def counted(ids, *args, **options):
        widths.append(ids.shape[1])
        return hidden(ids, *args, **options)

    monkeypatch.setattr(lm, "hidden", counted)
    read(lm, prompts(0), n_tokens=N_TOKENS)
    assert widths.count(1) == N_TOKENS - 1
    assert sorted(width for width in widths if width > 1) == sorted(set(LENGTHS))


def test_a_continuation_ends_with_the_models_positions():
    lm = tiny_model("gpt2")
    room = lm.tokens.max_length
    long, short = Prompt((7,) * (room - 1), room - 2), Prompt((7, 8, 9), 2)
    first, second = read(lm, [long, short], n_tokens=N_TOKENS)
    assert (len(first.generated), len(second.generated)) == (2, N_TOKENS)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("until", [None, settled])
def test_a_continuation_ends_where_the_text_ends(family, until, monkeypatch):
    lm = tiny_model(family)
    asked = prompts(0)
    monkeypatch.setattr(lm.tokens, "eos_id", None)
    whole = read(lm, asked, n_tokens=N_TOKENS, settled=until)
    for end in {reading.generated[-1] for reading in whole}:
        monkeypatch.setattr(lm.tokens, "eos_id", end)
        for reading, longer in zip(
            read(lm, asked, n_tokens=N_TOKENS, settled=until), whole, strict=True
        ):
            ids = longer.generated
            upto = ids.index(end) + 1 if end in ids else len(ids)
            assert reading.generated == ids[:upto]


@pytest.mark.parametrize(
    ("stated", "special", "ends"),
    [
        (None, (), {1}),
        (7, (7,), {1, 7}),
        ([7, 8], (7, 8), {1, 7, 8}),
        (7, (), {1}),
        ([], (7,), {1}),
    ],
)
def test_a_text_ends_where_its_tokenizer_and_its_model_say(monkeypatch, stated, special, ends):
    """A special token that the model names counts; an ordinary one stands there by default."""
    lm = tiny_model("llama")
    monkeypatch.setattr(lm.tokens, "eos_id", 1)
    monkeypatch.setattr(lm.tokens, "special_ids", frozenset({1, *special}))
    monkeypatch.setattr(lm.hf.generation_config, "eos_token_id", stated)
    assert lm.end_ids == ends
    monkeypatch.setattr(lm.tokens, "eos_id", None)
    assert lm.end_ids == ends - {1}


def test_an_answer_that_the_model_ends_is_the_answer():
    """LocFT-BF trains the end of the text, after which a model that is fed it begins another."""
    lm = kn.load_model("tiny-gpt2")
    cases = kn.load_cases("embedded", relation=["P37"], limit=2)
    measured = (m for r in kn.evaluate(lm, "locft-bf", cases).results for m in r.measurements)
    asked = [m for m in measured if m.criterion == "reliability"]
    assert all(m.after.gives_expected for m in asked)
    assert any(m.after.generated.strip() == m.expected for m in asked)
