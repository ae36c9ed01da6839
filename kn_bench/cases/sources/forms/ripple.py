"""RippleEdits (Cohen et al. 2024): what else has to change, or to stay, when a fact is edited.

Six groups of tests. A test counts only if its condition queries hold on the unedited model:
Compositionality_I when the second hop is known, Compositionality_II when the first is. A test that
any one of several questions passes (``OR``) is left out, since none of them alone has to hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from kn_bench.cases.building.fact_row import Condition, FactRow, LeftOut, Portability
from kn_bench.cases.sources.forms.common import (
    NO_ANSWER,
    UNKNOWN_GROUP,
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
EITHER = "the test is passed by any one of several questions"
NO_CONDITION = "the data brings no answer to a condition of the question"
_VERB = r"(?:is|are|was|were)"
_SUBJECT_AT = (
    r"(.+) (?:follows|is followed by)",
    rf".+ which (.+) is (?:associated with|a member of|part of|the capital of) {_VERB}",
    rf".+ which (.+) plays in {_VERB}",
    rf".+ number of children (.+) has {_VERB}",
    rf".+ award (.+) won {_VERB}",
    rf".+ (?:currency in|performed in|held by) (.+) {_VERB}",
    rf".+ (?:gender|mother tongue) of (.+) {_VERB}",
    rf".+\bof (.+) {_VERB}",
)
"""Where the subject stands in the wordings of the published files; else after the last "of"."""


def record(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record: the edit is a statement, ``The … of … is ….``

    Raises:
        Unusable: when prompt, subject and answer cannot be told apart in the statement.
    """
    edit = fields["edit"]
    original = edit.get("original_fact") or {}
    statement = text(edit, "prompt")
    before = text(original, "prompt") if original.get("prompt") else ""
    prompt = _prompt(statement, before)
    new, old = _answer(statement, prompt), _answer(before, prompt)
    if not new:
        raise Unusable("the data brings no new answer", statement)
    placed, subject = place_subject(prompt, _subject(fields, prompt))
    tests = tuple(_tests(fields))
    return FactRow(
        relation=optional(edit, "relation"),
        subject=subject,
        prompt=placed,
        target_true=old,
        target_new=new,
        id=id,
        portability=tuple(test for test in tests if isinstance(test, Portability)),
        left_out=tuple(test for test in tests if isinstance(test, LeftOut)),
    )


def _prompt(statement: str, before: str) -> str:
    """Return the words that both statements begin with, up to the last verb among them.

    What follows that verb belongs to the answers: "is United Kingdom", "is United States".
    """
    sides = (side.removesuffix(".").split(" ") for side in (statement, before or statement))
    shared = takewhile(lambda words: words[0] == words[1], zip(*sides, strict=False))
    stem = "".join(f"{word} " for word, _ in shared)
    cut = re.match(rf".+ (?:{_VERB}|follows|followed by)(?= )", stem)
    if cut is None:
        raise Unusable("prompt and answer cannot be told apart in the statement", statement)
    return cut[0]


def _answer(statement: str, prompt: str) -> str:
    return statement.removeprefix(prompt).strip().removesuffix(".").strip()


def _subject(fields: Mapping[str, Any], prompt: str) -> str:
    """Return the words that name the subject, where the record does not say.

    They follow the name of the relation, or stand in another question about the subject too.
    """
    edit = fields["edit"]
    if edit.get("subject"):
        return text(edit, "subject")
    tail = rf"(.+) {_VERB}"
    relation = re.escape(optional(edit, "relation").replace("_", " "))
    after_relation = re.search(rf"\b{relation}(?:s| city)? of {tail}$", prompt, re.IGNORECASE)
    if relation and after_relation:
        return after_relation[1]
    questions = list(_about_the_same(fields))
    for of in re.finditer(r"\bof ", prompt):
        name = re.fullmatch(tail, prompt[of.end() :])
        if name and any(name[1] in question for question in questions):
            return name[1]
    for place in _SUBJECT_AT:
        if at := re.fullmatch(place, prompt):
            return at[1]
    raise Unusable("the statement does not say which of its words are the subject", prompt)


def _about_the_same(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the prompts that ask for another relation of the edited subject."""
    edit = fields["edit"]
    queries = (
        query
        for group in GROUPS
        for test in fields.get(group) or []
        for query in test.get("test_queries") or []
        if query.get("query_type") == "regular"
    )
    for query in queries:
        same = edit.get("subject_id") and query.get("subject_id") == edit["subject_id"]
        if same and query.get("relation") != edit.get("relation"):
            yield text(query, "prompt")


def _tests(fields: Mapping[str, Any]) -> Iterator[Portability | LeftOut]:
    for name, group in GROUPS.items():
        for test in fields.get(name) or []:
            yield from _questions(test, group)
    for name, tests in fields.items():
        if name not in GROUPS and isinstance(tests, list):
            for test in tests:
                if isinstance(test, Mapping) and "test_queries" in test:
                    yield LeftOut(f"portability/{name}", UNKNOWN_GROUP, name)


def _questions(test: Mapping[str, Any], group: str) -> Iterator[Portability | LeftOut]:
    passes_by = test.get("test_condition") or "AND"
    if passes_by not in ("AND", "OR"):
        raise ValueError(f"test_condition is {passes_by!r}; expected AND or OR")
    asked: dict[str, list[Any]] = {}
    for query in test.get("test_queries") or []:
        asked.setdefault(text(query, "prompt"), []).append(query.get("answers"))
    if passes_by == "OR" and len(asked) > 1:
        yield LeftOut(f"portability/{group}", EITHER, " / ".join(asked))
        return
    conditions = tuple(map(_condition, test.get("condition_queries") or []))
    for prompt, given in asked.items():
        for expected in [answers(given)] if passes_by == "OR" else map(answers, given):
            if not expected:
                yield LeftOut(f"portability/{group}", NO_ANSWER, prompt)
            elif None in conditions:
                yield LeftOut(f"portability/{group}", NO_CONDITION, prompt)
            else:
                known = tuple(condition for condition in conditions if condition)
                yield Portability(group, cloze_of(prompt), expected, known)


def _condition(query: Mapping[str, Any]) -> Condition | None:
    """Return what the unedited model has to know; None where the data does not say."""
    accepted = answers(query.get("answers"))
    if not accepted:
        return None
    return Condition(cloze_of(text(query, "prompt")), accepted[0], accepted[1:])
