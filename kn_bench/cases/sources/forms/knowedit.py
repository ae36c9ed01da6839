"""KnowEdit (Zhang et al. 2024): ZsRE, wiki_recent, wiki_counterfact, WikiBio.

Portability there: *Subject_Aliasing* the same question by another name of the subject; *Reasoning*
one hop past the new object; *Logical_Generalization* facts that follow from the relation. Locality:
*Relation_Specificity* other relations of the subject; *Forgetfulness* the other true objects of a
one-to-many relation stay. Questions of other groups, or without an answer, are counted as left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kn_bench.cases.building.fact_row import FactRow, LeftOut, Neighbour, Portability
from kn_bench.cases.sources.forms.common import (
    NO_ANSWER,
    UNKNOWN_GROUP,
    answers,
    cloze_of,
    edited_prompt,
    new_answers,
    optional,
    prompts,
    text,
)

PORTABILITY = ("Subject_Aliasing", "Reasoning", "Logical_Generalization")
LOCALITY = {"Relation_Specificity": "other_relation", "Forgetfulness": "same_relation"}


def facts(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of ZsRE, wiki_recent or wiki_counterfact."""
    subject, new = text(fields, "subject"), new_answers(fields, "target_new")
    true = answers(fields.get("ground_truth", ""))
    prompt, suffix, subject = edited_prompt(text(fields, "prompt"), subject)
    return FactRow(
        relation=optional(fields, "relation"),
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true=true[0] if true else "",
        true_aliases=true[1:],
        target_new=new[0],
        aliases=new[1:],
        id=optional(fields, "case_id", id),
        paraphrases=tuple(map(cloze_of, _rephrased(fields))),
        neighbours=_neighbours(fields),
        portability=portability(fields),
        left_out=tuple(left_out(fields)),
    )


def biography(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of WikiBio: a text to be continued by ``labels``."""
    subject, new = text(fields, "concept"), new_answers(fields, "labels")
    prompt, suffix, subject = edited_prompt(text(fields, "text"), subject)
    return FactRow(
        relation="",
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true="",
        target_new=new[0],
        aliases=new[1:],
        id=id,
        neighbours=_neighbours(fields),
        left_out=tuple(left_out(fields)),
    )


def _rephrased(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return prompts(fields, "rephrase_prompt") or prompts(fields, "rephrase")


def portability(fields: Mapping[str, Any]) -> tuple[Portability, ...]:
    """Return the questions of portability that have an answer."""
    return tuple(
        Portability(group, cloze_of(prompt), expected)
        for group, prompt, expected in _asked(fields, "portability", PORTABILITY)
        if expected
    )


def _neighbours(fields: Mapping[str, Any]) -> tuple[Neighbour, ...]:
    return tuple(
        Neighbour(cloze_of(prompt), expected[0], LOCALITY[group], expected[1:])
        for group, prompt, expected in _asked(fields, "locality", LOCALITY)
        if expected
    )


def _asked(
    fields: Mapping[str, Any], name: str, groups: Iterable[str]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield (group, prompt, accepted answers) of every question of ``groups``."""
    given = fields.get(name) or {}
    for group in groups:
        for entry in given.get(group) or []:
            yield group, text(entry, "prompt"), answers(entry.get("ground_truth", ""))


def left_out(fields: Mapping[str, Any]) -> Iterator[LeftOut]:
    """Yield the questions without an answer, and those of groups that KnowEdit does not have."""
    for name, groups in (("portability", PORTABILITY), ("locality", tuple(LOCALITY))):
        for group, prompt, expected in _asked(fields, name, groups):
            if not expected:
                yield LeftOut(f"{name}/{group}", NO_ANSWER, prompt)
        given = fields.get(name) or {}
        for group, prompt, _ in _asked(fields, name, [g for g in given if g not in groups]):
            yield LeftOut(f"{name}/{group}", UNKNOWN_GROUP, prompt)
