"""A value of the wrong type in a file of cases is refused by its line, and never asked as text.

`null` must not be asked as "None", a list not as "['a']", and a text where a list belongs not
letter by letter: what is accepted is examined for these by another look at the cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kn_bench.cases import sources
from kn_bench.cases.case import Selection
from kn_bench.cases.reading import records
from kn_bench.cases.sources import blimp
from tests.published_forms import FORMS
from tests.test_cases_jsonl import CANADA, FULL, PAIR

WRONG = [None, True, ["zj"], {"zj": "zj"}, [["zj", None]], "zj"]
WRITTEN_OUT = ("None", "null", "True", "true", "['", "[[", "{'", '["')
FILES: dict[str, list[dict[str, Any]]] = {**FORMS, "facts": [CANADA, FULL], "pairs": [PAIR, PAIR]}


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
