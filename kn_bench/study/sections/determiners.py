"""Average attribution of each determiner, and the neurons that determiners share (Figure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from kn_bench.localise.recurrence import (
    ByChance,
    Recurrence,
    chance_recurrence,
    number_neuron,
    recurrences,
)
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.statistics import mean_interval
from kn_bench.results import tables
from kn_bench.study.material import Material, best_class, stacked
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import heat_map, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DETERMINERS = ("this", "that", "these", "those")
LEAST = 0.2
"""Neurons that recur in a smaller share of the pairs of every determiner are not listed."""
SHOWN = 14


def run(material: Material) -> Section:
    """Compute this section of the study."""
    sets = determiner_sets(material)
    recurring = recurrences([sets[name] for name in DETERMINERS], least=LEAST)
    number = number_neurons(material)
    settings = material.settings
    chance = {
        name: chance_recurrence(
            group, material.lm.d_mlp, draws=settings.permutations, seed=settings.seed
        )
        for name, group in sets.items()
        if len(group) > 1  # in a single pair each of its neurons recurs in all
    }
    return Section(
        "determiners",
        "Which neurons do determiners share?",
        "Pairs whose answer is a determiner (the gap stands before its noun) are attributed one by "
        "one. A neuron recurs in a pair where its attribution is above a fifth of the highest. In "
        "BERT-base-cased the paper finds neuron 10:2096 in 93 % and 75 % of the pairs of this and "
        "that, 9:1094 in all of these and those, and neither in the other number. Some neurons "
        "recur by chance: the null draws as many for each pair in each layer and keeps the "
        "highest share that any neuron reaches.",
        _findings(number, sets, chance),
        tables=(_table(material, recurring, sets, chance),),
        figures=(
            SectionFigure(
                "attribution",
                "Mean attribution of the neurons that recur most (layer:neuron), over the pairs of "
                "each determiner, as a share of the highest; in the cells the share of pairs in "
                "which the neuron recurs.",
                lambda: _draw(material, recurring[:SHOWN]),
                "Figure 1",
            ),
        ),
    )


def determiner_sets(material: Material) -> dict[str, list[Neurons]]:
    """Return, for each determiner, the coarse set of each pair whose answer it is.

    Raises:
        NothingToShow: if a determiner is the answer of no pair.
    """
    sets = {
        name: [
            coarse_set
            for p in best_class(material.profiles, name)
            for coarse_set in p.coarse_sets()
        ]
        for name in DETERMINERS
    }
    missing = [name for name in DETERMINERS if not sets[name]]
    if missing:
        raise NothingToShow(
            f"No pair asks for {' or '.join(missing)}: add a paradigm in which the determiner "
            "varies, such as determiner_noun_agreement_2."
        )
    return sets


def number_neurons(material: Material) -> dict[str, Neuron]:
    """Return the number neurons: those named in the settings, else the located ones."""
    given = material.settings.neurons
    if given:
        return {f"given {label(neuron)}": neuron for neuron in given}
    sets = determiner_sets(material)
    singular, plural = [sets["this"], sets["that"]], [sets["these"], sets["those"]]
    return {
        "plural": number_neuron(plural, singular),
        "singular": number_neuron(singular, plural),
    }


def label(neuron: Neuron) -> str:
    """Write a neuron as ``layer:unit``, such as ``9:1094``."""
    return f"{neuron.layer}:{neuron.unit}"


def sort_of(name: str, neuron: Neuron) -> str:
    """Return ``plural``, ``singular`` or ``given``: the name of a given neuron has its label."""
    return name.removesuffix(f" {label(neuron)}")


def _findings(
    number: dict[str, Neuron],
    sets: dict[str, list[Neurons]],
    chance: dict[str, ByChance],
) -> tuple[str, ...]:
    sentences = []
    for name, neuron in number.items():
        # counted anew: one that recurs too seldom to be listed may be a number neuron all the same
        of = {word: sum(neuron in pair for pair in sets[word]) / len(sets[word]) for word in sets}
        shares = (
            f"{tables.percent(share)} of the {tables.counted(len(sets[word]), 'pair')} of {word}"
            for word, share in of.items()
        )
        which = f"{sort_of(name, neuron)} neuron {label(neuron)}"
        sentences.append(f"The {which} recurs in {', '.join(shares)}.")
    if chance:
        highest = (f"{tables.percent(by.mean)} for {word}" for word, by in chance.items())
        sentences.append(f"By chance the highest share of any neuron is {', '.join(highest)}.")
    return tuple(sentences)


def _table(
    material: Material,
    recurring: list[Recurrence],
    sets: dict[str, list[Neurons]],
    chance: dict[str, ByChance],
) -> SectionTable:
    nouns = {
        name: [noun for p in best_class(material.profiles, name) for noun in p.clusters]
        for name in DETERMINERS
    }
    rows: list[TableRow] = [
        (
            label(recurrence.neuron),
            *(
                mean_interval([recurrence.neuron in pair for pair in sets[name]], nouns[name])
                for name in DETERMINERS
            ),
            min(recurrence.shares[:2]) - max(recurrence.shares[2:]),
            min(recurrence.shares[2:]) - max(recurrence.shares[:2]),
        )
        for recurrence in recurring
    ]
    by_chance = [chance.get(name) for name in DETERMINERS]
    rows.insert(0, ("chance: mean", *(by and by.mean for by in by_chance), None, None))
    rows.insert(1, ("chance: 95 %", *(by and by.high for by in by_chance), None, None))
    return SectionTable(
        "recurrence",
        "Share of each determiner's pairs in which a neuron recurs, with its 95 % interval over "
        "nouns, and how much the lower share of one number exceeds the higher one of the other; "
        "above them the highest share that any neuron reaches by chance, its mean and 95th "
        "percentile; a dash for a single pair.",
        (
            "neuron",
            *(f"{name} (n={len(sets[name])})" for name in DETERMINERS),
            "singular alone",
            "plural alone",
        ),
        tuple(rows),
        shown=17,
    )


def _draw(material: Material, recurring: list[Recurrence]) -> Drawing:
    figure, (axes,) = panels(1, height=2.4)
    neurons = sorted(recurrence.neuron for recurrence in recurring)
    shares = {recurrence.neuron: recurrence.shares for recurrence in recurring}
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
            tables.percent(shares[neurons[column]][row]),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if abs(value) > 0.65 else "black",
        )
    axes.set_xlabel("neuron (layer:number)")
    return figure
