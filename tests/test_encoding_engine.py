"""Words of several pieces, through the engine's asker: the sum over pieces masked in turn."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from kn_bench.cases.case import Cloze, Probe
from kn_bench.measure.answers import Asker, Question
from kn_bench.measure.encoding import EncodedProbe, encode_probe
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import UNEDITED
from tests.made_tokenizers import tokens


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    tokenizer = tokens("bert").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return LanguageModel("random-bert", BertForMaskedLM(config).double(), tokenizer)


def brute_force(bert: LanguageModel, text: str, start: int, end: int) -> float:
    """Pseudo-log-likelihood of the tokens ``start`` to ``end``, by one pass of the model each."""
    ids = torch.tensor(bert.tokens.tokenizer(text)["input_ids"])
    total = 0.0
    for at in range(start, end):
        masked = ids.clone()
        masked[at] = int(bert.tokens.mask_id or 0)
        with torch.no_grad():
            logits = bert.hf(input_ids=masked[None]).logits[0, at]
        total += float(logits.log_softmax(-1)[ids[at]])
    return total


def test_a_word_of_several_pieces_is_scored_as_its_pseudo_log_likelihood(bert):
    cloze = Cloze("The girls in", "helped themselves.")
    probe = Probe("reliability/0", "reliability", cloze, "Timbuktu", "Paris", task="pair")
    encoding = encode_probe(probe, bert.tokens)
    assert isinstance(encoding, EncodedProbe)
    assert encoding.expected.n > 1
    assert encoding.rejected.n == 1
    ((answer, _),) = Asker(bert).ask([Question(encoding, 0)], UNEDITED)
    first = encoding.answer_position
    for word, row, value in (
        ("Timbuktu", encoding.expected, answer.log_prob_expected),
        ("Paris", encoding.rejected, answer.log_prob_rejected),
    ):
        expected = brute_force(bert, cloze.fill(word), first, first + row.n)
        assert value == pytest.approx(expected, abs=1e-5)
