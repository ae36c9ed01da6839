"""Score answers while neurons are scaled or their values changed.

    suppress   neurons x 0 at the answer position        probabilities before and after,
    enhance    neurons x 2                               ranks, preferences, relative changes
    any edit   that is applied row by row

Equal rows run once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import Edit, NeuronEdit, NeuronScale, NoEdit
from kn_bench.localise.queries import Fitted, TokenQuestion, questions_of
from kn_bench.localise.selection import Neuron
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import Row
from kn_bench.model.scoring import TargetScore, score


class Answers(NamedTuple):
    """Scores of answers, one entry each: a vector of queries, or a row of them for each edit.

    Attributes:
        log_prob: of all the answer's tokens, teacher-forced.
        rank: of its first token; 0 is the argmax.
        right: whether every token is the argmax.
    """

    log_prob: Float[np.ndarray, "*n"]
    rank: Int[np.ndarray, "*n"]
    right: Bool[np.ndarray, "*n"]

    @property
    def probability(self) -> Float[np.ndarray, "*n"]:
        """P(answer)."""
        result: Float[np.ndarray, "*n"] = np.exp(self.log_prob)
        return result


def scale(neurons: Iterable[Neuron], factor: float) -> NeuronEdit:
    """Return the edit that multiplies ``neurons`` by ``factor`` at the answer position."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, unit in sorted(set(neurons)):
        by_layer[layer].append(unit)
    return NeuronEdit(
        tuple(NeuronScale(layer, torch.tensor(u), factor) for layer, u in by_layer.items())
    )


def suppress(neurons: Iterable[Neuron]) -> NeuronEdit:
    """Return the edit that sets ``neurons`` to 0 at the answer position."""
    return scale(neurons, 0.0)


def answers(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    edits: Sequence[Edit] = (NoEdit(),),
    edit_of: Sequence[int] | None = None,
) -> Answers:
    """Score the answer of every query under its edit.

    Args:
        queries: one for each entry of the result.
        edits: applied row by row.
        edit_of: index into ``edits`` for each query; the first for all by default.
    """
    chosen = edit_of if edit_of is not None else [0] * len(queries)
    asked = [questions_of(lm, query) for query in queries]
    # questions that differ by their token alone share a row: 24 modifiers before one noun
    tokens: dict[Row, dict[int, None]] = {}
    for query, group, edit in zip(queries, asked, chosen, strict=True):
        for question in group:
            tokens.setdefault(_untargeted(question, query, edit), {})[question.token] = None
    rows = [row._replace(targets=(tuple(targets),)) for row, targets in tokens.items()]
    scores: dict[tuple[Row, int], TargetScore] = {}
    for row, (at_position,) in zip(tokens, score(lm, rows, RowEdits(lm, edits)), strict=True):
        scores.update(
            ((row, token), scored) for token, scored in zip(tokens[row], at_position, strict=True)
        )
    by_query = [
        [scores[_untargeted(question, query, edit), question.token] for question in group]
        for query, group, edit in zip(queries, asked, chosen, strict=True)
    ]
    return Answers(
        np.array([sum(token.log_prob for token in group) for group in by_query]),
        np.array([group[0].rank for group in by_query], dtype=int),
        np.array([all(token.rank == 0 for token in group) for group in by_query], dtype=bool),
    )


def _untargeted(question: TokenQuestion, query: Fitted, edit: int) -> Row:
    """Return the row that a question is read from, whichever token it asks for."""
    return Row(question.ids, (question.position,), (), query.answer_position, edit)


def crossed(lm: LanguageModel, queries: Sequence[Fitted], edits: Sequence[Edit]) -> Answers:
    """Score every query's answer under every edit; the arrays are ``[edits, queries]``."""
    n = len(queries)
    edit_of = [edit for edit in range(len(edits)) for _ in range(n)]
    flat = answers(lm, list(queries) * len(edits), edits, edit_of)
    return Answers(*(values.reshape(-1, n) for values in flat))


def relative_change(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, "*n"]:
    """Return (p' - p) / min(p, p'), the bars of Dai et al. and Niu et al.; 0 without a change.

    Symmetric in gain and loss: -1 where a probability is halved, 1 where it is doubled.
    """
    p, q = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == q, 0.0, (q - p) / np.minimum(p, q))


def lost_share(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, "*n"]:
    """Return (p - p') / p, the lost share of the probability: at most 1, negative for a gain."""
    p, q = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == q, 0.0, 1.0 - q / p)
