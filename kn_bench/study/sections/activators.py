"""Control 8: what makes a fact's neurons fire: its subject, object, relation, or pairs of them?

Each text contains some of the three; what is left out becomes "it" or nothing. The same neurons are
read on the corresponding texts of other facts: a neuron that fires for any subject does not belong
to the fact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import Cloze, EditRequest
from kn_bench.localise.groups import Profile
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.statistics import Interval, mean_interval, paired
from kn_bench.model.language_model import LanguageModel
from kn_bench.results import tables
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import BLUE, GREY, HATCHES, bars, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


OTHERS = 5
"""Other facts of the relation, with another object, whose texts are read at most."""


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
        parts: the parts of a fact that the texts contain.
        own: activation on the fact's own texts, in units of the activation where the prompt is
            answered: the mean over neurons of the greatest value over the text's tokens.
        other: the same, averaged over the texts of other facts.
        unread: number of these texts that hold special tokens alone; they count nowhere, and a
            mean of no text is NaN.
    """

    parts: Parts
    own: float
    other: float
    unread: int


def texts_of(request: EditRequest) -> list[str]:
    """Return one text for each of :data:`PARTS`."""
    subject, thing = request.subject, request.target_true

    def said(who: str, what: str) -> str:
        prompt, suffix = (part.replace("{}", who) for part in (request.prompt, request.suffix))
        cloze = Cloze.parse(prompt, suffix)
        text = f"{cloze.left}{cloze.gap_space}{what}".rstrip()
        if cloze.right.lstrip()[:1].isalnum():
            text += cloze.after_space + cloze.right
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
        at_answer: mean activation where the fact's prompts are answered; gives unit and sign.
    """
    chosen = sorted(neurons)
    texts = [text for asked in (request, *others) for text in texts_of(asked)]
    units = torch.stack([at_answer[n.layer, n.unit] for n in chosen]).double().cpu().numpy()
    highest = greatest(lm, texts, chosen, np.sign(units)) / np.abs(units)
    by_parts = highest.mean(1).reshape(1 + len(others), len(PARTS))
    unread = np.isnan(by_parts)
    n = (~unread[1:]).sum(0)
    other = np.where(n, np.nansum(by_parts[1:], 0) / np.maximum(n, 1), np.nan)
    return [
        Firing(parts, float(by_parts[0, i]), float(other[i]), int(unread[:, i].sum()))
        for i, parts in enumerate(PARTS)
    ]


def greatest(
    lm: LanguageModel,
    texts: Sequence[str],
    neurons: Sequence[Neuron],
    signs: Float[np.ndarray, " neurons"],
) -> Float[np.ndarray, "texts neurons"]:
    """Return the greatest value of each neuron, times its sign, over the tokens of each text.

    Special tokens ([CLS], [SEP], BOS) are not read: neurons fire there for any text. A text of
    nothing else has NaN.
    """
    layers = sorted({neuron.layer for neuron in neurons})
    groups: dict[int, list[int]] = defaultdict(list)
    encoded = [lm.tokens.encode(text).ids for text in texts]
    for index, ids in enumerate(encoded):
        if not lm.tokens.special_ids.issuperset(ids):
            groups[len(ids)].append(index)
    highest = np.full((len(texts), len(neurons)), np.nan)
    for group in groups.values():
        keys = lm.neurons(lm.tensor([encoded[i] for i in group]), layers)
        special = np.array([[t in lm.tokens.special_ids for t in encoded[i]] for i in group])
        for column, neuron in enumerate(neurons):
            values = keys[neuron.layer][..., neuron.unit].double().cpu().numpy() * signs[column]
            highest[group, column] = np.where(special, -np.inf, values).max(1)
    return highest


@dataclass(frozen=True)
class FactFirings:
    """How a fact's neurons fire on texts with parts of it, and with parts of ``n_others`` facts."""

    profile: Profile
    n_others: int
    by_parts: tuple[Firing, ...]


def run(material: Material) -> Section:
    """Compute this section of the study.

    Raises:
        NothingToShow: if there are no facts.
    """
    facts = material.of_task("fact")
    if not facts:
        raise NothingToShow("There are no facts among the cases.")
    readings = [_fired(material, profile) for profile in facts]
    return Section(
        "activators",
        "Control 8: what makes a knowledge neuron fire?",
        "The located neurons of each fact are read on texts that hold its subject, its object, its "
        "relation or pairs of them; what is left out is nothing, or the word it. Beside them stand "
        f"the same texts of up to {OTHERS} other facts of the relation that have another object. "
        "The unit is the activation where the fact's own prompts are answered; of each text the "
        "greatest value over its tokens counts.",
        _findings(readings),
        tables=(_table(readings),),
        figures=(
            SectionFigure(
                "firing",
                "Activation of the located neurons on texts with parts of their fact (blue), and "
                f"of up to {OTHERS} other facts of the relation with another object (grey, "
                "hatched), with 95 % intervals over facts.",
                lambda: _draw(readings),
            ),
        ),
        notes=_notes(readings),
    )


def _fired(material: Material, profile: Profile) -> FactFirings:
    request = profile.group.requests[0]
    others = [
        case.request
        for case in material.cases
        if case.relation == profile.group.relation
        and case.request.target_true != request.target_true
    ][:OTHERS]
    at_answer = material.mean_activation(profile)
    return FactFirings(
        profile,
        len(others),
        tuple(firing(material.lm, request, others, material.neurons(profile), at_answer)),
    )


def _notes(readings: Sequence[FactFirings]) -> tuple[str, ...]:
    unread = sum(firing.unread for reading in readings for firing in reading.by_parts)
    alone = sum(not reading.n_others for reading in readings)
    counted = (
        ("Texts of special tokens alone, such as [UNK], which count nowhere", unread),
        ("Facts compared with none, as no other of their relation has another object", alone),
    )
    return tuple(f"{what}: {n}." for what, n in counted if n)


def _values(readings: Sequence[FactFirings], name: str) -> list[Interval]:
    names = [reading.profile.group.id for reading in readings]
    return [
        mean_interval(
            [getattr(reading.by_parts[i], name) for reading in readings], names, bounds=None
        )
        for i in range(len(PARTS))
    ]


def _table(readings: Sequence[FactFirings]) -> SectionTable:
    names = [reading.profile.group.id for reading in readings]
    own, other = _values(readings, "own"), _values(readings, "other")
    rows: list[TableRow] = []
    for i, parts in enumerate(PARTS):
        test = paired(
            [reading.by_parts[i].other for reading in readings],
            [reading.by_parts[i].own for reading in readings],
            names,
        )
        p = test.p if test.difference.n else None
        rows.append((parts, own[i], other[i], test.difference.mean, p))
    return SectionTable(
        "activators",
        "Activation on texts with parts of the fact, and with the same parts of "
        f"up to {OTHERS} other facts of the relation with another object, in units of the "
        "activation at the answer; their difference and its p (paired permutation test over "
        "facts).",
        ("text holds", "own fact", "other facts", "difference", "p"),
        tuple(rows),
        digits=3,
    )


def _findings(readings: Sequence[FactFirings]) -> tuple[str, ...]:
    own, other = _values(readings, "own"), _values(readings, "other")
    parts = [
        f"{name} {tables.number(a.mean)} (other facts {tables.number(b.mean)})"
        for name, a, b in zip(PARTS, own, other, strict=True)
    ]
    return (f"Activation on {', '.join(parts)}; n={tables.counted(len(readings), 'fact')}.",)


def _draw(readings: Sequence[FactFirings]) -> Drawing:
    figure, (axes,) = panels(1, width=7.5, height=3.0)
    series = (("own", BLUE, "", "own fact"), ("other", GREY, HATCHES[1], "other facts"))
    for shift, (name, colour, hatch, label) in zip((-0.2, 0.2), series, strict=True):
        places = [i + shift for i in range(len(PARTS))]
        bars(
            axes,
            places,
            _values(readings, name),
            colour=colour,
            hatch=hatch,
            width=0.4,
            label=label,
        )
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(PARTS)), [name.replace("+", "\n+ ") for name in PARTS])
    axes.set_ylabel("activation / that at the answer")
    axes.legend()
    return figure
