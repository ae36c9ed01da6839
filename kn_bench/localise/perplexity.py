"""Does the model still work? Log-probabilities of every token of a text, under edits.

A causal model predicts every token from those before it. A masked one is asked for every token in
turn, a mask in its place (pseudo-log-likelihood: Salazar et al. 2020, "Masked Language Model
Scoring").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import Edit
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

POSITIONS = 8192
"""Positions (rows x tokens) of a batch."""


class _Row(NamedTuple):
    """A row for the model: ``targets[i]`` is what is read at ``positions[i]``."""

    text: int
    edit: int
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]


def token_log_probs(
    lm: LanguageModel, texts: Sequence[str], edits: Sequence[Edit]
) -> list[Float[np.ndarray, "edits tokens"]]:
    """Log-probability of every token that can be asked for, of each text under each edit.

    Special tokens are not asked for, nor is a causal model's first token. Neurons are scaled
    wherever something is read.
    """
    by_shape: dict[tuple[int, int], list[_Row]] = defaultdict(list)
    for number, text in enumerate(texts):
        for edit in range(len(edits)):
            for row in _rows(lm, number, edit, lm.tokens.encode(text).ids):
                by_shape[len(row.ids), len(row.positions)].append(row)
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    packed = RowEdits(lm, edits)
    for (length, _), group in sorted(by_shape.items()):
        step = max(1, POSITIONS // length)
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            for row, values in zip(batch, _read(lm, batch, packed), strict=True):
                found[row.text, row.edit] += values
    return [
        np.array([found[text, edit] for edit in range(len(edits))]) for text in range(len(texts))
    ]


def perplexity(
    log_probs: Sequence[Float[np.ndarray, "edits tokens"]],
) -> Float[np.ndarray, " edits"]:
    """exp of minus the mean log-probability of all tokens of all texts, for each edit."""
    found: Float[np.ndarray, " edits"] = np.exp(-np.concatenate(list(log_probs), axis=1).mean(1))
    return found


def _rows(lm: LanguageModel, text: int, edit: int, ids: tuple[int, ...]) -> list[_Row]:
    asked = [i for i, token in enumerate(ids) if token not in lm.tokens.special_ids]
    if lm.is_causal:
        after = [i for i in asked if i]
        places, targets = tuple(i - 1 for i in after), tuple(ids[i] for i in after)
        return [_Row(text, edit, ids, places, targets)] if after else []
    mask = lm.tokens.mask_id
    assert mask is not None  # Tokens has looked
    return [_Row(text, edit, (*ids[:i], mask, *ids[i + 1 :]), (i,), (ids[i],)) for i in asked]


@torch.no_grad()
def _read(lm: LanguageModel, batch: Sequence[_Row], edits: RowEdits) -> list[list[float]]:
    ids = lm.tensor([row.ids for row in batch])
    positions = lm.tensor([row.positions for row in batch])
    targets = lm.tensor([row.targets for row in batch])
    edit_of = torch.tensor([row.edit for row in batch], device=ids.device)
    where = torch.zeros_like(ids, dtype=torch.bool).scatter(1, positions, True)
    with edits.on(edit_of, where):
        logits = lm.forward(ids, positions)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    values: list[list[float]] = (
        logits.log_softmax(-1).gather(2, targets[..., None])[..., 0].tolist()
    )
    return values
