"""zsRE (Levy et al. 2017; De Cao et al. 2021), in the JSON that MEND, ROME and EasyEdit publish.

Questions: the rephrased one asks for generality, the unrelated one (Natural Questions) for
locality. EasyEdit's copy adds a question one hop on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.fact_row import FactRow, Neighbour, Portability
from kn_bench.cases.sources.forms import knowedit
from kn_bench.cases.sources.forms.common import (
    Unusable,
    answers,
    cloze_of,
    edited_prompt,
    text,
    unanswered,
)

UNRELATED = "nq question: "


def mend(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record with ``src``, ``alt`` and ``answers``."""
    if not isinstance(fields.get("portability") or {}, Mapping):
        raise ValueError("portability: expected an object")
    subject, true = text(fields, "subject"), answers(fields["answers"])
    if not true:
        raise Unusable("the data brings no true answer")
    added = fields.get("portability") or {}
    grouped = {"portability": {k: v for k, v in added.items() if isinstance(v, list)}}
    prompt, suffix, subject = edited_prompt(_question(text(fields, "src")), subject)
    return FactRow(
        relation="",
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true=true[0],
        true_aliases=true[1:],
        target_new=text(fields, "alt"),
        id=id,
        paraphrases=(cloze_of(text(fields, "rephrase"), question=True),),
        neighbours=tuple(_unrelated(fields)),
        portability=(*_one_hop(fields), *knowedit.portability(grouped)),
        left_out=(
            *unanswered("locality/other_relation", fields.get("loc"), fields.get("loc_ans")),
            *unanswered(
                "portability/Reasoning", added.get("New Question"), added.get("New Answer")
            ),
            *knowedit.left_out(grouped),
        ),
    )


def _question(source: str) -> str:
    return source if source.endswith("?") else f"{source}?"


def _unrelated(fields: Mapping[str, Any]) -> list[Neighbour]:
    expected = answers(fields.get("loc_ans", ""))
    if "loc" not in fields or not expected:
        return []
    question = text(fields, "loc").removeprefix(UNRELATED).strip()
    cloze = cloze_of(question, question=True)
    return [Neighbour(cloze, expected[0], "other_relation", expected[1:])]


def _one_hop(fields: Mapping[str, Any]) -> list[Portability]:
    added = fields.get("portability") or {}
    expected = answers(added.get("New Answer", ""))
    if not expected:
        return []
    cloze = cloze_of(text(added, "New Question"), question=True)
    return [Portability("Reasoning", cloze, expected)]
