"""Data sets of questions: WikiBigEdit as the hub has it, QAEdit, HalluEditBench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.fact_row import FactRow, Inverse, LeftOut
from kn_bench.cases.case import Cloze
from kn_bench.cases.sources.forms.common import (
    NO_ANSWER,
    cloze_of,
    edited_prompt,
    follows,
    new_answers,
    optional,
    prompts,
    text,
    unanswered,
    unrelated,
)

LOCALITY = "locality/other_relation"
CHOICE = "the question offers answers to choose from, and an edit is not asked that way"


def wikibigedit(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of WikiBigEdit (Thede et al. 2025)."""
    subject, new = text(fields, "subject"), new_answers(fields, "ans")
    prompt, suffix, subject = edited_prompt(_question(fields, "update"), subject)
    return FactRow(
        relation=optional(fields, "tag"),
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true="",
        target_new=new[0],
        aliases=new[1:],
        id=id,
        paraphrases=tuple(
            cloze_of(question, question=True)
            for name in ("rephrase", "personas")
            for question in prompts(fields, name)
        ),
        neighbours=tuple(unrelated(fields)),
        portability=tuple(follows("Reasoning", fields, "mhop", "mhop_ans")),
        left_out=(
            *unanswered(LOCALITY, fields, "loc", "loc_ans"),
            *unanswered("portability/Reasoning", fields, "mhop", "mhop_ans"),
        ),
    )


def qaedit(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of QAEdit (Yang et al. 2025)."""
    subject, given = text(fields, "subject"), new_answers(fields, "target")
    new = [answer.rstrip("* ") for answer in given]
    prompt, suffix, subject = edited_prompt(_question(fields, "prompt"), subject)
    return FactRow(
        relation=optional(fields, "source"),
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true="",
        target_new=new[0],
        aliases=tuple(new[1:]),
        id=optional(fields, "id", id),
        paraphrases=tuple(
            cloze_of(question, question=True) for question in prompts(fields, "rephrase")
        ),
        neighbours=tuple(
            neighbour for entry in fields.get("locality") or [] for neighbour in unrelated(entry)
        ),
        left_out=tuple(
            left_out
            for entry in fields.get("locality") or []
            for left_out in unanswered(LOCALITY, entry, "loc", "loc_ans")
        ),
    )


def hallueditbench(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record of HalluEditBench (Huang et al. 2025).

    What the unedited model is to be cured of stands in a column named ``output_…``; it is taken
    for the answer before the edit. The reversed question asks for the inverse relation.
    """
    subject, new = text(fields, "subject"), new_answers(fields, "object")
    output = next((name for name in fields if name.startswith("output_")), "output_")
    said = optional(fields, output)
    prompt, suffix, subject = edited_prompt(text(fields, "question"), subject)
    reverse = optional(fields, "reversed_relation_question")
    about_new: Cloze | None = cloze_of(reverse, question=True) if reverse else None
    return FactRow(
        relation=optional(fields, "relation"),
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true=said if said != new[0] else "",
        target_new=new[0],
        aliases=new[1:],
        id=id,
        paraphrases=tuple(
            cloze_of(question, question=True)
            for question in prompts(fields, "paraphrased_question")
        ),
        inverse=Inverse(about_new, None, "") if about_new is not None else None,
        portability=tuple(
            question
            for n in range(2, 7)
            for question in follows(f"{n}hop", fields, f"question_{n}hop", f"answer_{n}hop")
        ),
        left_out=(
            *(
                left_out
                for n in range(2, 7)
                for left_out in unanswered(
                    f"portability/{n}hop", fields, f"question_{n}hop", f"answer_{n}hop"
                )
            ),
            *(LeftOut(LOCALITY, NO_ANSWER, q) for q in prompts(fields, "locality_question")),
            *(
                LeftOut(f"reliability/{name}", CHOICE, question)
                for name in ("yes_question", "no_question", "multiple_choice_with_letters")
                for question in prompts(fields, name)
            ),
        ),
    )


def _question(fields: Mapping[str, Any], name: str) -> str:
    question = text(fields, name)
    return question if question.endswith("?") else f"{question}?"
