"""The published forms of editing data, recognised by their fields.

A form is one row of :data:`FORMS` and one function that turns a record into a fact. What a record
does not bring (no inverse, no paraphrase, no true answer) the cases say themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.cases.building.fact_row import FactRow
from kn_bench.cases.building.rows import row_cases
from kn_bench.cases.case import HALF_A_CHARACTER, Exclusion, Selection
from kn_bench.cases.sampling import slug
from kn_bench.cases.sources.forms import counterfact, knowedit, mquake, questions, ripple, zsre
from kn_bench.cases.sources.forms.common import Unusable
from kn_bench.cases.sources.records import (
    has_half_a_character,
    names_of,
    read_records,
    with_lists_read,
)


class Form(NamedTuple):
    """One form of record.

    Attributes:
        source: the name before ``=``, and the first part of case ids.
        title: what the form is called in messages.
        fields: those that tell this form from others.
        more: further fields with questions or answers that a record may have.
        read: makes a fact of a record's fields and its number.
    """

    source: str
    title: str
    fields: frozenset[str]
    more: frozenset[str]
    read: Callable[[Mapping[str, Any], str], FactRow]


def _form(
    source: str,
    title: str,
    fields: str,
    read: Callable[[Mapping[str, Any], str], FactRow],
    more: str = "",
) -> Form:
    return Form(source, title, frozenset(fields.split()), frozenset(more.split()), read)


_KNOWEDIT = "target_new ground_truth rephrase_prompt rephrase locality portability"
_FLAT = "target_new ground_truth locality_prompt locality_ground_truth"
_HOPS = " ".join(f"question_{n}hop answer_{n}hop" for n in range(2, 7))


FORMS = (
    _form(
        "mquake",
        "MQuAKE",
        "requested_rewrite questions new_answer",
        mquake.record,
        "new_answer_alias new_single_hops",
    ),
    _form(
        "counterfact",
        "CounterFact",
        "requested_rewrite",
        counterfact.published,
        "paraphrase_prompts neighborhood_prompts generation_prompts",
    ),
    _form("ripple", "RippleEdits", "example_type edit", ripple.record, " ".join(ripple.GROUPS)),
    *(
        _form(
            "knowedit", "KnowEdit", f"subject prompt target_new {told}", knowedit.facts, _KNOWEDIT
        )
        for told in ("portability", "locality", "cond ground_truth")
    ),
    _form("knowedit", "KnowEdit's WikiBio", "text labels concept", knowedit.biography, "locality"),
    _form("zsre", "zsRE", "subject src alt answers rephrase", zsre.mend, "loc loc_ans portability"),
    _form(
        "counterfact",
        "CounterFact in EasyEdit's flat form",
        "prompt subject target_new rephrase_prompt ground_truth",
        counterfact.flat,
        _FLAT,
    ),
    _form(
        "wikibigedit",
        "WikiBigEdit in its flat form",
        "prompt subject target_new rephrase_prompt",
        counterfact.flat,
        _FLAT,
    ),
    _form(
        "wikibigedit",
        "WikiBigEdit",
        "update ans subject",
        questions.wikibigedit,
        "rephrase personas loc loc_ans mhop mhop_ans",
    ),
    _form("qaedit", "QAEdit", "prompt target subject rephrase", questions.qaedit, "locality"),
    _form(
        "hallueditbench",
        "HalluEditBench",
        "subject relation object question",
        questions.hallueditbench,
        f"paraphrased_question reversed_relation_question {_HOPS}",
    ),
)
"""The first form that a file's fields fit is its form: the more telling fields come first."""
QUESTIONS = frozenset(
    ("paraphrase_prompts", "neighborhood_prompts", "questions", "new_single_hops", "rephrase",
     "rephrase_prompt", "locality_prompt", "locality", "portability", "loc", "mhop", "personas",
     "paraphrased_question", "question_2hop", "reversed_relation_question", "paraphrases",
     "synonyms", "neighbours", "inverse", "target_true", *ripple.GROUPS)
)  # fmt: skip
"""Fields in which some form, or the user's own facts, have what is asked."""
SOURCES = tuple(dict.fromkeys(form.source for form in FORMS))


def form_of(fields: Collection[str]) -> Form | None:
    """Return the form of a file whose records have ``fields``, or None where none fits."""
    return next((form for form in FORMS if form.fields.issubset(fields)), None)


def load(
    path: Path | None = None,
    *,
    source: str | None = None,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Return the cases of a file in a published form.

    Args:
        path: the file.
        source: the form that the user named; checked against what the file holds.
        limit: cases of each relation; all when None.
        relations: to keep; all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, naming the record that is not in its form.
    """
    if path is None:
        return Selection(())
    form, rows, excluded = read(path, source=source)
    selection = row_cases(rows, source=form.source, limit=limit, relations=relations, seed=seed)
    return Selection(selection.cases, (*selection.exclusions, *excluded))


def read(path: Path, *, source: str | None = None) -> tuple[Form, list[FactRow], list[Exclusion]]:
    """Return the form of a file, its facts, and the records that cannot be used with the reason.

    Raises:
        ValueError: as :func:`load`.
    """
    records = read_records(path)
    fields = names_of(records)
    form = form_of(fields)
    if form is None or (source is not None and form.source != source):
        named = ", ".join(repr(name)[1:-1] for name in fields[:12])
        holds = f"holds {form.title}" if form else f"has the fields {named}"
        wanted = f"{source}: " if source else ""
        raise ValueError(
            f"{wanted}{path.name} {holds}; expected {source or 'one of ' + ', '.join(SOURCES)}; "
            + (f"write {form.source}={path} or {path} alone" if form else "see the data formats")
        )
    rows: list[FactRow] = []
    excluded: list[Exclusion] = []
    for number, record in enumerate(records):
        try:
            if has_half_a_character(record):
                raise Unusable(HALF_A_CHARACTER)
            _refuse_unasked(record.fields, form)
            fact = form.read(with_lists_read(record, form.fields | form.more), str(number))
            rows.append(_named(fact, form))
        except Unusable as reason:
            case = f"{form.source}/{slug(form.source)}/{number}"
            excluded.append(Exclusion(case, str(reason), detail=reason.detail or record.where))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            what = _what(error)
            raise ValueError(
                f"{path.name}, {record.where}: expected the form of {form.title}: {what}"
            ) from None
    return form, rows, excluded


def _refuse_unasked(fields: Mapping[str, Any], form: Form) -> None:
    """Refuse a record with questions that its form does not ask: they would be lost silently."""
    for name in sorted(fields.keys() & (QUESTIONS - form.fields - form.more)):
        if fields[name] not in (None, "", [], {}):
            raise ValueError(
                f"it does not ask what the field {name!r} holds; give records of another form in a "
                "file of their own, or remove the field"
            )


def _what(error: Exception) -> str:
    """Return what is wrong with a record that its form's reader stumbled over."""
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    if isinstance(error, ValueError):
        return str(error)
    return "a value stands where an object or a list belongs, or the other way round"


def _named(row: FactRow, form: Form) -> FactRow:
    """Return ``row`` with the source for its relation where the data names none."""
    return row if row.relation else row._replace(relation=form.source)


def relation_ids(path: Path | None = None) -> tuple[str, ...]:
    """Return the relations of a file."""
    if path is None:
        return ()
    _, rows, _ = read(path)
    return tuple(dict.fromkeys(row.relation for row in rows))
