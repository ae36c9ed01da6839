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

import numpy as np
from jaxtyping import Bool, Float

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import Edit, NoEdit
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import Row
from kn_bench.model.scoring import target_log_probs


def token_log_probs(
    lm: LanguageModel, texts: Sequence[str], edits: Sequence[Edit] = (NoEdit(),)
) -> list[Float[np.ndarray, "edits tokens"]]:
    """Return the log-probability of every token of each text under each edit, in nats.

    Special tokens are left out. A causal model whose tokenizer has no BOS reads its end-of-text
    token first, so that the first word counts too. Equal texts are read once: rounding differs from
    row to row, and ties must stay ties. Neurons are scaled at all positions that are read.

    Args:
        texts: whole texts.
        edits: edits of the kinds that are applied row by row.

    Raises:
        ValueError: for a text without tokens, a model with no token to begin from, or an edit that
            can only be applied in place.
    """
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    owners: list[tuple[int, int]] = []
    rows: list[Row] = []
    for number, row in _rows_of(lm, list(distinct)):
        for edit in range(len(edits)):
            owners.append((number, edit))
            rows.append(row._replace(edit=edit))
    by_text: dict[tuple[int, int], list[float]] = defaultdict(list)
    # a masked model's rows of one text, a token each, come in the order of the tokens
    for owner, values in zip(owners, target_log_probs(lm, rows, RowEdits(lm, edits)), strict=True):
        by_text[owner] += values.tolist()
    return [
        np.array([by_text[distinct[text], edit] for edit in range(len(edits))]) for text in texts
    ]


def sentence_log_probs(
    lm: LanguageModel, sentences: Sequence[str]
) -> Float[np.ndarray, " sentences"]:
    """Return each sentence's log-probability in nats (masked model: pseudo-log-likelihood).

    Raises:
        ValueError: as in :func:`token_log_probs`.
    """
    return np.array([tokens[0].sum() for tokens in token_log_probs(lm, sentences)])


def perplexity(
    log_probs: Sequence[Float[np.ndarray, "edits tokens"]],
) -> Float[np.ndarray, " edits"]:
    """Return exp of minus the mean log-probability of all tokens of all texts, for each edit."""
    result: Float[np.ndarray, " edits"] = np.exp(-np.concatenate(list(log_probs), axis=1).mean(1))
    return result


def preferred(
    lm: LanguageModel,
    good: Sequence[str],
    bad: Sequence[str],
) -> Bool[np.ndarray, " pairs"]:
    """Return whether each grammatical sentence is the likelier one; a tie does not count."""
    scores = sentence_log_probs(lm, [*good, *bad])
    better: Bool[np.ndarray, " pairs"] = scores[: len(good)] > scores[len(good) :]
    return better


def _rows_of(lm: LanguageModel, texts: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the rows to score: one per text, or for a masked model one per token."""
    special = lm.tokens.special_ids
    for number, ids in enumerate(lm.tokens.encode_many(texts)):
        asked = [i for i, token in enumerate(ids) if token not in special]
        if not asked:
            raise ValueError(f"text {texts[number]!r}: expected at least one token")
        if not lm.is_causal:
            assert lm.tokens.mask_id is not None  # Tokens has looked
            for i in asked:
                masked = (*ids[:i], lm.tokens.mask_id, *ids[i + 1 :])
                yield number, Row(masked, (i,), ((ids[i],),), first=i)
            continue
        if asked[0] == 0:
            ids, asked = (_beginning(lm), *ids), [i + 1 for i in asked]
        positions = tuple(i - 1 for i in asked)
        yield number, Row(ids, positions, tuple((ids[i],) for i in asked), first=positions[0])


def _beginning(lm: LanguageModel) -> int:
    token = lm.tokens.between_id
    if token is None:
        raise ValueError(
            f"the tokenizer of {lm.name}: expected a BOS or an EOS token, without which a "
            "sentence's first word has no probability"
        )
    return token
