"""RippleEdits (Cohen et al. 2024): what else has to change, or to stay, when a fact is edited.

Six groups of tests. A test counts only if its condition queries hold on the unedited model:
Compositionality_I when the second hop is known, Compositionality_II when the first is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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

GROUPS = {
    "Relation_Specificity": "Relation_Specificity",
    "Relation_Specifity": "Relation_Specificity",  # as some of the published files spell it
    "Logical_Generalization": "Logical_Generalization",
    "Subject_Aliasing": "Subject_Aliasing",
    "Compositionality_I": "Compositionality_I",
    "Compositionality_II": "Compositionality_II",
    "Forgetfulness": "Forgetfulness",
}
_STATEMENT = re.compile(r"^(?P<prompt>.+? (?:is|are|was|were|in)) (?P<answer>.+?)\.?$")


def record(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record: the edit is a statement, ``The … of … is ….``

    Raises:
        Unusable: when prompt and answer cannot be told apart in the statement.
    """
    edit = fields["edit"]
    prompt, new = _statement(text(edit, "prompt"))
    original = edit.get("original_fact") or {}
    before = _statement(text(original, "prompt"))[1] if original.get("prompt") else ""
    subject = _subject(edit, prompt)
    return FactRow(
        relation=optional(edit, "relation"),
        subject=subject,
        prompt=place_subject(prompt, subject),
        target_true=before if before != new else "",
        target_new=new,
        id=id,
        portability=tuple(_tests(fields)),
    )


def _statement(statement: str) -> tuple[str, str]:
    match = _STATEMENT.match(statement.strip())
    if match is None:
        raise Unusable("prompt and answer cannot be told apart in the statement", statement)
    return match["prompt"], match["answer"]


def _subject(edit: Mapping[str, Any], prompt: str) -> str:
    """Return what stands after the last "of" of the prompt, where the record names no subject."""
    named = edit.get("subject")
    if isinstance(named, str) and named:
        return named
    of = re.search(r"\bof (.+?) (?:is|are|was|were|in)$", prompt)
    if of is None:
        raise Unusable("the statement does not say which of its words are the subject", prompt)
    return of[1]


def _tests(fields: Mapping[str, Any]) -> Iterator[Portability]:
    for name, group in GROUPS.items():
        for test in fields.get(name) or []:
            conditions = tuple(
                Query(cloze_of(text(query, "prompt")), expected[0])
                for query in test.get("condition_queries") or []
                if (expected := answers(query.get("answers")))
            )
            for query in test.get("test_queries") or []:
                expected = answers(query.get("answers"))
                if expected:
                    cloze = cloze_of(text(query, "prompt"))
                    yield Portability(group, cloze, expected, conditions)
