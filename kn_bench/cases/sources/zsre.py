"""zsRE (Levy et al. 2017; De Cao et al. 2021), in the JSON that MEND, ROME and EasyEdit publish.

Questions, so the answer follows a question mark. The rephrased question asks for generality, the
unrelated one (Natural Questions) for locality. There is no relation: all are ``zsre``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kn_bench.cases.building.rows import FactRow, Neighbour, row_cases
from kn_bench.cases.case import Exclusion, Selection
from kn_bench.cases.reading import list_of_objects
from kn_bench.cases.sources.jsonl import cloze_of, with_place

SOURCE = "zsre"
UNRELATED = "nq question: "


def load(
    path: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """The cases of a zsRE file.

    Args:
        path: the JSON file.
        limit: cases; all when None.
        relations: ``zsre``, or all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, naming the record that is not in zsRE's form.
    """
    rows, excluded = read(path) if path is not None else ([], [])
    found = row_cases(rows, source=SOURCE, limit=limit, relations=relations, seed=seed)
    return Selection(found.cases, (*found.exclusions, *excluded))


def relation_ids(path: Path | None = None) -> tuple[str, ...]:
    """The one relation."""
    return (SOURCE,)


def read(path: Path) -> tuple[list[FactRow], list[Exclusion]]:
    """The records of a file as rows, and those that cannot be edited."""
    rows, excluded = [], []
    for i, record in enumerate(list_of_objects(path)):
        try:
            row = _row(record, str(i))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path.name}, record {i}: not in zsRE's form ({type(error).__name__}: {error}); "
                "a record has subject, src, alt, answers, rephrase, loc and loc_ans"
            ) from None
        except ValueError as error:
            excluded.append(_excluded(i, "the question does not name the subject once", str(error)))
            continue
        if row.target_new == row.target_true:
            excluded.append(_excluded(i, "the new target is the true one", row.target_new))
        else:
            rows.append(row)
    return rows, excluded


def _excluded(record: int, reason: str, detail: str) -> Exclusion:
    return Exclusion(f"{SOURCE}/{SOURCE}/{record}", reason, detail=detail)


def _row(record: dict[str, Any], id: str) -> FactRow:
    loc = record["loc"].removeprefix(UNRELATED).strip()
    question = loc if loc.endswith("?") else f"{loc}?"
    answer = record["loc_ans"]
    return FactRow(
        relation=SOURCE,
        subject=record["subject"].strip(),
        prompt=with_place(record["src"].strip(), record["subject"].strip()),
        target_true=record["answers"][0].strip(),
        target_new=record["alt"].strip(),
        suffix="",
        id=id,
        paraphrases=(cloze_of(record["rephrase"].strip()),),
        neighbours=(
            Neighbour(
                cloze_of(question), answer if isinstance(answer, str) else answer[0],
                "other_relation",
            ),
        ),
    )  # fmt: skip
