"""CounterFact (Meng et al. 2022): as published, and in the flat form of EasyEdit and LocFT.

Paraphrase prompts ask for generality, neighbourhood prompts (other subjects with the same object)
for locality. CounterFact+ puts the edited prompt and its new answer in front of the neighbourhood
prompts, which are asked as they stand. There are no inverse questions and no synonyms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kn_bench.cases.building.fact_row import FactRow, LeftOut, Neighbour
from kn_bench.cases.case import OpenEnded
from kn_bench.cases.sources.forms.common import (
    NO_ANSWER,
    answers,
    cloze_of,
    each_prompt,
    edited_prompt,
    new_answers,
    optional,
    place_subject,
    prompts,
    text,
    texts,
)

UNPAIRED = "the data brings another number of answers than of questions"


def published(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a record with ``requested_rewrite``."""
    rewrite = fields["requested_rewrite"]
    prompt, subject = place_subject(text(rewrite, "prompt"), text(rewrite, "subject"))
    true, new = text(rewrite["target_true"], "str"), text(rewrite["target_new"], "str")
    return FactRow(
        relation=text(rewrite, "relation_id"),
        subject=subject,
        prompt=prompt,
        target_true=true,
        target_new=new,
        id=optional(fields, "case_id", id),
        paraphrases=tuple(map(cloze_of, texts(fields, "paraphrase_prompts"))),
        neighbours=tuple(
            Neighbour(cloze_of(prompt), true, "same_object")
            for prompt in texts(fields, "neighborhood_prompts")
        ),
        open_ended=OpenEnded(
            prompts(fields, "generation_prompts"),
            str(rewrite["target_new"].get("id", "")),
        ),
    )


def flat(fields: Mapping[str, Any], id: str) -> FactRow:
    """Return the row of a flat record: EasyEdit's CounterFact, WikiBigEdit as LocFT has it."""
    subject, new = text(fields, "subject"), new_answers(fields, "target_new")
    prompt, suffix, subject = edited_prompt(text(fields, "prompt"), subject)
    true = answers(fields.get("ground_truth", ""))
    kind, asked = "same_object" if true else "other_relation", _neighbours(fields)
    return FactRow(
        relation=optional(fields, "relation_id") or optional(fields, "relation"),
        subject=subject,
        prompt=prompt,
        suffix=suffix,
        target_true=true[0] if true else "",
        true_aliases=true[1:],
        target_new=new[0],
        aliases=new[1:],
        id=optional(fields, "case_id", id),
        paraphrases=tuple(map(cloze_of, prompts(fields, "rephrase_prompt"))),
        neighbours=tuple(Neighbour(cloze_of(p), a[0], kind, a[1:]) for p, a in asked if a),
        left_out=tuple(
            LeftOut(f"locality/{kind}", NO_ANSWER if a is not None else UNPAIRED, p)
            for p, a in asked
            if not a
        ),
    )


def _neighbours(fields: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...] | None]]:
    """Return each neighbour's prompt with its answers, None where it is not clear which."""
    asked = each_prompt(fields, "locality_prompt")
    given = fields.get("locality_ground_truth", "")
    if isinstance(given, list) and len(given) == len(asked):
        paired: list[tuple[str, tuple[str, ...] | None]]
        paired = list(zip(asked, map(answers, given), strict=True))
    elif isinstance(given, list) and len(asked) > 1:
        paired = [(prompt, None) for prompt in asked]
    else:
        paired = [(prompt, answers(given)) for prompt in asked]
    return [pair for pair in dict.fromkeys(paired) if pair[0]]
