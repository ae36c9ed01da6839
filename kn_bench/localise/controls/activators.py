"""What makes a fact's neurons fire: its subject, its object, its relation, or pairs of them?

Texts hold some of the three; what is left out is "it" or nothing. The same neurons are read on the
same texts of other facts: a neuron that fires for any subject is not the fact's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kn_bench.cases.case import EditRequest
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

Parts = Literal[
    "subject", "object", "relation", "subject+object", "subject+relation", "relation+object", "all"
]
PARTS: tuple[Parts, ...] = (
    "subject",
    "object",
    "relation",
    "subject+object",
    "subject+relation",
    "relation+object",
    "all",
)
PLACEHOLDER = "it"


@dataclass(frozen=True)
class Firing:
    """How a fact's neurons fire on texts with some parts of a fact.

    Attributes:
        parts: what the texts hold.
        own: of the fact itself, in units of the activation where the prompt is answered: the
            mean over neurons of the greatest value over the text's tokens.
        other: the mean over other facts' texts.
    """

    parts: Parts
    own: float
    other: float


def texts_of(request: EditRequest) -> list[str]:
    """A text for each of :data:`PARTS`."""
    subject, thing = request.subject, request.target_true

    def said(who: str, what: str) -> str:
        filled = request.prompt.replace("{}", who), request.suffix.replace("{}", who)
        text = f"{filled[0]} {what}".rstrip() + (f" {filled[1]}" if filled[1][:1].isalnum() else "")
        return text[:1].upper() + text[1:]

    return [
        subject,
        thing,
        said(PLACEHOLDER, ""),
        f"{subject} {thing}",
        said(subject, ""),
        said(PLACEHOLDER, thing),
        said(subject, thing),
    ]


def firing(
    lm: LanguageModel,
    request: EditRequest,
    others: Sequence[EditRequest],
    neurons: Neurons,
    at_answer: Float[Tensor, "n_layers d_mlp"],
) -> list[Firing]:
    """Read ``neurons`` on the texts of ``request`` and of ``others``.

    Args:
        at_answer: mean activation where the fact's prompts are answered: unit and sign.
    """
    chosen = sorted(neurons)
    texts = [text for one in (request, *others) for text in texts_of(one)]
    units = torch.stack([at_answer[n.layer, n.unit] for n in chosen]).double().cpu().numpy()
    highest = greatest(lm, texts, chosen, np.sign(units)) / np.abs(units)
    by_parts = highest.mean(1).reshape(1 + len(others), len(PARTS))
    other = by_parts[1:].mean(0) if others else np.full(len(PARTS), np.nan)
    return [
        Firing(parts, float(own), float(its))
        for parts, own, its in zip(PARTS, by_parts[0], other, strict=True)
    ]


def greatest(
    lm: LanguageModel,
    texts: Sequence[str],
    neurons: Sequence[Neuron],
    signs: Float[np.ndarray, " neurons"],
) -> Float[np.ndarray, "texts neurons"]:
    """The greatest value of each neuron, times its sign, over the tokens of each text.

    Special tokens ([CLS], [SEP], BOS) are not read: neurons fire there for any text.
    """
    layers = sorted({neuron.layer for neuron in neurons})
    groups: dict[int, list[int]] = defaultdict(list)
    encoded = [lm.tokens.encode(text).ids for text in texts]
    for index, ids in enumerate(encoded):
        groups[len(ids)].append(index)
    found = np.zeros((len(texts), len(neurons)))
    for group in groups.values():
        keys = lm.keys(lm.tensor([encoded[i] for i in group]), layers)
        special = np.array([[t in lm.tokens.special_ids for t in encoded[i]] for i in group])
        for column, neuron in enumerate(neurons):
            values = keys[neuron.layer][..., neuron.unit].double().cpu().numpy() * signs[column]
            found[group, column] = np.where(special, -np.inf, values).max(1)
    return found
