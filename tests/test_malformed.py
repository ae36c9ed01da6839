"""Whatever stands in a file, its reader reads it or refuses it in one sentence that names the file.

    pytest tests/test_malformed.py --hypothesis-profile thorough --hypothesis-show-statistics

tries 10,000 spoilt files of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import CRITERIA, Exclusion
from kn_bench.cases.sources import blimp, forms, jsonl, pararel
from kn_bench.results.baseline import baseline_of, read_baseline
from kn_bench.results.codec import encode
from kn_bench.results.files import StoreError
from kn_bench.results.loading import left_out, load_runs
from kn_bench.results.log import LOG, rows
from kn_bench.results.manifest import FILE, read_manifest
from kn_bench.results.store import EXCLUSIONS, RunStore
from tests.made_up import manifest, write_run
from tests.published_forms import FORMS
from tests.test_cases_jsonl import CANADA, FULL, PAIR

# -- what is spoilt ------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@st.composite
def spoilt_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """A stretch of the file removed, doubled, or replaced by anything."""
    start = draw(st.integers(0, len(good)))
    end = draw(st.integers(start, min(len(good), start + draw(st.sampled_from([0, 1, 9, 10**6])))))
    new = draw(
        st.just(b"")
        | st.binary(max_size=6)
        | st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace"))
        | st.just(good[start:end] * 2)
        | st.sampled_from([b'"', b"}", b"{", b"[", b"\n", b"null", b"NaN", b"1e999", b"\\ud800"])
    )
    return good[:start] + new + good[end:]


@st.composite
def spoilt_value(draw: st.DrawFn, good: bytes) -> bytes:
    """One value of one line, at any depth, replaced by anything, removed, or given a neighbour."""
    lines = good.decode().strip("\n").split("\n")
    at = draw(st.integers(0, len(lines) - 1))
    whole = json.loads(lines[at])
    place = draw(st.sampled_from(list(_places(whole))))
    if not place:
        return "\n".join([*lines[:at], json.dumps(draw(VALUES)), *lines[at + 1 :], ""]).encode()
    *path, last = place
    parent = whole
    for step in path:
        parent = parent[step]
    how = draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        parent[last] = draw(VALUES)
    elif how == "remove":
        del parent[last]
    elif isinstance(parent, dict):
        parent[draw(st.text(max_size=6))] = draw(VALUES)
    else:
        parent.append(draw(VALUES))
    return "\n".join([*lines[:at], _line(whole), *lines[at + 1 :], ""]).encode("utf-8", "replace")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Every place in a JSON value, as the keys and indices that lead there."""
    yield path
    members = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else members:
        yield from _places(item, (*path, key))


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))  # as the log writes it


def spoilt(good: bytes) -> st.SearchStrategy[bytes]:
    return spoilt_bytes(good) | spoilt_value(good)


def refusal(read: Callable[[], object], name: str) -> str:
    """What a reader says of a file; "" when it could read it. Anything but a sentence is raised."""
    try:
        read()
    except (StoreError, ValueError) as error:
        refused: Exception = error
    else:
        return ""
    assert type(refused) in (StoreError, ValueError), repr(refused)
    assert "\n" not in str(refused)
    assert name in str(refused)
    return str(refused)


def json_lines(*objects: object) -> bytes:
    return "".join(_line(record) + "\n" for record in objects).encode()


# -- case files ----------------------------------------------------------------------------------


class Files(NamedTuple):
    """Good files of a source of cases, and its reader; the first one is spoilt."""

    contents: Mapping[str, bytes]
    read: Callable[[Path], object]


PAIRS = [
    {"sentence_good": f"{who} cleaned this {noun}.", "sentence_bad": f"{who} cleaned this {noun}s.",
     "pairID": str(i), "UID": "determiner_noun_agreement_1"}
    for i, (who, noun) in enumerate([("Ann", "cup"), ("Bo", "plate"), ("Cy", "fork")])
]  # fmt: skip
PATTERNS = json_lines(
    {"pattern": "[X]'s capital is [Y].", "lemma": "be", "extended_lemma": "is"},
    {"pattern": "[Y] is the capital of [X].", "lemma": "be", "extended_lemma": "is"},
)
FACTS = json_lines(
    *(
        {"sub_label": s, "obj_label": o}
        for s, o in (("Canada", "Ottawa"), ("France", "Paris"), ("Peru", "Lima"))
    )
)
SOURCES = {
    "jsonl": Files({"mine.jsonl": json_lines(FULL, CANADA, PAIR)}, jsonl.load),
    **{
        name: Files({"data.json": json_lines(records)}, forms.load)
        for name, records in FORMS.items()
    },
    "blimp": Files(
        {"determiner_noun_agreement_1.jsonl": json_lines(*PAIRS)},
        lambda path: blimp.load(path.parent),
    ),
    "pararel-patterns": Files(
        {"patterns/P36.jsonl": PATTERNS, "facts/P36.jsonl": FACTS},
        lambda path: pararel.load(path.parent.parent),
    ),
    "pararel-facts": Files(
        {"facts/P36.jsonl": FACTS, "patterns/P36.jsonl": PATTERNS},
        lambda path: pararel.load(path.parent.parent),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("malformed")


@pytest.mark.parametrize("name", SOURCES)
@given(data=st.data())
def test_a_spoilt_case_file(folder: Path, name: str, data: st.DataObject) -> None:
    contents, read = SOURCES[name]
    for file, good in contents.items():
        path = folder / name / file
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(good)
    file, good = next(iter(contents.items()))
    path = folder / name / file
    path.write_bytes(good)
    path.write_bytes(data.draw(spoilt(good)))
    refusal(lambda: read(path), path.name)


@pytest.mark.parametrize("name", SOURCES)
def test_the_good_files_are_read(tmp_path: Path, name: str) -> None:
    contents, read = SOURCES[name]
    for file, good in contents.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(good)
    assert read(tmp_path / next(iter(contents))).cases  # type: ignore[attr-defined]


# -- what a run leaves ---------------------------------------------------------------------------


MANIFEST = manifest()


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A small run that is spoilt anew for each example."""
    return write_run(folder, {"rome": {"reliability": [1.0, 0.0], "locality": [0.5]}})


@pytest.fixture(scope="module")
def log(run: Path) -> bytes:
    return (run / LOG).read_bytes()


@given(data=st.data())
def test_a_spoilt_manifest(folder: Path, data: st.DataObject) -> None:
    path = folder / FILE
    path.write_bytes(data.draw(spoilt(encode(MANIFEST).encode())))
    refusal(lambda: read_manifest(folder), FILE)


@given(data=st.data())
def test_a_spoilt_log_is_read_or_refused_by_line(
    run: Path, log: bytes, data: st.DataObject
) -> None:
    (run / LOG).write_bytes(data.draw(spoilt(log)))
    refusal(lambda: list(rows(run / LOG)), LOG)


@settings(max_examples=40)  # a board each; the drill of spoilt files tries thousands
@given(data=st.data())
def test_a_spoilt_log_makes_no_board_of_rubbish(run: Path, log: bytes, data: st.DataObject) -> None:
    """Not by the verdicts that were written, nor by those drawn again from the measurements."""
    (run / LOG).write_bytes(data.draw(spoilt(log)))
    if not refusal(lambda: load_runs([run]), LOG):
        refusal(lambda: load_runs([run], judge_again=True), LOG)


@given(data=st.data())
def test_a_spoilt_log_is_continued_or_left_as_it_is(
    run: Path, log: bytes, data: st.DataObject
) -> None:
    content = data.draw(spoilt(log))
    (run / LOG).write_bytes(content)

    def resume() -> None:
        RunStore.resume(run.parent.parent, run.name, MANIFEST).close()

    if refusal(resume, LOG):
        assert (run / LOG).read_bytes() == content
    else:  # what is JSON, but not of the right fields, is told by those who read it
        refusal(lambda: list(rows(run / LOG)), LOG)


@given(data=st.data())
def test_spoilt_exclusions(empty: Path, data: st.DataObject) -> None:
    good = (encode(Exclusion("pararel/P36/x", "no template", None, "why")) + "\n").encode()
    (empty / EXCLUSIONS).write_bytes(data.draw(spoilt(good)))
    refusal(lambda: left_out(empty), EXCLUSIONS)


@pytest.fixture(scope="module")
def empty(folder: Path) -> Path:
    with RunStore.create(folder, manifest("empty")) as store:
        return store.folder


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    written = write_run(tmp_path_factory.mktemp("good"), {"rome": {c: [1.0] for c in CRITERIA}})
    return (encode(baseline_of(load_runs([written]))) + "\n").encode()


@given(data=st.data())
def test_a_spoilt_baseline(folder: Path, baseline: bytes, data: st.DataObject) -> None:
    path = folder / "baseline.json"
    path.write_bytes(data.draw(spoilt(baseline)))
    refusal(lambda: read_baseline(path).frame(), path.name)
