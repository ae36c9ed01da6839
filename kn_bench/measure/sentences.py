"""How likely whole texts are, token by token, under no edit or under several.

A causal model predicts every token from those before it. A masked one is asked for every token in
turn, a mask in its place (pseudo-log-likelihood: Salazar et al. 2020, "Masked Language Model
Scoring"). Over a sentence the sum is BLiMP's own metric (Warstadt et al. 2020, section 4: a pair
counts as right when the grammatical sentence is the likelier); over texts the mean is the logarithm
of the perplexity, which shows whether an edited model still works.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import Edit, NoEdit
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.transfer import to_host

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

LOGITS = 1 << 26
"""Logits of one batch at most: 256 MB in float32."""


class _Row(NamedTuple):
    """Token ids of a text, and where in them what is read: ``targets[i]`` at ``places[i]``."""

    text: int
    ids: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]


def token_log_probs(
    lm: LanguageModel, texts: Sequence[str], edits: Sequence[Edit] = (NoEdit(),)
) -> list[Float[np.ndarray, "edits tokens"]]:
    """Log-probability of every token of each text under each edit, in nats; special tokens apart.

    A causal model whose tokenizer sets no BOS reads its end-of-text token first, so that the first
    word counts too. Rows of one shape travel together, so nothing is padded. Equal texts are read
    once: rounding differs from row to row, and a tie is to stay one. Neurons are scaled wherever
    something is read.

    Args:
        texts: whole, as they are read.
        edits: of the kinds that are applied row by row.

    Raises:
        ValueError: for a text without tokens, a model with no token to begin from, or an edit that
            can only be applied in place.
    """
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    groups: dict[tuple[int, int], list[tuple[_Row, int]]] = defaultdict(list)
    for row in _rows_of(lm, list(distinct)):
        groups[len(row.ids), len(row.places)] += [(row, edit) for edit in range(len(edits))]
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    packed = RowEdits(lm, edits)
    for (length, read), rows in sorted(groups.items()):
        # half of the budget is for what the layers hold
        size = max(1, LOGITS // (read * lm.vocabulary + length * 8 * lm.d_mlp))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            for (row, edit), values in zip(batch, _read(lm, batch, packed), strict=True):
                found[row.text, edit] += values.tolist()
    return [np.array([found[distinct[text], edit] for edit in range(len(edits))]) for text in texts]


def sentence_log_probs(
    lm: LanguageModel, sentences: Sequence[str]
) -> Float[np.ndarray, " sentences"]:
    """Log-probability of each sentence, in nats; for a masked model the pseudo-log-likelihood.

    Raises:
        ValueError: as :func:`token_log_probs`.
    """
    return np.array([tokens[0].sum() for tokens in token_log_probs(lm, sentences)])


def perplexity(
    log_probs: Sequence[Float[np.ndarray, "edits tokens"]],
) -> Float[np.ndarray, " edits"]:
    """exp of minus the mean log-probability of all tokens of all texts, for each edit."""
    found: Float[np.ndarray, " edits"] = np.exp(-np.concatenate(list(log_probs), axis=1).mean(1))
    return found


def preferred(
    lm: LanguageModel,
    good: Sequence[str],
    bad: Sequence[str],
) -> Bool[np.ndarray, " pairs"]:
    """Whether the model finds each grammatical sentence likelier; a tie is not."""
    scores = sentence_log_probs(lm, [*good, *bad])
    better: Bool[np.ndarray, " pairs"] = scores[: len(good)] > scores[len(good) :]
    return better


def _rows_of(lm: LanguageModel, texts: Sequence[str]) -> Iterator[_Row]:
    """What is put to the model: a row a text, or for a masked model one a token."""
    special = lm.tokens.special_ids
    for number, ids in enumerate(lm.tokens.encode_many(texts)):
        asked = [i for i, token in enumerate(ids) if token not in special]
        if not asked:
            raise ValueError(f"a sentence has no tokens: {texts[number]!r}")
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
def _read(
    lm: LanguageModel, batch: Sequence[tuple[_Row, int]], edits: RowEdits
) -> Float[np.ndarray, "rows read"]:
    ids = lm.tensor([row.ids for row, _ in batch])
    places = lm.tensor([row.places for row, _ in batch])
    targets = lm.tensor([row.targets for row, _ in batch])
    edit_of = torch.tensor([edit for _, edit in batch], device=ids.device)
    where = torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, True)
    with edits.on(edit_of, where):
        logits = lm.forward(ids, places)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    read = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return to_host(read.double())[0]
