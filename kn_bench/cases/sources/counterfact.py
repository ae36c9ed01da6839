"""CounterFact (Meng et al. 2022), in its published JSON: a list of records.

Its paraphrase prompts ask for generality, its neighbourhood prompts (other subjects with the same
object) for locality. It has no inverse questions and no synonyms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kn_bench.cases.building.rows import FactRow, Neighbour, row_cases
from kn_bench.cases.case import Selection
from kn_bench.cases.reading import list_of_objects
from kn_bench.cases.sources.jsonl import cloze_of, with_place

SOURCE = "counterfact"


def load(
    path: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """The cases of a CounterFact file.

    Args:
        path: the JSON file.
        limit: cases of each relation; all when None.
        relations: Wikidata ids; all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, naming the record that is not in CounterFact's form.
    """
    rows = read(path) if path is not None else ()
    return row_cases(rows, source=SOURCE, limit=limit, relations=relations, seed=seed)


def relation_ids(path: Path | None = None) -> tuple[str, ...]:
    """The relations of the file."""
    return tuple(dict.fromkeys(row.relation for row in read(path))) if path is not None else ()


def read(path: Path) -> list[FactRow]:
    """The records of a file as rows."""
    rows = []
    for i, record in enumerate(list_of_objects(path)):
        try:
            rows.append(_row(record))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path.name}, record {i}: not in CounterFact's form ({type(error).__name__}: "
                f"{error}); a record has requested_rewrite with prompt, subject, relation_id, "
                "target_true.str and target_new.str"
            ) from None
    return rows


def _row(record: dict[str, Any]) -> FactRow:
    rewrite = record["requested_rewrite"]
    true, subject = rewrite["target_true"]["str"].strip(), rewrite["subject"].strip()
    return FactRow(
        relation=rewrite["relation_id"].strip(),
        subject=subject,
        prompt=with_place(rewrite["prompt"].strip(), subject),
        target_true=true,
        target_new=rewrite["target_new"]["str"].strip(),
        id=str(record["case_id"]),
        paraphrases=tuple(cloze_of(text) for text in record.get("paraphrase_prompts", ())),
        neighbours=tuple(
            Neighbour(cloze_of(text), true, "same_object")
            for text in record.get("neighborhood_prompts", ())
        ),
    )
