"""A value of the wrong type in a file of cases is refused by its line, and never asked as text;
a value that is absent is absent alike in every form on disk.

`null` must not be asked as "None", a list not as "['a']", and a text where a list belongs not
letter by letter: what is accepted is examined for these by another look at the cases.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kn_bench.cases import sources
from kn_bench.cases.case import Selection
from kn_bench.cases.reading import records
from kn_bench.cases.sources import blimp
from kn_bench.cases.sources.forms.common import NO_ANSWER
from kn_bench.cases.sources.jsonl import NESTED_FIELDS
from tests.published_forms import FORMS
from tests.test_cases_jsonl import CANADA, FULL, PAIR

WRONG = [None, True, ["zj"], {"zj": "zj"}, [["zj", None]], "zj"]
WRITTEN_OUT = ("None", "null", "True", "true", "['", "[[", "{'", '["')
RELATIVE = {"sentence_good": "I saw this cup.", "sentence_bad": "I saw this cups.", "UID": "a"}
FILES: dict[str, list[dict[str, Any]]] = {**FORMS, "facts": [CANADA, FULL], "pairs": [PAIR, PAIR],
         "relatives": [RELATIVE, RELATIVE | {"UID": "b"}]}  # fmt: skip


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a record, those that hold others included."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for name, member in members:
        yield (*path, name)
        if isinstance(member, dict | list):
            yield from paths_of(member, (*path, name))


def replaced(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(record))
    parent: Any = copy
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    return copy


def texts_asked(selection: Selection) -> Iterator[str]:
    for case in selection.cases:
        yield from (case.request.subject, case.request.target_true, case.request.target_new)
        yield from (case.request.prompt, case.request.relation)
        for probe in case.probes:
            yield from (probe.cloze.left, probe.cloze.right, probe.expected, probe.rejected)
            yield from probe.aliases


def suspicious(selection: Selection) -> list[str]:
    """What was asked of a selection that looks like a value written out, or like a letter."""
    return [
        text
        for text in texts_asked(selection)
        if any(mark in text for mark in WRITTEN_OUT) or text in ("z", "j")
    ]


@pytest.mark.parametrize("name", FILES)
def test_no_value_of_another_type_is_asked_as_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("f.jsonl" if name in ("facts", "pairs") else "f.json")
    first, second = FILES[name]
    refused = 0
    for place in paths_of(second):
        for value in WRONG:
            path.write_text(json.dumps(first) + "\n" + json.dumps(replaced(second, place, value)))
            try:
                selection = sources.load(str(path))
            except ValueError as error:
                refused += 1
                sentence = str(error)
                assert sentence.startswith(("f.json, line 2:", "f.jsonl, line 2:")), sentence
                assert "\n" not in sentence
                assert "object has no attribute" not in sentence
                assert "unhashable" not in sentence
            else:
                assert not suspicious(selection), (place, value)
    assert refused > len(second)


@pytest.mark.parametrize("name", FILES)
def test_a_repeated_key_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("f.jsonl" if name in ("facts", "pairs") else "f.json")
    first, second = FILES[name]
    lines = json.dumps(second)
    for key in second:
        twice = lines.replace(f"{json.dumps(key)}:", f'{json.dumps(key)}: "x", {json.dumps(key)}:')
        path.write_text(f"{json.dumps(first)}\n{twice}")
        with pytest.raises(
            ValueError, match=rf"line 2: .*the field '{key}': expected once, stands there twice"
        ):
            sources.load(str(path))


@pytest.mark.parametrize("cell", ['[{"prompt":"a","prompt":"b","answer":"c"}]', "[" * 100_000])
def test_the_json_of_a_cell_is_held_to_the_same(tmp_path: Path, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    header = "subject,prompt,target_true,target_new,neighbours"
    (tmp_path / "f.csv").write_text(f"{header}\nItaly,Capital of {{}}:,Rome,Paris,{quoted}\n")
    with pytest.raises(
        ValueError, match=r"^f\.csv, line 2: (neighbours|field larger|expected CSV)"
    ):
        sources.load(str(tmp_path / "f.csv"))


@pytest.mark.parametrize("value", [None, True, ["a"], {"a": "b"}])
def test_pararel_and_blimp_are_held_to_the_same(tmp_path: Path, value: Any) -> None:
    """Both read their lines by ``records``."""
    line = {"sub_label": value, "obj_label": "Paris"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"^data\.jsonl, line 1: sub_label is .*; expected a text"):
        list(records(tmp_path / "data.jsonl", "sub_label", "obj_label"))
    good = {"sentence_good": "This dog sleeps.", "sentence_bad": value}
    (tmp_path / "determiner_noun_agreement_1.jsonl").write_text(json.dumps(good) + "\n")
    with pytest.raises(ValueError, match="line 1: "):
        blimp.load(tmp_path)


# -- what is absent ------------------------------------------------------------------------------


def on_disk(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON, CSV or Parquet, by the suffix; tables hold lists as JSON."""
    if path.suffix.startswith(".json"):
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)
    columns = dict.fromkeys(name for row in rows for name in row)
    cells = [
        [value if isinstance(value, str | int | None) else json.dumps(value)
         for value in map(row.get, columns)]
        for row in rows
    ]  # fmt: skip
    if path.suffix == ".parquet":
        table = pyarrow.table(dict(zip(columns, zip(*cells, strict=True), strict=True)))
        pyarrow.parquet.write_table(table, path)
        return str(path)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*columns], *cells])
    return str(path)


def outcome(path: str) -> object:
    """What a file gives: its cases and exclusions, or the complaint without the place."""
    try:
        selection = sources.load(path)
    except ValueError as error:
        return re.sub(r"^f\.\w+, \w+ \d+: ", "", str(error))
    return selection.cases, [(e.case, e.reason, e.probe) for e in selection.exclusions]


@pytest.mark.parametrize("name", FILES)
def test_an_absent_value_is_the_same_in_every_form_on_disk(tmp_path: Path, name: str) -> None:
    """Null, no such field, and an empty cell of CSV and Parquet."""
    first, second = FILES[name]
    suffix = ".jsonl" if name in ("facts", "pairs") else ".json"
    for field in first.keys() | second.keys():
        without = [first, {k: v for k, v in second.items() if k != field}]
        given = outcome(on_disk(tmp_path / f"f{suffix}", without))
        without[1] = {**without[1], field: None}
        for form in (suffix, ".csv", ".parquet"):
            assert outcome(on_disk(tmp_path / f"f{form}", without)) == given, (field, form)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("name", "field", "reason"),
    [
        ("counterfact flat", "target_new", "the data brings no new answer"),
        ("wikibigedit flat", "target_new", "the data brings no new answer"),
        ("knowedit", "target_new", "the data brings no new answer"),
        ("knowedit wikibio", "labels", "the data brings no new answer"),
        ("wikibigedit", "ans", "the data brings no new answer"),
        ("zsre", "alt", "the data brings no new answer"),
        ("zsre", "answers", "the data brings no true answer"),
        ("qaedit", "target", "the data brings no new answer"),
        ("hallueditbench", "object", "the data brings no new answer"),
    ],
)
def test_a_record_without_its_answer_is_one_exclusion(
    tmp_path: Path, name: str, field: str, reason: str, suffix: str
) -> None:
    first, second = FORMS[name]
    third = json.loads(json.dumps(second).replace("Ed Poe", "Flo").replace("Spain", "Malta"))
    whole = sources.load(on_disk(tmp_path / f"f{suffix}", [first, second]))
    rows = [first, {**third, field: None}, second]
    selection = sources.load(on_disk(tmp_path / f"f{suffix}", rows))
    assert len(selection.cases) == len(whole.cases) == 2
    assert [e.reason for e in selection.exclusions if e.probe is None] == [reason]


@pytest.mark.parametrize("value", [None, "", 0])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("zsre", ("loc",)),
        ("zsre", ("portability", "New Question")),
        ("wikibigedit", ("loc",)),
        ("wikibigedit", ("mhop",)),
        ("qaedit", ("locality", 0, "loc")),
        ("hallueditbench", ("question_2hop",)),
    ],
)
def test_an_answer_without_its_question_is_not_asked(
    tmp_path: Path, name: str, place: tuple[Any, ...], value: Any
) -> None:
    rows = json.loads(json.dumps(FORMS[name]))
    if name == "zsre":
        rows[1]["portability"] = {"New Question": "Who?", "New Answer": "Bo"}
    asked = [p for case in sources.load(on_disk(tmp_path / "f.json", rows)).cases
             for p in case.probes]  # fmt: skip
    path = on_disk(tmp_path / "f.json", [rows[0], replaced(rows[1], place, value)])
    if value == 0:
        with pytest.raises(ValueError, match=rf"{place[-1]} is 0; expected a text"):
            sources.load(path)
        return
    selection = sources.load(path)
    assert sum(len(case.probes) for case in selection.cases) == len(asked) - 1
    assert {e.reason for e in selection.exclusions} <= {NO_ANSWER}


def test_hops_without_an_answer_or_a_question(tmp_path: Path) -> None:
    first, second = FORMS["mquake"]
    for fields, reasons in (
        ({"new_answer": None, "new_answer_alias": None}, [NO_ANSWER] * 2),
        ({"questions": None}, list[str]()),
    ):
        selection = sources.load(on_disk(tmp_path / "f.json", [first, {**second, **fields}]))
        asked = [{p.kind for p in case.probes if p.criterion == "portability"}
                 for case in selection.cases]  # fmt: skip
        assert asked == [{"Multi_hop", "condition"}, set()]
        assert [e.reason for e in selection.exclusions] == reasons


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_part_of_an_object_may_be_absent(tmp_path: Path, suffix: str) -> None:
    """Parquet gives all objects of a column the same parts, and null to those without one."""
    synonyms: list[dict[str, str | None]]
    synonyms = [{"prompt": "{} is ruled from"}, {"prompt": "They are", "target_new": "Parisians",
                                                 "target_true": "Ottawans"}]  # fmt: skip
    expected = sources.load(on_disk(tmp_path / "f.jsonl", [{**CANADA, "synonyms": synonyms}]))
    synonyms[0] |= {"target_new": None, "target_true": None}
    row = {**CANADA, "synonyms": synonyms, "inverse": None, "aliases": None}
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "f.parquet")
    else:
        on_disk(tmp_path / "f.jsonl", [row])
    assert sources.load(str(tmp_path / f"f{suffix}")) == expected


@pytest.mark.parametrize("cell", ["", " ", "null"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_cell_of_a_table_may_hold_nothing(tmp_path: Path, suffix: str, cell: str) -> None:
    expected = sources.load(on_disk(tmp_path / "f.jsonl", [CANADA]))
    row = {**CANADA, **dict.fromkeys(NESTED_FIELDS, cell)}
    assert sources.load(on_disk(tmp_path / f"f{suffix}", [row])) == expected
