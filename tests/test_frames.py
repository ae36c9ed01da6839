"""Frames of categories and keys as numbers, against pandas on the same rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.cases.case import CRITERIA
from kn_bench.results import keys
from kn_bench.results.columns import frame_of
from kn_bench.results.frames import (
    EXPLANATION,
    coded,
    frame_from,
    kinds_in,
    read_tables,
    uncoded,
)
from kn_bench.results.loading import explained, load_runs
from kn_bench.results.log import LOG, lines_of
from tests.made_up import write_run

SCORES = {c: [0.0, 0.25, 1.0, 1 / 3] for c in CRITERIA}
COLUMNS = ["method", "case", "sequence"]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path, {"rome": SCORES, "kn": SCORES})


@pytest.mark.parametrize("kind", ["verdict", "edit", "exclusion", "crash", "measurement"])
def test_a_frame_of_categories_holds_what_the_lines_say(run, kind):
    lines = list(lines_of(run / LOG, kind))
    plain = frame_of(lines, kind)
    # in parts of unequal dictionaries, in which nothing but the first is of a kind of its own
    tables = {"run": [coded(part, kind) for part in (lines[:1], lines[1:4], lines[4:]) if part]}
    frame = frame_from(tables, kind)
    assert (frame.pop("run") == "run").all()
    pd.testing.assert_frame_equal(uncoded(frame), plain, check_dtype=len(plain) > 0)
    assert tables == {"run": []}
    texts = [c for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype)]
    assert all(frame[c].cat.categories.is_monotonic_increasing for c in texts)


def test_rows_are_those_of_all_parts_of_a_log_in_its_order(run, monkeypatch):
    whole = frame_from({"run": _tables(run)}, "verdict")
    monkeypatch.setattr("kn_bench.results.frames.CHUNK", 3)
    monkeypatch.setattr("kn_bench.results.log.READ_AT_ONCE", 2_000)
    tables = _tables(run)
    assert len(tables) > 5
    pd.testing.assert_frame_equal(frame_from({"run": tables}, "verdict"), whole)


def _tables(run):
    return read_tables(run / LOG, ["verdict"])["verdict"]


def test_runs_stand_in_one_frame_in_the_order_given(run):
    tables = {"second": _tables(run), "first": _tables(run)[:1]}
    n = sum(map(len, tables["second"]))
    frame = frame_from(tables, "verdict")
    assert frame["run"].tolist() == ["second"] * n + ["first"] * (len(frame) - n)


def test_sentences_are_read_when_they_are_asked_for(run):
    whole, without = load_runs([run]), load_runs([run], explained=False)
    assert EXPLANATION not in without.verdicts
    some = without.verdicts[without.verdicts["case"] == without.verdicts["case"].iloc[-1]]
    every = uncoded(whole.verdicts)
    said = explained(without, some)
    pd.testing.assert_frame_equal(said[every.columns], every.loc[some.index])
    again = load_runs([run], judge_again=True, explained=False)
    assert explained(again, again.verdicts)[EXPLANATION].equals(every[EXPLANATION])


def test_kinds_of_a_verdict_are_read_from_their_text():
    assert kinds_in("") == []
    assert kinds_in("same relation\x1f1\x1f2\x1eother_task\x1f0\x1f3") == [
        ("same relation", 1, 2),
        ("other_task", 0, 3),
    ]


rows = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "z"]), st.integers(0, 2)),
    max_size=12,
)


def _frame(of, as_categories):
    frame = pd.DataFrame(of, columns=COLUMNS).astype({"method": "str", "case": "str"})
    return frame.astype({"method": "category", "case": "category"}) if as_categories else frame


@given(rows, st.booleans(), st.sampled_from([2, 20, keys.ROOM]))
def test_rows_of_a_key_are_those_of_pandas(of, as_categories, room):
    frame = _frame(of, as_categories)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "ROOM", room)  # numbers that would not fit are made smaller
        for keep in ("first", "last"):
            expected = frame.duplicated(COLUMNS, keep=keep).to_numpy()
            assert np.array_equal(keys.repeated(frame, COLUMNS, keep), expected)
        number, first = keys.groups(frame, COLUMNS)
        assert number.tolist() == frame.groupby(COLUMNS, sort=False).ngroup().tolist()
        assert frame.iloc[first].values.tolist() == frame.drop_duplicates(COLUMNS).values.tolist()
        ordered = frame.assign(key=keys.keys(frame, COLUMNS)).sort_values("key", kind="stable")
        pd.testing.assert_frame_equal(
            ordered[COLUMNS], frame.sort_values(COLUMNS, kind="stable"), check_categorical=False
        )


@given(rows, rows, st.booleans(), st.booleans(), st.sampled_from([2, keys.ROOM]))
def test_places_are_those_of_a_merge(wanted, among, one, other, room):
    ours, theirs = _frame(wanted, one), _frame(among, other)
    places: dict[tuple[object, ...], int] = {}
    for place, row in enumerate(among):
        places.setdefault(tuple(row), place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "ROOM", room)
        at = keys.places(ours, theirs, COLUMNS)
    assert at.tolist() == [places.get(tuple(row), -1) for row in wanted]


@given(rows, st.booleans())
def test_several_values_go_with_a_key(of, as_categories):
    frame = _frame(of, as_categories)
    grouped = frame.groupby(COLUMNS[:2], observed=True)["sequence"]
    expected = (grouped.transform("nunique") > 1).tolist() if of else []
    assert keys.several(frame, COLUMNS[:2], "sequence").tolist() == expected


def test_rows_are_split_by_their_number():
    assert [part.tolist() for part in keys.split(np.array([1, 0, 1, 0]))] == [[1, 3], [0, 2]]
    assert keys.split(np.zeros(0, dtype=int)) == []
