"""MQuAKE (Zhong et al. 2023), CF and T: edits whose consequences lie several hops away.

A record has one edit or several that belong together. A record of one edit is a case; one of
several is left out, since a case is one edit. Its three multi-hop questions ask for portability.
They count where the unedited model knows every hop of the new chain but the edited one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.fact_row import Condition, FactRow, LeftOut, Portability
from kn_bench.cases.normalise import words
from kn_bench.cases.sources.forms.common import (
    NO_ANSWER,
    Unusable,
    answers,
    cloze_of,
    optional,
    place_subject,
    prompts,
    text,
)


def record(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record with one rewrite.

    Raises:
        Unusable: for a record that edits several facts at once, or whose hops lack the edited one.
    """
    rewrites = fields["requested_rewrite"]
    if len(rewrites) != 1:
        raise Unusable("the record edits several facts at once", f"{len(rewrites)} edits")
    rewrite = rewrites[0]
    prompt, subject = place_subject(text(rewrite, "prompt"), text(rewrite, "subject"))
    expected = answers([fields.get("new_answer"), fields.get("new_answer_alias")])
    questions = prompts(fields, "questions")
    conditions = _other_hops(fields.get("new_single_hops") or [], rewrite)
    return FactRow(
        relation=text(rewrite, "relation_id"),
        subject=subject,
        prompt=prompt,
        target_true=text(rewrite["target_true"], "str"),
        target_new=text(rewrite["target_new"], "str"),
        id=optional(fields, "case_id", id),
        paraphrases=(cloze_of(text(rewrite, "question"), question=True),),
        portability=tuple(
            Portability("Multi_hop", cloze_of(question, question=True), expected, conditions)
            for question in questions
            if expected
        ),
        left_out=tuple(
            LeftOut("portability/Multi_hop", NO_ANSWER, question)
            for question in questions
            if not expected
        ),
    )


def _other_hops(hops: list[Mapping[str, Any]], rewrite: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Return the hops of the new chain that are not edited: the model has to know them.

    The edited hop, which may be any of the chain, asks what the rewrite asks; where none does, it
    is the one whose answer is the new target.
    """
    edited = text(rewrite, "prompt").replace("{}", text(rewrite, "subject"))
    asked = {words(edited), words(text(rewrite, "question"))}
    others = [
        hop
        for hop in hops
        if asked.isdisjoint(words(hop[name]) for name in ("cloze", "question") if hop.get(name))
    ]
    if len(others) == len(hops):
        new = words(text(rewrite["target_new"], "str"))
        others = [hop for hop in hops if words(text(hop, "answer")) != new]
    if hops and len(others) == len(hops):
        raise Unusable("none of the hops is the edited fact", edited)
    return tuple(map(_condition, others))


def _condition(hop: Mapping[str, Any]) -> Condition:
    accepted = answers([hop.get("answer") or "", hop.get("answer_alias") or []])
    asked = text(hop, "cloze") if hop.get("cloze") else text(hop, "question")
    if not answers(hop.get("answer") or ""):
        raise Unusable("a hop of the record has no answer", asked)
    return Condition(cloze_of(asked), accepted[0], accepted[1:])
