"""Rows and manifests as JSON text: what is written comes back, and nothing else is let in."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import Exclusion
from kn_bench.measure.measurement import Answer, EditRecord
from kn_bench.measure.verdict import KindCount, Verdict
from kn_bench.results.codec import FormatError, decode, encode, plain
from kn_bench.results.manifest import Manifest
from kn_bench.results.rows import (
    EditRow,
    Key,
    VerdictRow,
    decode_row,
    decode_rows,
    encode_lines,
    encode_row,
)
from tests.made_up import NEW, TRUE, case_of, manifest, measured, result_of, rows_of, says


def test_rows_come_back_as_they_were():
    row = measured("reliability", says(TRUE), says(NEW))
    result = result_of([row], exclusions=[Exclusion(row.case, "too long", "generality/1", "x")])
    case = case_of([row])
    (text,) = rows_of(case, result, ["reliability"])
    first, edit, verdict = decode_rows(text)
    assert first == row
    assert edit == EditRow("tiny-gpt2", "rome", case.id, "fact", result.edit)  # type: ignore[arg-type]
    assert isinstance(verdict, VerdictRow)
    assert (verdict.key, verdict.relation, verdict.cluster) == (
        Key("tiny-gpt2", "rome", case.id, "reliability"),
        "P36",
        "Canada",
    )
    assert verdict.verdict.holds


def test_overturn_has_a_measurement_of_its_own():
    row = measured("reliability", says(TRUE), says(NEW))
    (text,) = rows_of(case_of([row]), result_of([row]), ["overturn"])
    assert decode_rows(text)[0] == replace(row, criterion="overturn")


def test_infinity_survives_and_nan_is_refused():
    never = replace(says(TRUE), log_prob_expected=-math.inf)
    row = measured("reliability", never, says(NEW), kl=math.inf)
    line = encode_row(row)
    assert "Infinity" not in line
    assert json.loads(line)["kl"] == 1e30
    assert decode_row(line) == row
    with pytest.raises(ValueError, match="kl is NaN: nothing that was measured can be NaN"):
        encode_row(replace(row, kl=math.nan))


def test_numpy_and_odd_text_survive():
    odd = replace(says("a\nb\u2028c\ud800"), rank=np.int64(3), prob=np.bool_(True))  # type: ignore[arg-type]
    row = measured("reliability", odd, says(NEW), kl=np.float32(0.5))  # type: ignore[arg-type]
    text = encode_row(row) + encode_row(row)
    assert text.encode()  # UTF-8, though a lone surrogate is not
    first, _ = decode_rows(text)
    assert first == replace(row, before=replace(odd, generated="a\nb\u2028c?", rank=3, prob=True))


def test_what_has_no_json_form_is_named():
    with pytest.raises(TypeError, match=r"notes\.model is a object, which has no JSON form"):
        plain(EditRecord(0.1, "x", 1.0, {"model": object()}))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "'row' is None, not one of measurement, exclusion, edit, verdict, crash"),
        ("[1]", "'row' is None"),
        ('{"row":"crash","model":"m"}', "field 'method' is missing"),
        ('{"row":"nope"}', "'row' is 'nope', not one of"),
        ("{", "Expecting property name"),
        (
            '{"row":"crash","model":1,"method":"","case":"","criterion":"locality","explanation":""}',
            "field 'model' holds a number, not str",
        ),
        (
            '{"row":"crash","model":"","method":"","case":"","criterion":"luck","explanation":""}',
            "field 'criterion' holds 'luck', not one of 'reliability'",
        ),
        (
            '{"row":"crash","model":"","method":"","case":"","criterion":"locality",'
            '"explanation":"","more":1}',
            "unknown field 'more'",
        ),
    ],
)
def test_a_line_that_is_no_row_is_refused_with_what_is_wrong(line, message):
    with pytest.raises(FormatError) as error:
        decode_row(line, "log, line 7")
    assert str(error.value).startswith("log, line 7 is no row of a log: ")
    assert message in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ROW = json.loads(encode_row(measured("reliability", says(TRUE), says(NEW))))
VERDICT = json.loads(
    encode_lines(
        [
            VerdictRow(
                *Key("tiny-gpt2", "rome", "embedded/P36/Canada", "locality")[:4],
                "fact",
                "P36",
                "embedded",
                "Canada",
                Verdict("missed", 0.5, "one of two", kinds=(KindCount("other_task", 1, 2),)),
            )
        ]
    )
)
MANIFEST = json.loads(encode(manifest()))


@settings(deadline=None)
@given(st.data())
def test_malformed_rows_and_manifests_are_refused_in_one_sentence(data):
    """One field of a good text replaced by anything: read, or refused as what it is."""
    good, cls = data.draw(st.sampled_from([(ROW, None), (VERDICT, None), (MANIFEST, Manifest)]))
    name = data.draw(st.sampled_from(sorted(good)))
    text = json.dumps({**good, name: data.draw(json_values)})
    cut = data.draw(st.integers(0, len(text)) | st.just(len(text)))
    said = ""
    try:
        decode(cls, text[:cut]) if cls else decode_row(text[:cut])
    except FormatError as error:
        said = str(error)
    assert "\n" not in said
    assert said or cut == len(text) or text[:cut].strip() == ""


@settings(deadline=None)
@given(st.builds(
    Answer,
    *(st.floats(max_value=0, min_value=-1e20) | st.just(-math.inf) for _ in range(2)),
    st.booleans(), st.floats(0, 1), st.booleans(), st.integers(0, 10**6),
    *(st.text(st.characters(exclude_categories=["Cs"]), max_size=9) for _ in range(2)),
    st.booleans(), st.booleans(),
))  # fmt: skip
def test_any_answer_comes_back(answer):
    row = measured("locality", answer, answer)
    assert decode_row(encode_row(row)) == row
