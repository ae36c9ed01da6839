"""Modifiers under suppression, and how often they occur before plural and singular nouns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from kn_bench.cases.building.grammar import NUMBER_CLASS
from kn_bench.cases.case import Query
from kn_bench.editing.edit import NoEdit
from kn_bench.localise.alternatives import activation
from kn_bench.localise.interventions import relative_change, suppress
from kn_bench.localise.matching import matched
from kn_bench.localise.selection import Neuron
from kn_bench.measure.encoding import encode_query
from kn_bench.model import embedded
from kn_bench.model.seeding import seeded
from kn_bench.study.material import Material
from kn_bench.study.sections.modifiers.co_occurrence import (
    Association,
    NounCounts,
    association,
    count_nouns,
)
from kn_bench.study.sections.modifiers.modifier_shifts import (
    MODIFIERS,
    ModifierStudy,
    ask_modifiers,
    modifier_study,
)


@dataclass(frozen=True)
class SilencedNeuron:
    """A number neuron under suppression.

    Attributes:
        name: ``plural``, ``singular`` or ``given 9:1094``.
        random: change of each modifier for random neurons of the same layer and activation.
        association: correlation of shift and co-occurrence; None without a corpus.
    """

    name: str
    neuron: Neuron
    study: ModifierStudy
    random: Float[np.ndarray, "draws modifiers"]
    association: Association | None


def silence(
    material: Material, name: str, neuron: Neuron, counted: Sequence[NounCounts]
) -> SilencedNeuron:
    """Measure every modifier at the gaps of the material's prompts with ``neuron`` set to 0."""
    prompts, nouns = zip(*material.gaps, strict=True)
    study = modifier_study(material.lm, prompts, nouns, [neuron])
    return SilencedNeuron(
        name, neuron, study, _random(material, neuron, study), _associated(study, counted)
    )


def _random(
    material: Material, neuron: Neuron, study: ModifierStudy
) -> Float[np.ndarray, "draws modifiers"]:
    """Measure the changes for random neurons of the same layer, as active at the gap.

    They are nan for modifiers of several tokens: each token would take a run of its own.
    """
    single = [s.tokens == 1 for s in study.shifts]
    asked = ask_modifiers(
        material.lm,
        [material.gaps[i][0] for i in study.kept],
        [s.modifier for s in study.shifts if s.tokens == 1] or MODIFIERS[:1],
    )
    mean = _activation_at_gaps(material)
    generator = seeded("modifiers", material.settings.seed, neuron)
    drawn = [matched(mean, [neuron], generator) for _ in range(material.settings.draws)]
    means = asked.probabilities([NoEdit(), *map(suppress, drawn)]).mean(2)
    changes = np.full((len(drawn), len(single)), np.nan)
    if any(single):
        changes[:, single] = relative_change(means[0], means[1:])
    return changes


def _activation_at_gaps(material: Material) -> torch.Tensor:
    queries = [
        encoded
        for cloze, _ in material.gaps
        if (encoded := encode_query(Query(cloze, "the"), material.lm.tokens, "pair")) is not None
    ]
    return activation(material.lm, queries).double().mean(0)


def _associated(study: ModifierStudy, counted: Sequence[NounCounts]) -> Association | None:
    known = {counts.word: counts for counts in counted if counts.nouns}
    shifts = [s for s in study.shifts if s.tokens == 1 and s.modifier.word in known]
    if not shifts:
        return None
    return association(
        [shift.change for shift in shifts],
        [known[shift.modifier.word].bias for shift in shifts],
        [shift.modifier.block for shift in shifts],
    )


def count(material: Material) -> list[NounCounts]:
    """Count the nouns after the 24 modifiers in the corpus; return [] without a corpus."""
    path = corpus_of(material)
    if path is None:
        return []
    singular, plural = _noun_forms(material)
    with path.open(encoding="utf-8") as file:
        lines = (line for _, line in zip(range(material.settings.corpus_lines), file, strict=False))
        return count_nouns(lines, [m.word for m in MODIFIERS], singular=singular, plural=plural)


def corpus_of(material: Material) -> Path | None:
    """Return the corpus of the settings, else of the embedded models; None if it does not exist."""
    path = material.settings.corpus or (
        embedded.corpus_path() if material.lm.name in embedded.NAMES else None
    )
    return path if path is not None and path.is_file() else None


def _noun_forms(material: Material) -> tuple[set[str], set[str]]:
    """Collect noun forms by number from the pairs that turn on a demonstrative."""
    plural_words = {"these", "those"}
    forms: tuple[set[str], set[str]] = (set(), set())
    for case in material.cases:
        request = case.request
        subject, true = request.subject.lower(), request.target_true.lower()
        if case.task != "pair":
            continue
        if subject in NUMBER_CLASS:
            is_plural = subject in plural_words
            forms[is_plural].add(true)
            forms[not is_plural].add(request.target_new.lower())
        elif true in NUMBER_CLASS:
            forms[true in plural_words].add(subject)
    return forms
