"""Measures of localisation of facts and syntax side by side (Figures 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kn_bench.localise.interventions import answers
from kn_bench.localise.recurrence import chance_recurrence
from kn_bench.localise.selection import Neurons
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.results import tables
from kn_bench.study.material import METHODS, Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import MARKS, TASK
from kn_bench.study.sections.determiners import label
from kn_bench.study.sections.levels.group_levels import (
    MEASURES,
    GroupLevels,
    averaged,
    levels_of,
    measure,
    null_of,
    value,
)
from kn_bench.study.sections.levels.level_figures import (
    draw_layers,
    draw_levels,
    draw_methods,
    layer_shares,
)


def run(material: Material) -> Section:
    """Compute this section of the study."""
    measured = measure(material)
    compared = [
        levels for p in material.sample for levels in levels_of(material, p, METHODS, resamples=0)
    ]
    return Section(
        "levels",
        "Is syntax as localised as facts?",
        "Knowledge neurons are located over the patterns of each fact, and over the pairs of each "
        "class. With the published cap the threshold moves until 2 to 5 neurons are left, which "
        "by itself excludes that knowledge is distributed: so the set without the cap stands "
        "beside it. R1² is the likeness of the prompts' attributions; its null permutes neurons "
        "within layers, as those of |KN| and the participation ratio do, and unrelated "
        "non-negative profiles come to 2/pi = 0.64. The null of tau mixes prompts of other "
        "relations, that of the share of attribution takes random neurons of the same layers.",
        _findings(measured),
        tables=(
            _by_relation(material, measured),
            _by_group(measured),
            _by_neuron(material, measured),
            _by_layer(measured),
            _by_method(material, compared),
            _by_prompt(material),
            _completeness(material),
        ),
        figures=(
            SectionFigure(
                "levels",
                f"Localisation of facts ({MARKS['fact']}) and syntax ({MARKS['pair']}) by relation "
                "and paradigm: mean over facts or classes with its 95 % interval; the black bar is "
                "the mean null.",
                lambda: draw_levels(material, measured),
                "Figure 2",
            ),
            SectionFigure(
                "methods",
                f"The same measures by four attributions, on {_sampled(material)}.",
                lambda: draw_methods(compared),
                "Figure 3",
            ),
            SectionFigure(
                "layers",
                "Share of the located neurons in each layer, mean over groups with its 95 % "
                "interval, with the cap and without; the black line is the share of neurons drawn "
                "anywhere.",
                lambda: draw_layers(material, measured),
                "Figure 4",
            ),
        ),
        notes=_unmeasured(material),
    )


def _unmeasured(material: Material) -> tuple[str, ...]:
    """Name the groups that are not measured, in a sentence; none if all are."""
    single = [p.group.id for p in material.profiles if len(p.encoded) < 2]
    if not single:
        return ()
    return (
        f"Of {len(material.profiles)} facts and classes these have a single prompt and are not "
        f"measured: {', '.join(single)}.",
    )


def _by_relation(material: Material, measured: Sequence[GroupLevels]) -> SectionTable:
    rows: list[TableRow] = []
    for relation in material.relations:
        mine = [levels for levels in measured if levels.profile.group.relation == relation]
        if not mine:
            continue
        rows.append(
            (
                relation,
                "fact" if mine[0].profile.group.task == "fact" else "syntax",
                sum(levels.capped.n_prompts for levels in mine),
                *(mean(mine, name) for name in MEASURES for mean in (averaged, null_of)),
                sum(2 <= len(levels.capped.neurons) <= 5 for levels in mine) / len(mine),
                averaged(mine, "n_neurons", capped=False),
                averaged(mine, "attribution_share", capped=False),
            )
        )
    return SectionTable(
        "levels_by_relation",
        "The levels of facts and of syntax, side by side: means over n facts or classes with their "
        "95 % intervals, and the means of the nulls. Where no threshold leaves 2 to 5 neurons the "
        "published rule goes to and fro and ends outside of them.",
        (
            "relation",
            "task",
            "prompts",
            *_with_nulls(),
            "2 to 5 reached",
            "|KN| without cap",
            "share without cap",
        ),
        tuple(rows),
        left=2,
    )


def _by_group(measured: Sequence[GroupLevels]) -> SectionTable:
    rows = tuple(
        (
            levels.profile.group.id,
            "capped" if capped else "uncapped",
            " ".join(map(label, sorted(localised.neurons)[:8]))
            + (" …" if len(localised.neurons) > 8 else ""),
            localised.n_prompts,
            *(
                cell
                for name in MEASURES
                for m in (value(localised, name),)
                for cell in (Interval(m.value, m.low, m.high, localised.n_prompts), m.null)
            ),
        )
        for levels in measured
        for capped, localised in ((True, levels.capped), (False, levels.uncapped))
    )
    return SectionTable(
        "levels_by_group",
        "Every fact and class of two prompts or more: located neurons, measures with 95 % "
        "bootstrap intervals over its prompts, and nulls.",
        ("group", "rule", "neurons", "prompts", *_with_nulls()),
        rows,
        left=3,
        shown=12,
    )


def _with_nulls() -> list[str]:
    return [header for name in MEASURES.values() for header in (name, f"{name} null")]


def _by_neuron(material: Material, measured: Sequence[GroupLevels]) -> SectionTable:
    rows: list[TableRow] = []
    settings = material.settings
    for levels in measured:
        profile, sets = levels.profile, levels.profile.coarse_sets()
        chance = chance_recurrence(
            sets, material.lm.d_mlp, draws=settings.permutations, seed=settings.seed
        )
        for neuron in sorted(levels.capped.neurons):
            share = mean_interval([neuron in coarse_set for coarse_set in sets], profile.clusters)
            rows.append((profile.group.id, label(neuron), share, chance.mean, chance.high))
    return SectionTable(
        "recurrence_by_group",
        "Share of the prompts of a fact, or of the pairs of a class, in whose own set a located "
        "neuron recurs, with its 95 % interval; beside it the highest share that any neuron "
        "reaches by chance, its mean and 95th percentile.",
        ("group", "neuron", "share", "null", "null 95 %"),
        tuple(rows),
        left=2,
        shown=12,
    )


def _by_layer(measured: Sequence[GroupLevels]) -> SectionTable:
    rows: list[TableRow] = []
    for task, (_, _, name) in TASK.items():
        mine = [levels for levels in measured if levels.profile.group.task == task]
        for rule, capped in (("capped", True), ("uncapped", False)):
            shares = layer_shares(mine, capped=capped) if mine else []
            rows += [
                (name, rule, layer, share, 1 / len(shares)) for layer, share in enumerate(shares)
            ]
    return SectionTable(
        "levels_by_layer",
        "Share of the located neurons in each layer, mean over facts or classes with its 95 % "
        "interval, and the share of as many neurons drawn anywhere.",
        ("task", "rule", "layer", "share", "null"),
        tuple(rows),
        left=2,
    )


def _by_method(material: Material, compared: Sequence[GroupLevels]) -> SectionTable:
    rows: list[TableRow] = []
    for method in METHODS:
        for task, (_, _, name) in TASK.items():
            mine = [m for m in compared if m.method == method and m.profile.group.task == task]
            if mine:
                means = (averaged(mine, key) for key in MEASURES)
                null = null_of(mine, "r1_squared")
                free = averaged(mine, "n_neurons", capped=False)
                rows.append((method, name, *means, null, free))
    return SectionTable(
        "levels_by_method",
        f"The same by four attributions, on {_sampled(material)}.",
        ("attribution", "task", *MEASURES.values(), "R1² null", "|KN| without cap"),
        tuple(rows),
        left=2,
    )


def _sampled(material: Material) -> str:
    parts = []
    for task, names in (("fact", ("fact",)), ("pair", ("class of pairs", "classes of pairs"))):
        prompts = [len(p.encoded) for p in material.sample if p.group.task == task]
        if prompts:
            groups = tables.counted(len(prompts), *names)
            parts.append(f"{tables.counted(sum(prompts), 'prompt')} of {groups}")
    return f"a sample: {' and '.join(parts)}"


def _by_prompt(material: Material) -> SectionTable:
    asked = [query for profile in material.profiles for query in profile.encoded]
    probability = iter(answers(material.lm, asked).probability)
    rows: list[TableRow] = [
        (
            profile.group.id,
            query.cloze.fill(f"[{query.answer}]"),
            float(next(probability)),
            len(neurons),
            _listed(neurons, profile.scores[place]),
        )
        for profile in material.profiles
        for place, neurons in enumerate(profile.coarse_sets())
        for query in (profile.group.queries[profile.kept[place]],)
    ]
    return SectionTable(
        "neurons_by_prompt",
        "Every prompt or pair: the answer's probability and its own neurons, those above a fifth "
        "of the highest attribution, the highest first.",
        ("group", "prompt", "P", "neurons", "which"),
        tuple(rows),
        left=2,
        digits=3,
        shown=8,
    )


def _listed(neurons: Neurons, scores: torch.Tensor) -> str:
    ordered = sorted(neurons, key=lambda n: (-float(scores[n.layer, n.unit]), n))
    return " ".join(map(label, ordered[:10])) + " …" * (len(ordered) > 10)


def _completeness(material: Material) -> SectionTable:
    errors = [
        (float(a.completeness.max()), a.worst, bool(a.converged.all()), int(a.nodes.max()))
        for p in material.profiles
        for a in p.attributions
    ]
    worst, units, converged, nodes = zip(*errors, strict=True)
    return SectionTable(
        "completeness",
        "Integration error of the attributions: |sum of alpha - (P(w) - P(0))|, the worst layer "
        "of each prompt.",
        (
            "prompts",
            "median",
            "largest",
            "largest, in units of what is allowed",
            "converged",
            "most nodes",
        ),
        (
            (
                len(errors),
                float(np.median(worst)),
                max(worst),
                max(units),
                sum(converged),
                max(nodes),
            ),
        ),
        left=0,
    )


def _findings(measured: Sequence[GroupLevels]) -> tuple[str, ...]:
    by_task = {
        name: [levels for levels in measured if levels.profile.group.task == task]
        for task, (_, _, name) in TASK.items()
    }
    sentences = []
    for key, name in (("r1_squared", "R1²"), ("attribution_share", "share of attribution")):
        parts = [
            f"{tables.mean(mean)} for {task} (n={mean.n})"
            for task, mine in by_task.items()
            if mine and (mean := averaged(mine, key))
        ]
        sentences.append(f"{name}: {', '.join(parts)}.")
    free = {
        task: averaged(mine, "n_neurons", capped=False) for task, mine in by_task.items() if mine
    }
    sentences.append(
        "Without the cap the refined sets hold "
        + " and ".join(f"{size.mean:.1f} neurons for {task}" for task, size in free.items())
        + "."
    )
    return tuple(sentences)
