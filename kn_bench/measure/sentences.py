"""How likely whole sentences are: BLiMP's own metric, a check of the model before any edit.

Warstadt et al. 2020, section 4: a pair counts as right when the grammatical sentence is the
likelier. A masked model's sentence has its pseudo-log-likelihood (Salazar et al. 2020, "Masked
Language Model Scoring"): every token is asked for in turn, a mask in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

LOGITS = 1 << 26
"""Logits of one batch at most: 256 MB in float32."""


class _Row(NamedTuple):
    """Token ids of a sentence, and where in them what is read: ``targets[i]`` at ``places[i]``."""

    sentence: int
    ids: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]


def sentence_log_probs(
    lm: LanguageModel, sentences: Sequence[str]
) -> Float[np.ndarray, " sentences"]:
    """Log-probability of each sentence, in nats; for a masked model the pseudo-log-likelihood.

    A causal model whose tokenizer sets no BOS reads its end-of-text token first, so that the first
    word counts too. Rows of one shape travel together, so nothing is padded. Equal sentences are
    read once: rounding differs from row to row, and a tie is to stay one.

    Args:
        sentences: whole, as they are read.

    Raises:
        ValueError: for a sentence without tokens, or a model with no token to begin from.
    """
    groups: dict[tuple[int, int], list[_Row]] = defaultdict(list)
    distinct = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
    for row in rows_of(lm, list(distinct)):
        groups[len(row.ids), len(row.places)].append(row)
    found = np.zeros(len(distinct))
    for (length, read), rows in sorted(groups.items()):
        # half of the budget is for what the layers hold
        size = max(1, LOGITS // (read * lm.vocabulary + length * 8 * lm.d_mlp))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            np.add.at(found, [row.sentence for row in batch], _scores(lm, batch).numpy())
    return found[[distinct[sentence] for sentence in sentences]]


def rows_of(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[_Row]:
    """What is put to the model: a row a sentence, or for a masked model one a token."""
    special = lm.tokens.special_ids
    for number, ids in enumerate(lm.tokens.encode_many(sentences)):
        asked = [i for i, token in enumerate(ids) if token not in special]
        if not asked:
            raise ValueError(f"a sentence has no tokens: {sentences[number]!r}")
        if not lm.is_causal:
            assert lm.tokens.mask_id is not None  # Tokens has looked
            for i in asked:
                masked = (*ids[:i], lm.tokens.mask_id, *ids[i + 1 :])
                yield _Row(number, masked, (i,), (ids[i],))
            continue
        if asked[0] == 0:
            ids, asked = (_beginning(lm), *ids), [i + 1 for i in asked]
        yield _Row(number, ids, tuple(i - 1 for i in asked), tuple(ids[i] for i in asked))


def _beginning(lm: LanguageModel) -> int:
    found = lm.tokens.between_id
    if found is None:
        raise ValueError(
            f"the tokenizer of {lm.name} has neither a BOS nor an EOS token, so a sentence's first "
            "word has no probability"
        )
    return found


@torch.no_grad()
def _scores(lm: LanguageModel, batch: Sequence[_Row]) -> Float[Tensor, " rows"]:
    logits = lm.forward(
        lm.tensor([row.ids for row in batch]), lm.tensor([row.places for row in batch])
    )
    targets = lm.tensor([row.targets for row in batch])
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    read = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return read.double().sum(1).cpu()


def preferred(
    lm: LanguageModel,
    good: Sequence[str],
    bad: Sequence[str],
) -> Bool[np.ndarray, " pairs"]:
    """Whether the model finds each grammatical sentence likelier; a tie is not."""
    scores = sentence_log_probs(lm, [*good, *bad])
    better: Bool[np.ndarray, " pairs"] = scores[: len(good)] > scores[len(good) :]
    return better
