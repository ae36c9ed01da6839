"""The published forms of editing data, recognised by their fields.

A form is one row of :data:`FORMS` and one function that turns a record into a fact. What a record
does not bring (no inverse, no paraphrase, no true answer) the cases say themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.cases.building.rows import FactRow, row_cases
from kn_bench.cases.case import HALF_A_CHARACTER, Exclusion, Selection
from kn_bench.cases.sampling import slug
from kn_bench.cases.sources.forms import counterfact, knowedit, mquake, questions, ripple, zsre
from kn_bench.cases.sources.forms.common import Unusable
from kn_bench.cases.sources.records import FileRecord, has_half_a_character, read_records


class Form(NamedTuple):
    """One form of record.

    Attributes:
        source: the name before ``=``, and the first part of case ids.
        title: what the form is called in messages.
        fields: those that a record of this form has.
        read: makes a fact of a record's fields and its number.
    """

    source: str
    title: str
    fields: frozenset[str]
    read: Callable[[Mapping[str, Any], str], FactRow]


def _form(
    source: str, title: str, fields: str, read: Callable[[Mapping[str, Any], str], FactRow]
) -> Form:
    return Form(source, title, frozenset(fields.split()), read)


FORMS = (
    _form("mquake", "MQuAKE", "requested_rewrite questions new_answer", mquake.record),
    _form("counterfact", "CounterFact", "requested_rewrite", counterfact.published),
    _form("ripple", "RippleEdits", "example_type edit", ripple.record),
    _form("knowedit", "KnowEdit", "subject prompt target_new portability", knowedit.facts),
    _form("knowedit", "KnowEdit", "subject prompt target_new locality", knowedit.facts),
    _form("knowedit", "KnowEdit", "subject prompt target_new cond ground_truth", knowedit.facts),
    _form("knowedit", "KnowEdit's WikiBio", "text labels concept", knowedit.biography),
    _form("zsre", "zsRE", "subject src alt answers rephrase", zsre.mend),
    _form(
        "counterfact",
        "CounterFact in EasyEdit's flat form",
        "prompt subject target_new rephrase_prompt ground_truth",
        counterfact.flat,
    ),
    _form(
        "wikibigedit",
        "WikiBigEdit in its flat form",
        "prompt subject target_new rephrase_prompt",
        counterfact.flat,
    ),
    _form("wikibigedit", "WikiBigEdit", "update ans subject", questions.wikibigedit),
    _form("qaedit", "QAEdit", "prompt target subject rephrase", questions.qaedit),
    _form(
        "hallueditbench",
        "HalluEditBench",
        "subject relation object question",
        questions.hallueditbench,
    ),
)
"""The first form that a record fits is its form: the more telling fields come first."""
SOURCES = tuple(dict.fromkeys(form.source for form in FORMS))


def form_of(record: FileRecord) -> Form | None:
    """Return the form that a record has, or None where no published form fits."""
    names = record.fields.keys()
    return next((form for form in FORMS if form.fields <= names), None)


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
    form = form_of(records[0])
    if form is None or (source is not None and form.source != source):
        named = ", ".join(repr(name)[1:-1] for name in list(records[0].fields)[:12])
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
            if has_half_a_character(record.fields):
                raise Unusable(HALF_A_CHARACTER)
            rows.append(_named(form.read(record.fields, str(number)), form))
        except Unusable as reason:
            case = f"{form.source}/{slug(form.source)}/{number}"
            excluded.append(Exclusion(case, str(reason), detail=reason.detail or record.where))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            what = _what(error)
            raise ValueError(
                f"{path.name}, {record.where}: expected the form of {form.title}: {what}"
            ) from None
    return form, rows, excluded


def _what(error: Exception) -> str:
    """Return what is wrong with a record that its form's reader stumbled over."""
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    if isinstance(error, ValueError):
        return str(error)
    return "a value stands where an object or a list belongs, or the other way round"


def _named(row: FactRow, form: Form) -> FactRow:
    """Return ``row`` with the source for its relation where the data names none."""
    return row if row.relation else replace(row, relation=form.source)


def relation_ids(path: Path | None = None) -> tuple[str, ...]:
    """Return the relations of a file."""
    if path is None:
        return ()
    _, rows, _ = read(path)
    return tuple(dict.fromkeys(row.relation for row in rows))
