"""Modifiers under suppression of the number neurons, and their co-occurrence (Figures 5 to 7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from kn_bench.results.tables import counted, number
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.sections.determiners import label, number_neurons, sort_of
from kn_bench.study.sections.modifiers.co_occurrence import NounCounts
from kn_bench.study.sections.modifiers.modifier_figures import (
    compared,
    draw_change,
    draw_co_occurrence,
    draw_probabilities,
    whole,
)
from kn_bench.study.sections.modifiers.modifier_shifts import BLOCKS
from kn_bench.study.sections.modifiers.silencing import SilencedNeuron, corpus_of, count, silence

NONE_COUNTED = (
    "The corpus has none of the modifiers before a noun of the cases: the figure of co-occurrence "
    "is left out. Give a text that has them by --corpus FILE."
)


def run(material: Material) -> Section:
    """Compute this section of the study."""
    if not material.gaps:
        raise NothingToShow(
            "No case has a gap where a determiner stands: add a paradigm such as "
            "determiner_noun_agreement_2."
        )
    counted = count(material)
    silenced = [silence(material, name, n, counted) for name, n in number_neurons(material).items()]
    figures = (
        SectionFigure(
            "change",
            "Change of each modifier's mean probability, (p' - p) / min(p, p'), when the neuron is "
            "set to 0, with its 95 % interval; a star where the paired test with Holm's correction "
            "is below 0.05. The grey band holds 95 % of draws among neurons of the same layer and "
            "activation. Pale bars are words of several tokens, which may leave the frame.",
            partial(draw_change, silenced),
            "Figure 5",
        ),
        SectionFigure(
            "probabilities",
            "Exact mean probability of each modifier of one token (of each, where none is) before "
            "(open) and after (filled) suppression.",
            partial(draw_probabilities, silenced),
            "Figure 6",
        ),
    )
    is_drawn = any(compared(neuron, counted) for neuron in silenced)
    co_occurrence_figure = SectionFigure(
        "co_occurrence",
        "Change of each modifier against its co-occurrence: log odds of a plural against a "
        "singular noun after it, counted in the corpus. Modifiers of several tokens, and those "
        "that the corpus lacks, are left out.",
        partial(draw_co_occurrence, silenced, counted),
        "Figure 7",
    )
    return Section(
        "modifiers",
        "Which words change when a number neuron is suppressed?",
        "24 modifiers in three blocks are asked for where a determiner stands, with the neuron as "
        "it is and set to 0. If it holds number, the words of its own number lose and no others. "
        "Each modifier is tested by prompts in pairs, before and after, with nouns flipped "
        "together, and Holm's correction over the modifiers. The published test takes the same "
        "prompts for independent samples and corrects nothing; it stands beside it.",
        tuple(sentence for neuron in silenced for sentence in _findings(neuron)),
        tables=(_table(silenced), *((_co_occurrence_table(silenced, counted),) if counted else ())),
        figures=(*figures, *((co_occurrence_figure,) if is_drawn else ())),
        notes=(*_notes(material, silenced), *((NONE_COUNTED,) if counted and not is_drawn else ())),
    )


def _findings(silenced: SilencedNeuron) -> list[str]:
    sentences = []
    for block in BLOCKS:
        shifts = [s for s in whole(silenced) if s.modifier.block == block]
        if not shifts:
            sentences.append(f"no {block} word")
            continue
        falls = sum(s.p_holm < 0.05 and s.change < 0 for s in shifts)
        rises = sum(s.p_holm < 0.05 and s.change > 0 for s in shifts)
        published = sum(s.p_published < 0.05 for s in shifts)
        median = float(np.median([s.change for s in shifts]))
        sentences.append(
            f"{block} words {median:+.2f} at the median, {falls} fall and {rises} rise of "
            f"{len(shifts)} ({published} by the published test)"
        )
    text = [
        f"The {sort_of(silenced.name, silenced.neuron)} neuron ({label(silenced.neuron)}), "
        f"{counted(silenced.study.shifts[0].n, 'prompt')}, {_which(silenced)}: "
        + "; ".join(sentences)
        + "."
    ]
    a = silenced.association
    if a and np.isnan(a.spearman):
        text.append(
            f"Its shift has no rank correlation with the co-occurrence counts "
            f"(n = {counted(a.n, 'modifier')}): one takes at least four whose shifts and counts "
            "are not all equal."
        )
    elif a:
        text.append(
            f"Its shift and the co-occurrence counts have rank correlation {a.spearman:.2f} "
            f"(p = {a.p:.3f}, n = {counted(a.n, 'modifier')}), and within blocks by "
            f"{number(a.partial)} (p = {number(a.partial_p, 3)}); the block alone explains "
            f"{a.by_block:.0%} of the ranks."
        )
    return text


def _which(silenced: SilencedNeuron) -> str:
    """Name what :func:`whole` returns."""
    single = all(s.tokens == 1 for s in whole(silenced))
    return "words of one token" if single else "words of several tokens, as none is of one"


def _table(silenced: Sequence[SilencedNeuron]) -> SectionTable:
    rows: list[TableRow] = [
        (
            neuron.name,
            s.modifier.block,
            s.modifier.word,
            s.n,
            s.tokens,
            s.before,
            s.after,
            s.change,
            s.low,
            s.high,
            _as_much(neuron.random[:, i], s.change),
            s.effect_size,
            s.p,
            s.p_holm,
            s.p_published,
        )
        for neuron in silenced
        for i, s in enumerate(neuron.study.shifts)
    ]
    return SectionTable(
        "modifiers",
        "Mean probability of every modifier before and after, its change with a 95 % interval, the "
        "share of random draws (among neurons of the same layer and activation, some of them drawn "
        "twice) that move it as much, Cohen's d of the pairs, and p by the paired "
        "permutation test, after Holm, and by the published test (independent samples, "
        "uncorrected).",
        (
            "neuron",
            "block",
            "modifier",
            "n",
            "tokens",
            "before",
            "after",
            "change",
            "low",
            "high",
            "random as much",
            "d",
            "p",
            "p Holm",
            "p published",
        ),
        tuple(rows),
        left=3,
        digits=3,
        shown=60,
    )


def _as_much(random: Float[np.ndarray, " draws"], change: float) -> float | None:
    """Return the share of random draws that change a word as much; None if none was tried."""
    return None if np.isnan(random).any() else float((np.abs(random) >= abs(change)).mean())


def _co_occurrence_table(
    silenced: Sequence[SilencedNeuron], counted: Sequence[NounCounts]
) -> SectionTable:
    rows: list[TableRow] = []
    for counts in counted:
        shifts = (
            next((s.change for s in it.study.shifts if s.modifier.word == counts.word), None)
            for it in silenced
        )
        bias = counts.bias if counts.nouns else None
        rows.append((counts.word, counts.plural, counts.singular, bias, *shifts))
    return SectionTable(
        "co_occurrence",
        "How often, of the cases' nouns, the first within three words after each modifier is a "
        "plural and a singular in the corpus, the log odds, and its change under each neuron's "
        "suppression.",
        ("modifier", "plural", "singular", "log odds", *(f"change, {s.name}" for s in silenced)),
        tuple(rows),
    )


def _notes(material: Material, silenced: Sequence[SilencedNeuron]) -> tuple[str, ...]:
    notes = []
    study = silenced[0].study
    if study.excluded:
        words = ", ".join(m.word for m in study.excluded)
        notes.append(f"Modifiers that the model has no words for, left out: {words}.")
    if study.skipped:
        notes.append(f"Prompts that do not fit the model for every modifier: {study.skipped}.")
    if material.lm.is_causal:
        notes.append(
            "A causal model reads only what stands before the gap: its modifiers are predicted "
            "without the noun."
        )
    if corpus_of(material) is None:
        notes.append("Co-occurrence was not counted: give a text by --corpus FILE.")
    return tuple(notes)
