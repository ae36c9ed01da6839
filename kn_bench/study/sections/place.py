"""Control 6: does the same edit work in other columns, at another layer, token or key?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from kn_bench.cases.case import EditRequest, Task
from kn_bench.editing.edit import Edit, LowRank, LowRankEdit, NotApplicable
from kn_bench.editing.rome.remembered import covariances_of
from kn_bench.localise.groups import Profile
from kn_bench.localise.matching import matched
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.statistics import mean_interval
from kn_bench.model.seeding import seeded
from kn_bench.results import tables
from kn_bench.study.edited import (
    EditOutcome,
    EditTrial,
    editable,
    edits_by,
    methods,
    rate,
    rewritten,
    rome,
    took,
    trials_of,
)
from kn_bench.study.material import Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import TASK, panels, whiskers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ROME_REQUESTS = 2
"""Requests per relation; every layer of :func:`layers_beside` is edited for each of them."""
ROME_LAYERS = 10
"""Layers that ROME edits beside its own: all of a small model, evenly spread in a deeper one."""
TOGETHER = 5
"""Layers whose C is taken in one pass over the text, as many as MEMIT's."""

NO_LAST_WORD = NotApplicable("what stands before the answer is a single word or holds a brace")

PlannedEdit = tuple[str, EditRequest, Edit | NotApplicable]
"""A place, a request, and the edit for it there."""
Columns = tuple[Profile, EditRequest, dict[str, Neurons]]
"""A group, a request of it, and the neurons whose values kn-edit changes, by place."""


def run(material: Material) -> Section:
    """Compute this section of the study.

    Raises:
        NothingToShow: if no edit can be made on the model.
    """
    asked, left_out = _asked(material)
    columns = [(p, r, columns_of(material, p, r)) for p, r in asked]
    planned = (_in_columns(material, columns), _by_rome(material))
    outcomes = [
        outcome
        for (name, _), edits in zip(methods(material.lm), planned, strict=False)
        for outcome in _measured(material, name, edits)
    ]
    notes = [f"Left out of kn-edit: {n} {reason}." for reason, n in left_out.items()]
    if not material.lm.is_causal:
        notes.append("ROME edits causal models only: its part is left out.")
    elif not material.requests("fact"):
        notes.append("ROME is made on facts, and there are none: its part is left out.")
    trials, missing = trials_of(outcomes, material.cluster_of, notes)
    return Section(
        "place",
        "Control 6: does the place of the edit matter?",
        "kn-edit's change, -e(old) + e(new) scaled to the values' norms, is made in all located "
        "columns (the method itself leaves out those that a relation shares), in matched random "
        "ones, in the most active ones, and in random ones of the last layer. If it works "
        "anywhere, it says nothing of where knowledge is. ROME (causal models) is made at other "
        "layers too (all of a small model, ten of a deeper one), at the prompt's last word instead "
        "of the subject, and with a random key and the same norm.",
        (*_findings(trials), *_shared(columns)),
        tables=(_table(trials),),
        figures=(
            SectionFigure(
                "place",
                "Share of edits after which the model gives the new answer (argmax), by place, "
                "with 95 % intervals over subjects or nouns.",
                lambda: _draw(trials),
            ),
        ),
        notes=missing,
    )


def _measured(
    material: Material, method: str, edits: Sequence[PlannedEdit]
) -> list[tuple[str, str, EditRequest, EditOutcome | NotApplicable]]:
    outcomes = took(material.lm, [r for _, r, _ in edits], [e for _, _, e in edits])
    return [
        (method, place, request, outcome)
        for (place, request, _), outcome in zip(edits, outcomes, strict=True)
    ]


def _asked(material: Material) -> tuple[list[tuple[Profile, EditRequest]], Counter[str]]:
    """Return the requests that kn-edit is made for, of those that the groups' prompts come from."""
    asked: list[tuple[Profile, EditRequest]] = []
    left_out: Counter[str] = Counter()
    for profile in material.profiles:
        requests = profile.group.requests
        if profile.group.task == "pair":  # a prompt each; a fact has one request for all of its own
            requests = tuple(requests[i] for i in profile.kept)
        usable, others = editable(material.lm, requests)
        each = max(1, material.settings.edited // 2)
        asked += [(profile, r) for r in list(usable.values())[:each]]
        left_out += others
    return asked, left_out


def _in_columns(material: Material, columns: Sequence[Columns]) -> list[PlannedEdit]:
    return [
        (place, request, rewritten(material.lm, request, neurons))
        for _, request, by_place in columns
        for place, neurons in by_place.items()
    ]


def columns_of(material: Material, profile: Profile, request: EditRequest) -> dict[str, Neurons]:
    """Return the neurons whose values kn-edit changes, by place."""
    neurons = material.neurons(profile)
    mean = material.mean_activation(profile)
    generator = seeded(material.settings.seed, "place", request.id)
    order = mean.flatten().argsort(descending=True).tolist()
    active = [Neuron(*divmod(place, mean.shape[1])) for place in order[: len(neurons)]]
    last = mean.shape[0] - 1
    units = torch.randperm(mean.shape[1], generator=generator).tolist()
    others = [n for unit in units if (n := Neuron(last, unit)) not in neurons]
    return {
        "located": neurons,
        "random, same layers": matched(mean, neurons, generator),
        "most active": frozenset(active),
        "random, last layer": frozenset(others[: len(neurons)]),
    }


def _by_rome(material: Material) -> list[PlannedEdit]:
    lm = material.lm
    if not lm.is_causal:
        return []
    requests = material.requests("fact", ROME_REQUESTS)
    own = rome(lm)
    chosen = own.settings.layer
    own_edits = edits_by(own, requests)
    edits: list[PlannedEdit] = []
    layers = layers_beside(chosen, lm.n_layers)
    if own.settings.mom2_adjustment:
        for i in range(0, len(layers), TOGETHER):  # kept on disk; each edit would read the text
            covariances_of(lm, layers[i : i + TOGETHER], None, own.settings.mom2_n_tokens)
    for layer in layers:
        name = f"layer {layer}" + (" (chosen)" if layer == chosen else "")
        at_layer = own_edits if layer == chosen else edits_by(rome(lm, layer), requests)
        edits += [(name, r, e) for r, e in zip(requests, at_layer, strict=True)]
    # edits computed at the wrong token, and tested on the original prompts
    moved = [_last_word(r) for r in requests]
    wrong = iter(edits_by(own, [at_last for at_last in moved if at_last is not None]))
    at_words = [NO_LAST_WORD if at_last is None else next(wrong) for at_last in moved]
    edits += [("last word", r, e) for r, e in zip(requests, at_words, strict=True)]
    random = [_random_key(material, r, e) for r, e in zip(requests, own_edits, strict=True)]
    edits += [("random key", r, e) for r, e in zip(requests, random, strict=True)]
    return edits


def layers_beside(chosen: int, n_layers: int) -> list[int]:
    """Return the layers that are edited: first and last, what lies evenly between, and ROME's."""
    spread = {round(i * (n_layers - 1) / (ROME_LAYERS - 1)) for i in range(ROME_LAYERS)}
    return sorted({*spread, chosen})


def _last_word(request: EditRequest) -> EditRequest | None:
    """Return the same request with the prompt's last word as its subject; None if it has none."""
    left = request.cloze.left
    start, _, word = left.rpartition(" ")
    if not start or not word or "{" in left:
        return None
    return replace(request, subject=word, prompt=f"{start} {{}}", queries=(), background=())


def _random_key(
    material: Material, request: EditRequest, edit: Edit | NotApplicable
) -> Edit | NotApplicable:
    """Return the edit with a random u of the same norm."""
    if not isinstance(edit, LowRankEdit):
        return edit
    generator = seeded(material.settings.seed, "key", request.id)
    updates = []
    for up in edit.updates:
        drawn = torch.randn(up.u.shape, generator=generator).to(up.u)
        updates.append(LowRank(up.layer, drawn / drawn.norm() * up.u.norm(), up.v))
    return LowRankEdit(tuple(updates))


def _grouped(trials: Sequence[EditTrial]) -> list[tuple[str, str, Task, list[EditTrial]]]:
    keys = dict.fromkeys((trial.method, trial.kind, trial.task) for trial in trials)
    return [
        (*key, [trial for trial in trials if (trial.method, trial.kind, trial.task) == key])
        for key in keys
    ]


def _table(trials: Sequence[EditTrial]) -> SectionTable:
    rows: list[TableRow] = [
        (
            method,
            place,
            TASK[task][2],
            rate(mine, "argmax"),
            rate(mine, "preferred"),
            rate(mine, "before"),
        )
        for method, place, task, mine in _grouped(trials)
    ]
    return SectionTable(
        "place",
        "Edits by place: share after which the new answer is given (argmax), is preferred to the "
        "true one, and was preferred before, with 95 % intervals over subjects or nouns.",
        ("method", "place", "task", "given", "preferred", "preferred before"),
        tuple(rows),
        left=3,
    )


def _findings(trials: Sequence[EditTrial]) -> tuple[str, ...]:
    sentences = []
    for method in dict.fromkeys(trial.method for trial in trials):
        parts = []
        for its, place, task, mine in _grouped(trials):
            if its == method:
                parts.append(f"{place} ({TASK[task][2]}) {rate(mine, 'argmax').mean:.0%}")
        sentences.append(f"{method} gives the new answer: {', '.join(parts)}.")
    return tuple(sentences)


def _shared(columns: Sequence[Columns]) -> tuple[str, ...]:
    """Say which share of the most active neurons are located ones: the two places overlap."""
    sentences = []
    for task, (_, _, label) in TASK.items():
        shares = {}
        for profile, _, by_place in columns:
            if profile.group.task == task:
                both = by_place["located"] & by_place["most active"]
                shares[profile.group.id] = len(both) / len(by_place["located"])
        if shares:
            share = mean_interval(list(shares.values()), list(shares))
            sentences.append(
                f"Of the most active neurons of {label} {tables.share(share)} are located ones "
                f"(n={share.n})."
            )
    return tuple(sentences)


def _draw(trials: Sequence[EditTrial]) -> Drawing:
    names = list(dict.fromkeys((trial.method, trial.kind) for trial in trials))
    figure, (axes,) = panels(1, width=7.0, height=1.0 + 0.27 * len(names))
    for shift, (task, (colour, marker, label)) in zip((-0.13, 0.13), TASK.items(), strict=True):
        groups = {(m, p): mine for m, p, t, mine in _grouped(trials) if t == task}
        places = [-i + shift for i, name in enumerate(names) if name in groups]
        values = [rate(groups[name], "argmax") for name in names if name in groups]
        whiskers(axes, places, values, colour=colour, marker=marker, label=label, horizontal=True)
    axes.set_yticks([-i for i in range(len(names))], [f"{m}: {p}" for m, p in names])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of edits that take")
    axes.legend(loc="best")
    return figure
