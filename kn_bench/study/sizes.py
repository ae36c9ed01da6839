"""How much a study looks at when nobody says.

All cases of an embedded model take ten minutes. Any other model is far larger, and PARAREL has 38
relations, so that a study looks at a sample: SmolLM2's takes 21 minutes on two cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kn_bench.cases.case import Case
from kn_bench.model import embedded
from kn_bench.study.material import StudySettings

RELATIONS = 3
"""How many relations, and how many paradigms, are in the sample."""
PARADIGMS = (
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_2",
    "regular_plural_subject_verb_agreement_1",
)
"""Paradigms with a class for each determiner and number, taken before any other."""
SIZES = {"facts": 3, "prompts": 4, "edited": 4, "sampled": 3, "traced": 2}
"""Settings of a study that looks at a sample; the defaults of ``StudySettings`` look at more."""


def is_sampled(model: str) -> bool:
    """Return whether only a sample of ``model`` is looked at when nobody says."""
    return model not in embedded.NAMES


def settings_for(model: str, **given: object) -> StudySettings:
    """Return the settings that were given; for those that are None, the defaults for ``model``."""
    chosen = {name: value for name, value in given.items() if value is not None}
    sizes: dict[str, object] = {**SIZES} if is_sampled(model) else {}
    return StudySettings(**(sizes | chosen))  # type: ignore[arg-type]


def sample_of(cases: Sequence[Case]) -> list[Case]:
    """Keep the cases of three relations and three paradigms.

    The relations are those whose facts are asked for most: a fact counts once for each criterion
    that it has a probe for, so that a relation with an inverse and synonyms comes before another.
    """
    asked: Counter[str] = Counter()
    for case in cases:
        if case.task == "fact":
            asked[case.relation] += len({probe.criterion for probe in case.probes})
    relations = sorted(asked, key=lambda relation: (-asked[relation], relation))[:RELATIONS]
    pairs = {case.relation for case in cases if case.task == "pair"}
    paradigms = sorted(pairs, key=lambda name: (name not in PARADIGMS, name))[:RELATIONS]
    kept = {*relations, *paradigms}
    return [case for case in cases if case.relation in kept]
