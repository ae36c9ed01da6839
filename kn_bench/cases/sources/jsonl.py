"""Your own facts and minimal pairs: JSON lines, a JSON list, CSV, TSV or Parquet.

A fact needs four fields:

    {"subject": "Canada", "prompt": "The capital of {} is",
     "target_true": "Ottawa", "target_new": "Paris"}

The answer's place in ``prompt`` is its end, after a space unless the prompt ends with what opens a
quote or a bracket; or ``[Y]``, whose neighbours stay as they are (``is "[Y]".``). A fact may have

    relation     "P36"; the file's name when missing
    id           name in test ids, a text or a number; the subject when missing
    suffix       text after the answer; "." when missing ("" after a question)
    paraphrases  ["The seat of government of {} is", "[Y] is the capital of {}."]: generality;
                 the answer's place is [Y], or the end
    synonyms     [{"prompt": "{} is ruled from", "target_true": "Ottawa", "target_new": "Paris"}];
                 a text alone keeps the targets
    neighbours   [{"prompt": "The capital of France is", "answer": "Paris"}]: locality; drawn from
                 the other facts of the relation when missing
    inverse      {"prompt": "{} is the capital of", "displaced": "France"}: symmetry; {} is either
                 target, displaced is whose the new target is now
    aliases      ["City of Paris"]: further names of target_new that count as it

A minimal pair needs ``good`` and ``bad``, and may have ``paradigm``, ``agreeing`` (the word that
governs; the gap's neighbour when missing), ``scoring`` (gap, two_prefix, sentence) and ``id``:

    {"good": "He sold this book.", "bad": "He sold this books.", "agreeing": "this"}

The same names are the columns of CSV, TSV and Parquet; a cell that holds more than a text
(paraphrases, neighbours, inverse) holds it as JSON. Null and an empty cell are no value. The
subject may stand in the prompt in full, as a whole word, where ``{}`` is to stand.

The published files of BLiMP's relatives (RuBLiMP, TurBLiMP, SLING, ZhoBLiMP, JBLiMP, BLiMP-NL,
MultiBLiMP) are read as minimal pairs: the columns of :data:`RELATIVES` are taken for ``good`` and
``bad``, the others are passed over. They are scored as whole sentences, as their authors do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any, get_args

from kn_bench.cases.building.fact_row import FactRow, Inverse, Neighbour, Synonym
from kn_bench.cases.building.neighbours import FACTS
from kn_bench.cases.building.pairs import pair_cases
from kn_bench.cases.building.paradigms import Paradigm
from kn_bench.cases.building.rows import row_cases
from kn_bench.cases.building.spans import MinimalPair
from kn_bench.cases.case import HALF_A_CHARACTER, Case, Exclusion, Scoring, Selection
from kn_bench.cases.cloze import PLACE, Cloze, default_suffix, end_of, split
from kn_bench.cases.normalise import words
from kn_bench.cases.sampling import slug
from kn_bench.cases.sources import forms
from kn_bench.cases.sources.forms.common import occurrences, optional
from kn_bench.cases.sources.records import (
    FileRecord,
    has_half_a_character,
    json_cell,
    names_of,
    read_records,
)

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
UNREAD = re.compile(
    r"\.(jsonl?|csv|tsv|parquet)\.(gz|bz2|xz|zst|zip|7z|lz4|bak|old|txt)$"
    r"|\.(ndjson|jsonlines|json5|xlsx?|ods|arrow|feather)$",
    re.IGNORECASE,
)
"""Names of files that look like data and are not read."""
FACT_FIELDS = (
    "subject", "prompt", "target_true", "target_new", "relation", "id", "suffix", "paraphrases",
    "synonyms", "neighbours", "inverse", "aliases",
)  # fmt: skip
NESTED_FIELDS = ("paraphrases", "synonyms", "neighbours", "inverse", "aliases")
PAIR_FIELDS = ("good", "bad", "paradigm", "agreeing", "scoring", "id")

RELATIVES = (
    ("sentence_good", "sentence_bad"),  # BLiMP, SLING, ZhoBLiMP, BLiMP-NL
    ("good_sentence", "bad_sentence"),  # TurBLiMP, JBLiMP
    ("source_sentence", "target_sentence"),  # RuBLiMP: the first is grammatical
    ("sen", "wrong_sen"),  # MultiBLiMP
)
PARADIGM_COLUMNS = ("UID", "paradigm", "PID", "phenomenon", "linguistic_phenomenon")

REPEATED_PAIR = "the same minimal pair is listed again; its first copy is kept"

FileRow = FactRow | MinimalPair | Exclusion


def load(
    path: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Return the cases of a JSONL file, or of all those in a folder.

    Args:
        path: the file or folder.
        limit: cases of each relation and paradigm; all when None.
        relations: relations and paradigms to keep; all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, naming the first line that is wrong and how many are.
    """
    cases: list[Case] = []
    excluded: list[Exclusion] = []
    for file in files(path):
        rows = read(file)
        excluded += [row for row in rows if isinstance(row, Exclusion)]
        facts = [row for row in rows if isinstance(row, FactRow)]
        pairs, repeats = _each_once(row for row in rows if isinstance(row, MinimalPair))
        excluded += [
            Exclusion(f"{slug(file.stem)}/{slug(pair.paradigm)}/{slug(pair.id)}", REPEATED_PAIR)
            for pair in repeats
            if relations is None or pair.paradigm in relations
        ]
        paradigms = [Paradigm(name, name) for name in dict.fromkeys(p.paradigm for p in pairs)]
        for part in (
            row_cases(facts, source=file.stem, limit=limit, relations=relations, seed=seed),
            pair_cases(
                paradigms,
                pairs,
                source=file.stem,
                prefix=f"{slug(file.stem)}/",
                only=[p.id for p in paradigms if relations is None or p.id in relations],
                limit=limit,
                seed=seed,
                neighbours=FACTS,
            ),
        ):
            cases += part.cases
            excluded += part.exclusions
    return Selection(tuple(cases), tuple(excluded))


def _each_once(pairs: Iterable[MinimalPair]) -> tuple[list[MinimalPair], list[MinimalPair]]:
    """Return each pair at its first place, and the copies, whatever their ids."""
    first: dict[MinimalPair, MinimalPair] = {}
    repeats = []
    for pair in pairs:
        if first.setdefault(replace(pair, id=""), pair) is not pair:
            repeats.append(pair)
    return list(first.values()), repeats


def relation_ids(path: Path | None = None) -> tuple[str, ...]:
    """Return the relations and paradigms of the file or folder."""
    names = []
    for row in (row for file in files(path) for row in read(file)):
        if isinstance(row, FactRow):
            names.append(row.relation)
        elif isinstance(row, MinimalPair):
            names.append(row.paradigm)
    return tuple(dict.fromkeys(names))


def files(path: Path | None) -> list[Path]:
    """Return the JSONL files at ``path``."""
    if path is None:
        return []
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.iterdir() if file.is_file())
    listed = [file for file in inside if file.suffix.lower() in SUFFIXES]
    for file in inside:
        if file not in listed and UNREAD.search(file.name):
            raise ValueError(
                f"{file}: expected a {', '.join(SUFFIXES)} file; unpack it, save it as one of "
                "these, or take it out of the folder"
            )
    if not listed:
        raise ValueError(f"{path}: expected a {', '.join(SUFFIXES)} file; give facts")
    return listed


def read(path: Path) -> list[FileRow]:
    """Return the facts and pairs of a file.

    Raises:
        ValueError: when any line is wrong.
    """
    rows, problems = _read(path)
    form = forms.form_of(names_of(read_records(path, wrong=[]))) if problems else None
    if form is not None:
        raise ValueError(
            f"jsonl: {path.name} holds {form.title}; expected facts or minimal pairs of your own; "
            f"write {form.source}={path} or {path} alone"
        )
    if problems:
        more = f" (and {len(problems) - 1} more lines are wrong)" if len(problems) > 1 else ""
        raise ValueError(f"{path.name}, {problems[0]}{more}")
    return rows


def problems(path: Path) -> list[str]:
    """Return what is wrong with a file, a sentence a line, beginning with the line's number."""
    return _read(path)[1]


def _read(path: Path) -> tuple[list[FileRow], list[str]]:
    rows: list[FileRow] = []
    wrong: list[str] = []
    records = read_records(path, wrong=wrong)
    names = names_of(records)
    for number, record in enumerate(records, 1):
        where = record.where
        try:
            if has_half_a_character(record):
                id = f"{slug(path.stem)}/{slug(path.stem)}/{number}"
                rows.append(Exclusion(id, HALF_A_CHARACTER, detail=where))
                continue
            rows.append(_row(record, names, path.stem, number))
        except ValueError as error:
            wrong.append(f"{where}: {error}")
    return rows, sorted(wrong, key=_line_number)


def _line_number(problem: str) -> int:
    return int(problem.partition(":")[0].rpartition(" ")[2])


def _cells(record: FileRecord) -> dict[str, Any]:
    """Return the fields of a record, with the JSON read that a table has as text."""
    if not record.in_table:
        return record.fields
    fields = {}
    for name, cell in record.fields.items():
        nested = name in NESTED_FIELDS and isinstance(cell, str)
        value = (json_cell(name, cell) if cell.strip() else None) if nested else cell
        if value is not None:
            fields[name] = value
    return fields


def _row(record: FileRecord, names: Sequence[str], stem: str, number: int) -> FileRow:
    """Return the fact or pair of a record of a file whose records have ``names``."""
    entry, relatives = _cells(record), (pair for pair in RELATIVES if set(pair).issubset(names))
    columns = next((pair for pair in relatives if not entry.keys().isdisjoint(pair)), None)
    if columns is not None:
        named = next((column for column in PARADIGM_COLUMNS if entry.get(column)), None)
        paradigm = (optional(entry, named) if named else "") or stem
        good, bad = (_text(entry, column) for column in columns)
        # these data sets compare whole sentences; where a word is added ("人", "人吗") the shorter
        # one would always win at the gap alone
        return MinimalPair(paradigm, str(number), good, bad, scoring="sentence")
    if "good" in entry or "bad" in entry:
        _only(entry, PAIR_FIELDS)
        scoring: Scoring = entry.get("scoring", "gap")
        if scoring not in get_args(Scoring):
            raise ValueError(f"scoring {scoring!r}: expected one of {', '.join(get_args(Scoring))}")
        return MinimalPair(
            _text(entry, "paradigm", stem), optional(entry, "id") or str(number),
            _text(entry, "good"), _text(entry, "bad"), _text(entry, "agreeing", ""), scoring,
        )  # fmt: skip
    _only(entry, FACT_FIELDS)
    return _fact(entry, stem)


def _fact(entry: dict[str, Any], stem: str) -> FactRow:
    subject, prompt = _text(entry, "subject"), _prompt(entry)
    true, new = _text(entry, "target_true"), _text(entry, "target_new")
    if true == new:
        raise ValueError(f"target_new {true!r}: expected another answer than target_true")
    text = _one_gap(with_place(prompt, subject))
    if PLACE in text and "suffix" in entry:
        raise ValueError(
            "suffix: expected none, since [Y] in the prompt says what follows; remove it"
        )
    prompt, after = split(text, subject)
    suffix = entry.get("suffix", after or default_suffix(text))
    if not isinstance(suffix, str):
        raise ValueError(f"suffix {suffix!r}: expected a text, which may be empty")
    return FactRow(
        relation=intern(_text(entry, "relation", stem)),  # as many facts have the same
        subject=subject,
        prompt=intern(prompt),
        target_true=true,
        target_new=new,
        suffix=suffix,
        id=optional(entry, "id"),
        paraphrases=tuple(
            cloze_of(text, subject) for text in _texts(entry, "paraphrases", _prompt)
        ),
        synonyms=tuple(_synonym(value, subject, new, true) for value in _list(entry, "synonyms")),
        neighbours=tuple(map(_neighbour, _list(entry, "neighbours"))),
        inverse=_inverse(entry["inverse"], subject, new, true) if "inverse" in entry else None,
        aliases=tuple(_texts(entry, "aliases")),
    )


def with_place(prompt: str, subject: str) -> str:
    """Return ``prompt`` with ``{}`` for the subject, where it may stand in full, as a whole word.

    Raises:
        ValueError: when the subject is not in it, or its place is not clear.
    """
    marked = prompt.count("{}")
    places = [] if marked else occurrences(subject, prompt)
    if marked + len(places) != 1:
        within = "only within a longer word" if subject in prompt else "not at all"
        what = "more than once" if marked or places else within
        raise ValueError(
            f"the prompt {prompt!r}: expected the subject {subject!r} once, it stands there "
            f"{what}; mark its place by one {{}}"
        )
    if marked:
        return prompt
    (place,) = places
    return f"{prompt[: place.start()]}{{}}{prompt[place.end() :]}"


def cloze_of(text: str, subject: str = "") -> Cloze:
    """Return ``text`` with the answer at ``[Y]``, or at its end."""
    return Cloze.parse(_one_gap(text).replace("{}", subject), default_suffix(text))


def _one_gap(text: str) -> str:
    """Return ``text`` if it marks at most one place for the answer, and none for the subject."""
    if text.count("[Y]") > 1 or "[X]" in text:
        raise ValueError(
            f"the prompt {text!r}: expected [Y] at most once, for the answer, and {{}} for the "
            "subject, not [X]"
        )
    return text


def _synonym(value: object, subject: str, new: str, true: str) -> Synonym:
    if isinstance(value, str):
        return Synonym(cloze_of(_prompt({"synonyms": value}, "synonyms"), subject), new, true)
    entry = _object(value, "synonyms", ("prompt", "target_true", "target_new"))
    cloze = cloze_of(_prompt(entry), subject)
    new, true = _text(entry, "target_new", new), _text(entry, "target_true", true)
    if len(entry) > 1 and words(new) == words(true):
        raise ValueError(f"synonyms: target_new {new!r}: expected another answer than target_true")
    return Synonym(cloze, new, true)


def _neighbour(value: object) -> Neighbour:
    entry = _object(value, "neighbours", ("prompt", "answer"))
    prompt = _prompt(entry)
    if "{}" in prompt:
        raise ValueError(
            f"neighbours: the prompt {prompt!r}: expected its subject in full, not {{}}"
        )
    return _asked_again(prompt, _text(entry, "answer"))


@lru_cache(maxsize=1 << 12)
def _asked_again(prompt: str, answer: str) -> Neighbour:
    """Return a neighbour, one object for the many facts that share it."""
    return Neighbour(cloze_of(prompt), answer)


def _inverse(value: object, subject: str, new: str, true: str) -> Inverse:
    entry = _object(value, "inverse", ("prompt", "displaced"))
    prompt = _prompt(entry)
    if prompt.count("{}") != 1:
        raise ValueError(f"inverse {prompt!r}: expected {{}} in the prompt once, for the target")
    displaced = _text(entry, "displaced")
    if words(displaced) == words(subject):
        raise ValueError(f"inverse: displaced {displaced!r}: expected another than the subject")
    return Inverse(cloze_of(prompt, new), cloze_of(prompt, true), displaced)


def _object(value: object, field: str, fields: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{field} {value!r}: expected an object with {' and '.join(fields)}")
    held = {name: part for name, part in value.items() if part is not None}  # as Parquet has them
    _only(held, fields)
    return held


def _only(entry: dict[str, Any], fields: Iterable[str]) -> None:
    for name in entry:
        if name not in fields:
            raise ValueError(
                f"unknown field {name!r}: expected {', '.join(fields)}, or the fields of a "
                "published data set"
            )


def _text(entry: dict[str, Any], field: str, default: str | None = None) -> str:
    if field not in entry and default is None:
        raise ValueError(f"expected the field {field!r}; add it")
    text = entry.get(field, default)
    if not isinstance(text, str) or (not text.strip() and default != ""):
        raise ValueError(f"{field} {_shown(text)}: expected a text that is not empty")
    return text.strip()


def _prompt(entry: dict[str, Any], field: str = "prompt") -> str:
    """Return a prompt, with the white space at its end that says how the answer follows."""
    return _text(entry, field) + end_of(entry[field])


def _shown(value: object) -> str:
    return "null" if value is None else repr(value)


def _texts(entry: dict[str, Any], field: str, read: Callable[..., str] = _text) -> list[str]:
    return [read({field: value}, field) for value in _list(entry, field)]


def _list(entry: dict[str, Any], field: str) -> list[Any]:
    items = entry.get(field, [])
    if not isinstance(items, list):
        raise ValueError(f"{field} {_shown(items)}: expected a list")
    return items
