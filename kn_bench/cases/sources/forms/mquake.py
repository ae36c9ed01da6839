"""MQuAKE (Zhong et al. 2023), CF and T: edits whose consequences lie several hops away.

A record has one edit or several that belong together. A record of one edit is a case; one of
several is left out, since a case is one edit. Its three multi-hop questions ask for portability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.rows import FactRow, Portability
from kn_bench.cases.case import Query
from kn_bench.cases.sources.forms.common import (
    Unusable,
    answers,
    cloze_of,
    optional,
    place_subject,
    text,
)


def record(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record with one rewrite.

    Raises:
        Unusable: for a record that edits several facts at once.
    """
    rewrites = fields["requested_rewrite"]
    if len(rewrites) != 1:
        raise Unusable("the record edits several facts at once", f"{len(rewrites)} edits")
    rewrite = rewrites[0]
    subject = text(rewrite, "subject")
    expected = answers([fields["new_answer"], fields.get("new_answer_alias") or []])
    return FactRow(
        relation=text(rewrite, "relation_id"),
        subject=subject,
        prompt=place_subject(text(rewrite, "prompt"), subject),
        target_true=text(rewrite["target_true"], "str"),
        target_new=text(rewrite["target_new"], "str"),
        id=optional(fields, "case_id", id),
        paraphrases=(cloze_of(text(rewrite, "question"), question=True),),
        portability=tuple(
            Portability(
                "Multi_hop", cloze_of(question, question=True), expected, _second_hops(fields)
            )
            for question in answers(fields["questions"])
        ),
    )


def _second_hops(fields: Mapping[str, Any]) -> tuple[Query, ...]:
    """Return the hops of the new chain after the edited one: the model has to know them."""
    hops = (fields.get("new_single_hops") or [])[1:]
    return tuple(
        Query(
            cloze_of(text(hop, "cloze") if hop.get("cloze") else text(hop, "question")), answer[0]
        )
        for hop in hops
        if (answer := answers(hop.get("answer", "")))
    )
