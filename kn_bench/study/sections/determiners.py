"""Average attribution of each determiner, and the neurons that determiners share (Figure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from kn_bench.localise.modifiers import Recurrence, number_neuron, recurrences
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.study.material import Material, best_class, stacked
from kn_bench.study.page import Figure, NothingToShow, Row, Section, Table
from kn_bench.study.plots import heat_map, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DETERMINERS = ("this", "that", "these", "those")
LEAST = 0.2
"""Neurons in fewer of every determiner's pairs are not listed."""
SHOWN = 14


def run(material: Material) -> Section:
    """The section."""
    sets = determiner_sets(material)
    found = recurrences([sets[name] for name in DETERMINERS], least=LEAST)
    number = number_neurons(material)
    return Section(
        "determiners",
        "Which neurons do determiners share?",
        "Pairs whose answer is a determiner (the gap stands before its noun) are attributed one by "
        "one. A neuron recurs in a pair where its attribution is above a fifth of the highest. In "
        "BERT-base-cased the paper finds neuron 10:2096 in 93 % and 75 % of the pairs of this and "
        "that, 9:1094 in all of these and those, and neither in the other number.",
        _findings(found, number, {name: len(group) for name, group in sets.items()}),
        tables=(_table(found, sets),),
        figures=(
            Figure(
                "attribution",
                "Mean attribution of the neurons that recur most (layer:neuron), over the pairs of "
                "each determiner, as a share of the highest; in the cells the share of pairs in "
                "which the neuron recurs.",
                lambda: _draw(material, found[:SHOWN]),
                "Figure 1",
            ),
        ),
    )


def determiner_sets(material: Material) -> dict[str, list[Neurons]]:
    """Determiner -> the coarse set of each pair that asks for it.

    Raises:
        NothingToShow: when some determiner is asked for by no pair.
    """
    found = {
        name: [one for p in best_class(material.profiles, name) for one in p.coarse_sets()]
        for name in DETERMINERS
    }
    missing = [name for name in DETERMINERS if not found[name]]
    if missing:
        raise NothingToShow(
            f"No pair asks for {' or '.join(missing)}: add a paradigm in which the determiner "
            "varies, such as determiner_noun_agreement_2."
        )
    return found


def number_neurons(material: Material) -> dict[str, Neuron]:
    """The plural and the singular neuron: those named in the settings, else the located ones."""
    given = material.settings.neurons
    if given:
        return {f"given {neuron.layer}:{neuron.unit}": neuron for neuron in given}
    sets = determiner_sets(material)
    singular, plural = [sets["this"], sets["that"]], [sets["these"], sets["those"]]
    return {
        "plural": number_neuron(plural, singular),
        "singular": number_neuron(singular, plural),
    }


def label(neuron: Neuron) -> str:
    """``9:1094``."""
    return f"{neuron.layer}:{neuron.unit}"


def _findings(
    found: list[Recurrence], number: dict[str, Neuron], counts: dict[str, int]
) -> tuple[str, ...]:
    shares = {one.neuron: one.shares for one in found}
    sentences = []
    for name, neuron in number.items():
        of = dict(zip(DETERMINERS, shares.get(neuron, (0.0,) * 4), strict=True))
        sentences.append(
            f"The {name} neuron {label(neuron)} recurs in "
            + ", ".join(f"{of[word]:.0%} of the {counts[word]} pairs of {word}" for word in of)
            + "."
        )
    return tuple(sentences)


def _table(found: list[Recurrence], sets: dict[str, list[Neurons]]) -> Table:
    rows: tuple[Row, ...] = tuple(
        (
            label(one.neuron),
            *(round(share, 4) for share in one.shares),
            min(one.shares[:2]) - max(one.shares[2:]),
            min(one.shares[2:]) - max(one.shares[:2]),
        )
        for one in found
    )
    return Table(
        "recurrence",
        "Share of each determiner's pairs in which a neuron recurs, and how much the lower share "
        "of one number exceeds the higher one of the other.",
        (
            "neuron",
            *(f"{name} (n={len(sets[name])})" for name in DETERMINERS),
            "singular alone",
            "plural alone",
        ),
        rows,
        shown=15,
    )


def _draw(material: Material, found: list[Recurrence]) -> Drawing:
    figure, (axes,) = panels(1, height=2.4)
    neurons = sorted(one.neuron for one in found)
    shares = {one.neuron: one.shares for one in found}
    means = []
    for name in DETERMINERS:
        mean = stacked(best_class(material.profiles, name)).double().mean(0)
        top = float(mean.max()) or 1.0
        means.append([float(mean[neuron]) / top for neuron in neurons])
    values = torch.tensor(means).numpy()
    heat_map(
        axes,
        values,
        rows=DETERMINERS,
        columns=[label(neuron) for neuron in neurons],
        two_sided=True,
        label="mean attribution\n(share of the highest)",
        rotate=45,
    )
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            f"{shares[neurons[column]][row]:.0%}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if abs(value) > 0.65 else "black",
        )
    axes.set_xlabel("neuron (layer:number)")
    return figure
