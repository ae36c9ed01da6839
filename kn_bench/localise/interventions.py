"""What becomes of answers when neurons are scaled, or their values changed.

    suppress   neurons x 0 at the answer position        probabilities before and after,
    enhance    neurons x 2                               ranks, preferences, relative changes
    any edit   that is applied row by row

All (query, edit) pairs asked for run in batches of equal length; equal rows run once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import Edit, NeuronEdit, NeuronScale, NoEdit
from kn_bench.localise.queries import Fitted, Question, questions_of
from kn_bench.localise.selection import Neuron
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

POSITIONS = 8192
"""Positions (rows x tokens) of a batch."""


class Answers(NamedTuple):
    """How answers fared, an entry each.

    Attributes:
        log_prob: of all the answer's tokens, teacher-forced.
        rank: of its first token; 0 is the argmax.
        right: whether every token is the argmax.
    """

    log_prob: Float[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]

    @property
    def probability(self) -> Float[np.ndarray, " n"]:
        """P(answer)."""
        found: Float[np.ndarray, " n"] = np.exp(self.log_prob)
        return found


class _Row(NamedTuple):
    """One row for the model: neurons are scaled from ``first`` on, logits read at ``position``."""

    ids: tuple[int, ...]
    position: int
    first: int
    edit: int


class _Read(NamedTuple):
    log_prob: float
    rank: int


def scale(neurons: Iterable[Neuron], factor: float) -> NeuronEdit:
    """The edit that multiplies ``neurons`` by ``factor`` at the answer position."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, unit in sorted(set(neurons)):
        by_layer[layer].append(unit)
    return NeuronEdit(
        tuple(NeuronScale(layer, torch.tensor(u), factor) for layer, u in by_layer.items())
    )


def suppress(neurons: Iterable[Neuron]) -> NeuronEdit:
    """``neurons`` set to 0 at the answer position."""
    return scale(neurons, 0.0)


def answers(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    edits: Sequence[Edit] = (NoEdit(),),
    edit_of: Sequence[int] | None = None,
    *,
    positions: int = POSITIONS,
) -> Answers:
    """The answer of every query under its edit.

    Args:
        queries: one an entry of the result.
        edits: applied row by row.
        edit_of: index into ``edits`` for each query; the first for all by default.
        positions: rows x tokens of a batch.
    """
    chosen = edit_of if edit_of is not None else [0] * len(queries)
    asked = [questions_of(lm, query) for query in queries]
    rows: dict[_Row, dict[int, None]] = {}
    for query, group, edit in zip(queries, asked, chosen, strict=True):
        for question in group:
            row = _Row(question.ids, question.position, query.answer_position, edit)
            rows.setdefault(row, {})[question.token] = None
    read = _read(lm, rows, RowEdits(lm, edits), positions)
    found = [
        [read[_key(q, query.answer_position, edit), q.token] for q in group]
        for query, group, edit in zip(queries, asked, chosen, strict=True)
    ]
    return Answers(
        np.array([sum(one.log_prob for one in group) for group in found]),
        np.array([group[0].rank for group in found], dtype=int),
        np.array([all(one.rank == 0 for one in group) for group in found], dtype=bool),
    )


def crossed(
    lm: LanguageModel, queries: Sequence[Fitted], edits: Sequence[Edit]
) -> tuple[Float[np.ndarray, "edits queries"], Int[np.ndarray, "edits queries"]]:
    """Log-probability and rank of every query's answer under every edit."""
    n = len(queries)
    edit_of = [edit for edit in range(len(edits)) for _ in range(n)]
    found = answers(lm, list(queries) * len(edits), edits, edit_of)
    return found.log_prob.reshape(-1, n), found.rank.reshape(-1, n)


def _key(question: Question, first: int, edit: int) -> _Row:
    return _Row(question.ids, question.position, first, edit)


@torch.no_grad()
def _read(
    lm: LanguageModel, rows: dict[_Row, dict[int, None]], edits: RowEdits, positions: int
) -> dict[tuple[_Row, int], _Read]:
    groups: dict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[len(row.ids)].append(row)
    found: dict[tuple[_Row, int], _Read] = {}
    for length, group in sorted(groups.items()):
        step = max(1, positions // length)
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            for row, logits in zip(batch, _logits(lm, batch, edits), strict=True):
                tokens = torch.tensor(list(rows[row]), device=logits.device)
                values = logits[tokens]
                ranks = (logits > values[:, None]).sum(1).tolist()
                log_probs = (values - logits.logsumexp(0)).tolist()
                for token, p, rank in zip(rows[row], log_probs, ranks, strict=True):
                    found[row, token] = _Read(p, rank)
    return found


def _logits(
    lm: LanguageModel, batch: Sequence[_Row], edits: RowEdits
) -> Float[Tensor, "rows vocabulary"]:
    ids = lm.tensor([row.ids for row in batch])
    at = torch.tensor([row.position for row in batch], device=ids.device)
    first = torch.tensor([row.first for row in batch], device=ids.device)
    edit_of = torch.tensor([row.edit for row in batch], device=ids.device)
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    where = places >= first[:, None] if lm.is_causal else places == at[:, None]
    with edits.on(edit_of, where):
        logits = lm.forward(ids, at[:, None])[:, 0]
    return logits.float() if logits.dtype.itemsize < 4 else logits


def relative_change(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, "*n"]:
    """(p' - p) / min(p, p'): Dai et al.'s and Niu et al.'s bars; 0 where nothing changes.

    Symmetric in gain and loss: -1 where a probability is halved, 1 where it is doubled.
    """
    p, q = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == q, 0.0, (q - p) / np.minimum(p, q))


def lost_share(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, "*n"]:
    """(p - p') / p: the share of the probability that is lost; at most 1, negative for a gain."""
    p, q = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == q, 0.0, 1.0 - q / p)
