"""KnowEdit (Zhang et al. 2024): ZsRE, wiki_recent, wiki_counterfact, WikiBio.

Portability there: *Subject_Aliasing* the same question by another name of the subject; *Reasoning*
one hop past the new object; *Logical_Generalization* facts that follow from the relation. Locality:
*Relation_Specificity* other relations of the subject; *Forgetfulness* the other true objects of a
one-to-many relation stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.rows import FactRow, Neighbour, Portability
from kn_bench.cases.sources.forms.common import (
    Unusable,
    answers,
    cloze_of,
    edited_prompt,
    optional,
    text,
)

PORTABILITY = ("Subject_Aliasing", "Reasoning", "Logical_Generalization")
LOCALITY = {"Relation_Specificity": "other_relation", "Forgetfulness": "same_relation"}


def facts(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of ZsRE, wiki_recent or wiki_counterfact."""
    subject, new = text(fields, "subject"), answers(fields["target_new"])
    true = answers(fields.get("ground_truth", ""))
    if not new:
        raise Unusable("the data brings no new answer")
    prompt, suffix, subject = edited_prompt(text(fields, "prompt"), subject)
    return FactRow(
        relation=optional(fields, "relation"),
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true=true[0] if true else "",
        target_new=new[0],
        aliases=new[1:],
        id=optional(fields, "case_id", id),
        paraphrases=tuple(map(cloze_of, _rephrased(fields))),
        neighbours=tuple(
            Neighbour(cloze, expected[0], LOCALITY[group])
            for group, cloze, expected in probes(fields.get("locality"), tuple(LOCALITY))
        ),
        portability=tuple(
            Portability(group, cloze, expected)
            for group, cloze, expected in probes(fields.get("portability"), PORTABILITY)
        ),
    )


def biography(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of WikiBio: a text to be continued by ``labels``."""
    subject = text(fields, "concept")
    prompt, suffix, subject = edited_prompt(text(fields, "text"), subject)
    return FactRow(
        relation="",
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true="",
        target_new=text(fields, "labels"),
        id=id,
        neighbours=tuple(
            Neighbour(cloze, expected[0], LOCALITY[group])
            for group, cloze, expected in probes(fields.get("locality"), tuple(LOCALITY))
        ),
    )


def _rephrased(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return answers(fields.get("rephrase_prompt", fields.get("rephrase", "")))


def probes(groups: Any, known: tuple[str, ...]) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Return (group, cloze, accepted answers) of every question of the ``known`` groups."""
    listed = []
    for group in known:
        for entry in (groups or {}).get(group) or []:
            expected = answers(entry.get("ground_truth", ""))
            if expected:
                listed.append((group, cloze_of(text(entry, "prompt")), expected))
    return listed
