"""Control 8: subject, object, relation or pairs of them: what makes the neurons fire?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_bench.localise.controls.activators import PARTS, Firing, firing
from kn_bench.localise.groups import Profile
from kn_bench.measure.statistics import Interval, mean_interval, paired
from kn_bench.results import tables
from kn_bench.study.material import Material
from kn_bench.study.page import Figure, NothingToShow, Row, Section, Table
from kn_bench.study.plots import BLUE, GREY, HATCHES, bars, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

OTHERS = 5


@dataclass(frozen=True)
class Fired:
    """A fact's neurons on texts with parts of it, and of other facts."""

    profile: Profile
    by_parts: tuple[Firing, ...]


def run(material: Material) -> Section:
    """The section.

    Raises:
        NothingToShow: without facts.
    """
    facts = material.of_task("fact")
    if not facts:
        raise NothingToShow("There are no facts among the cases.")
    found = [_fired(material, profile) for profile in facts]
    return Section(
        "activators",
        "Control 8: what makes a knowledge neuron fire?",
        "The located neurons of each fact are read on texts that hold its subject, its object, its "
        "relation or pairs of them; what is left out is nothing, or the word it. Beside them stand "
        "the same texts of other facts of the relation. The unit is the activation where the "
        "fact's own prompts are answered; of each text the greatest value over its tokens counts.",
        _findings(found),
        tables=(_table(found),),
        figures=(
            Figure(
                "firing",
                "Activation of the located neurons on texts with parts of their fact (blue), and "
                "of other facts of the relation (grey, hatched), with 95 % intervals over facts.",
                lambda: _draw(found),
            ),
        ),
    )


def _fired(material: Material, profile: Profile) -> Fired:
    request = profile.group.requests[0]
    others = [
        case.request
        for case in material.cases
        if case.relation == profile.group.relation
        and case.request.target_true != request.target_true
    ][:OTHERS]
    at_answer = material.mean_activation(profile)
    return Fired(
        profile,
        tuple(firing(material.lm, request, others, material.neurons(profile), at_answer)),
    )


def _values(found: Sequence[Fired], name: str) -> list[Interval]:
    names = [one.profile.group.id for one in found]
    return [
        mean_interval([getattr(one.by_parts[i], name) for one in found], names, bounds=None)
        for i in range(len(PARTS))
    ]


def _table(found: Sequence[Fired]) -> Table:
    names = [one.profile.group.id for one in found]
    own, other = _values(found, "own"), _values(found, "other")
    rows: list[Row] = []
    for i, parts in enumerate(PARTS):
        test = paired(
            [one.by_parts[i].other for one in found], [one.by_parts[i].own for one in found], names
        )
        rows.append((parts, own[i], other[i], test.difference.mean, test.p))
    return Table(
        "activators",
        "Activation on texts with parts of the fact, and with the same parts of other facts of the "
        "relation, in units of the activation at the answer; their difference and its p (paired "
        "permutation test over facts).",
        ("text holds", "own fact", "other facts", "difference", "p"),
        tuple(rows),
        digits=3,
    )


def _findings(found: Sequence[Fired]) -> tuple[str, ...]:
    own, other = _values(found, "own"), _values(found, "other")
    parts = [
        f"{name} {tables.number(a.mean)} (other facts {tables.number(b.mean)})"
        for name, a, b in zip(PARTS, own, other, strict=True)
    ]
    return (f"Activation on {', '.join(parts)}; n={own[0].n} facts.",)


def _draw(found: Sequence[Fired]) -> Drawing:
    figure, (axes,) = panels(1, width=7.5, height=3.0)
    series = (("own", BLUE, "", "own fact"), ("other", GREY, HATCHES[1], "other facts"))
    for shift, (name, colour, hatch, label) in zip((-0.2, 0.2), series, strict=True):
        places = [i + shift for i in range(len(PARTS))]
        bars(axes, places, _values(found, name), colour=colour, hatch=hatch, width=0.4, label=label)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(PARTS)), [name.replace("+", "\n+ ") for name in PARTS])
    axes.set_ylabel("activation / that at the answer")
    axes.legend()
    return figure
