"""Control 4: does erasing neurons remove the fact, or damage the model?

A value vector is replaced by 0, by the mean, or by the embedding of the unknown token or of a
random one. The perplexity of whole texts shows whether the model still works; the perplexity of the
answer alone, at its gap, shows whether the fact is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kn_bench.editing.edit import Edit, LowRankEdit, NoEdit, NotApplicable
from kn_bench.edits.kn import ERASED
from kn_bench.localise.groups import Profile
from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.matching import matched
from kn_bench.localise.queries import Fitted
from kn_bench.measure.sentences import perplexity, token_log_probs
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded
from kn_bench.results import tables
from kn_bench.study.edited import erasing
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import TASK, panels, plain_ticks, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

OTHER_TEXTS = 6
PROMPTS = 4
BEYOND = 100.0
"""Ratios above this are written as numbers at the edge of the figure."""


@dataclass(frozen=True)
class ErasureResult:
    """Perplexities and accuracy under one edit.

    Attributes:
        name: name of the edit; ``none`` for the unedited model.
        at_answer: exp of minus the mean log P(answer) at the gap, of whole answers.
        own_texts: (pseudo-)perplexity of all tokens of the prompts with their answers filled in.
        other_texts: the same for unrelated texts; NaN without any.
        accuracy: share of prompts whose answer is still the argmax, every token of it.
    """

    name: str
    at_answer: float
    own_texts: float
    other_texts: float
    accuracy: float


def erased(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    own_texts: Sequence[str],
    other_texts: Sequence[str],
    edits: Sequence[tuple[str, Edit]],
) -> list[ErasureResult]:
    """Measure perplexities without an edit, then under each of ``edits``.

    Args:
        queries: prompts whose answers the edits should erase.
        own_texts: the same prompts with their answers filled in.
        other_texts: texts that the edits should not affect.
        edits: pairs of name and edit.
    """
    names, applied = zip(*[("none", NoEdit()), *edits], strict=True)
    at_answer = crossed(lm, queries, applied)
    own = perplexity(token_log_probs(lm, own_texts, applied))
    other = np.full(len(applied), np.nan)
    if other_texts:
        other = perplexity(token_log_probs(lm, other_texts, applied))
    return [
        ErasureResult(
            name,
            float(np.exp(-at_answer.log_prob[i].mean())),
            float(own[i]),
            float(other[i]),
            float(at_answer.right[i].mean()),
        )
        for i, name in enumerate(names)
    ]


@dataclass(frozen=True)
class GroupErasures:
    """One group whose neurons are erased in several ways."""

    profile: Profile
    by_edit: tuple[ErasureResult, ...]


def run(material: Material) -> Section:
    """Compute this section of the study.

    Raises:
        NothingToShow: if no group has two prompts.
    """
    losses = [_lost(material, profile) for profile in material.sample]
    if not losses:
        raise NothingToShow("No fact or class has two prompts that fit the model.")
    return Section(
        "erasing",
        "Control 4: is the fact gone, or the model?",
        "The located neurons' values are replaced by 0, by the mean value, by the embedding of the "
        "unknown token or of a random one; suppression (activations of 0 wherever a token is "
        "predicted) and the erasure of matched random neurons stand beside. Perplexity is that of "
        "the whole answer where it stands, of all tokens of the group's own texts, and of all "
        "tokens of unrelated texts (for a masked model the pseudo-perplexity, every token masked "
        "in turn): a method may lose the answer and keep the model, or lose both.",
        _findings(losses),
        tables=(_table(losses),),
        figures=(
            SectionFigure(
                "perplexity",
                "Ratio of perplexity to the unedited model's, where the answer stands, on all "
                "tokens of its own texts, and on unrelated texts: geometric means with 95 % "
                "intervals over facts or classes. 1 is no change; what lies beyond the frame is "
                "written at its edge.",
                lambda: _draw(losses),
            ),
        ),
        notes=_notes(losses),
    )


def _notes(losses: Sequence[GroupErasures]) -> tuple[str, ...]:
    """Return what is missing, and why."""
    notes = []
    missing = [by for by in ERASED if by not in _names(losses)]
    if missing:
        notes.append(f"Not applicable to this model, and left out: {', '.join(missing)}.")
    if any(np.isnan(loss.by_edit[0].other_texts) for loss in losses):
        notes.append(
            "Where the cases are of one relation or paradigm no text is unrelated: its column is "
            "empty."
        )
    return tuple(notes)


def _lost(material: Material, profile: Profile) -> GroupErasures:
    lm, group = material.lm, profile.group
    neurons = material.neurons(profile)
    edits: list[tuple[str, Edit]] = []
    for by in ERASED:
        try:
            edits.append((by, LowRankEdit(erasing(lm, by).updates(neurons, group.id))))
        except NotApplicable:
            continue
    generator = seeded(material.settings.seed, "erasing", group.id)
    others = matched(material.mean_activation(profile), neurons, generator)
    edits.append(("zero, random neurons", LowRankEdit(erasing(lm, "zero").updates(others, "r"))))
    edits.append(("suppressed", suppress(neurons)))
    own = [group.queries[i].cloze.fill(group.queries[i].answer) for i in profile.kept[:PROMPTS]]
    return GroupErasures(
        profile,
        tuple(erased(lm, profile.encoded[:PROMPTS], own, _others(material, profile), edits)),
    )


def _others(material: Material, profile: Profile) -> list[str]:
    """Return texts of other relations and paradigms, the same number for each task."""
    texts = []
    for task in TASK:
        groups = [p for p in material.of_task(task) if p.group.relation != profile.group.relation]
        for group in groups[:: max(1, len(groups) // (OTHER_TEXTS // 2))][: OTHER_TEXTS // 2]:
            query = group.group.queries[group.kept[0]]
            texts.append(query.cloze.fill(query.answer))
    return texts


def _ratio(losses: Sequence[GroupErasures], edit: str, name: str) -> Interval:
    """Return the geometric mean of the ratio to the unedited model."""
    logs, groups = [], []
    for loss in losses:
        plain = loss.by_edit[0]
        mine = next((e for e in loss.by_edit if e.name == edit), None)
        if mine is not None:
            logs.append(np.log(getattr(mine, name) / getattr(plain, name)))
            groups.append(loss.profile.group.id)
    log = mean_interval(logs, groups, bounds=None)
    mean, low, high = np.exp([log.mean, log.low, log.high]).tolist()
    return Interval(mean, low, high, log.n)


def _names(losses: Sequence[GroupErasures]) -> list[str]:
    return list(dict.fromkeys(e.name for loss in losses for e in loss.by_edit if e.name != "none"))


def _table(losses: Sequence[GroupErasures]) -> SectionTable:
    rows: list[TableRow] = []
    for task, (_, _, label) in TASK.items():
        mine = [loss for loss in losses if loss.profile.group.task == task]
        if not mine:
            continue
        groups = [loss.profile.group.id for loss in mine]
        plain = mean_interval([loss.by_edit[0].accuracy for loss in mine], groups)
        rows.append((label, "none", None, None, None, plain))
        for edit in _names(losses):
            ratios = [_ratio(mine, edit, key) for key in ("at_answer", "own_texts", "other_texts")]
            accuracy = [e.accuracy for loss in mine for e in loss.by_edit if e.name == edit]
            rows.append((label, edit, *ratios, mean_interval(accuracy, groups[: len(accuracy)])))
    return SectionTable(
        "erasing",
        "Perplexity in units of the unedited model's (geometric mean, 95 % interval over facts or "
        "classes) at the answer, on all tokens of own texts, on unrelated texts; and accuracy.",
        ("task", "values set to", "at the answer", "own texts", "unrelated texts", "accuracy"),
        tuple(rows),
        left=2,
    )


def _findings(losses: Sequence[GroupErasures]) -> tuple[str, ...]:
    parts = []
    for edit in _names(losses):
        ratios = (
            _ratio(losses, edit, key).mean for key in ("at_answer", "own_texts", "other_texts")
        )
        texts = (f"x{ratio:.2f}" if np.isfinite(ratio) else tables.NOTHING for ratio in ratios)
        parts.append(f"{edit}: {', '.join(texts)}")
    return (
        "Perplexity at the answer, on own texts and on unrelated texts: " + "; ".join(parts) + ".",
    )


def _draw(losses: Sequence[GroupErasures]) -> Drawing:
    figure, axes = panels(3, width=9.0, height=3.1, sharey=True)
    names = _names(losses)
    for ax, key, title in zip(
        axes,
        ("at_answer", "own_texts", "other_texts"),
        ("at the answer", "own texts, all tokens", "unrelated texts"),
        strict=True,
    ):
        for shift, (task, (colour, marker, label)) in zip((-0.13, 0.13), TASK.items(), strict=True):
            mine = [loss for loss in losses if loss.profile.group.task == task]
            if mine:
                values = [_ratio(mine, edit, key) for edit in names]
                places = [-i + shift for i in range(len(names))]
                whiskers(ax, places, values, colour=colour, marker=marker, label=label,
                         horizontal=True)  # fmt: skip
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xscale("log")
        _cut(ax, losses, names, key)
        plain_ticks(ax, [0.5, 1, 2, 5, 10, 20, 50, 100, 200])
        ax.set_title(title)
        ax.set_xlabel("ratio of perplexity")
    axes[0].set_yticks([-i for i in range(len(names))], names)
    axes[2].legend()
    return figure


def _cut(ax: Axes, losses: Sequence[GroupErasures], names: Sequence[str], key: str) -> None:
    """Cut the axis at extreme ratios, and write these as numbers at its end."""
    ratios = {
        (i, task): _ratio([o for o in losses if o.profile.group.task == task], edit, key).mean
        for i, edit in enumerate(names)
        for task in TASK
    }
    inside = [r for r in ratios.values() if np.isfinite(r) and r <= BEYOND]
    ends = min([0.8, *inside]) / 1.2, max([1.3, *inside]) * 2
    ax.set_xlim(*ends)
    for (i, task), ratio in ratios.items():
        if np.isfinite(ratio) and ratio > ends[1]:
            shift = -0.13 if task == "fact" else 0.13
            ax.annotate(
                f"{ratio:.0e} \u2192",
                (ends[1], -i + shift),
                ha="right",
                va="center",
                fontsize=7.5,
                color=TASK[task][0],
            )
