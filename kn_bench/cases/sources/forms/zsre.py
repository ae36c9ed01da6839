"""zsRE (Levy et al. 2017; De Cao et al. 2021), in the JSON that MEND, ROME and EasyEdit publish.

Questions: the rephrased one asks for generality, the unrelated one (Natural Questions) for
locality. EasyEdit's copy adds a question one hop on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.fact_row import FactRow
from kn_bench.cases.sources.forms import knowedit
from kn_bench.cases.sources.forms.common import (
    Unusable,
    answers,
    cloze_of,
    edited_prompt,
    follows,
    new_answers,
    text,
    unanswered,
    unrelated,
)

UNRELATED = "nq question: "


def mend(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record with ``src``, ``alt`` and ``answers``."""
    added = fields.get("portability") or {}
    if not isinstance(added, Mapping):
        raise ValueError("portability: expected an object")
    subject, true = text(fields, "subject"), answers(fields.get("answers"))
    new = new_answers(fields, "alt")
    if not true:
        raise Unusable("the data brings no true answer")
    grouped = {"portability": {k: v for k, v in added.items() if isinstance(v, list)}}
    prompt, suffix, subject = edited_prompt(_question(text(fields, "src")), subject)
    return FactRow(
        relation="",
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true=true[0],
        true_aliases=true[1:],
        target_new=new[0],
        aliases=new[1:],
        id=id,
        paraphrases=(cloze_of(text(fields, "rephrase"), question=True),),
        neighbours=tuple(unrelated(fields, UNRELATED)),
        portability=(
            *follows("Reasoning", added, "New Question", "New Answer"),
            *knowedit.portability(grouped),
        ),
        left_out=(
            *unanswered("locality/other_relation", fields, "loc", "loc_ans"),
            *unanswered("portability/Reasoning", added, "New Question", "New Answer"),
            *knowedit.left_out(grouped),
        ),
    )


def _question(source: str) -> str:
    return source if source.endswith("?") else f"{source}?"
