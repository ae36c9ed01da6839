"""The gate: what falls is found, what is tolerated passes, what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import CRITERIA, Criterion
from kn_bench.results.baseline import Baseline, baseline_of, read_baseline, save_baseline
from kn_bench.results.codec import FormatError, decode, encode
from kn_bench.results.files import StoreError
from kn_bench.results.loading import load_runs
from kn_bench.testing.gate import EXIT_FELL, gate, gate_run, tolerances
from kn_bench.testing.options import Options
from kn_bench.testing.summary import end_run, show
from tests.made_up import write_run

N = 20
GOOD: dict[Criterion, list[float]] = {c: [1.0] * N for c in CRITERIA}
WORSE: dict[Criterion, list[float]] = {**GOOD, "symmetry": [0.0] * 12 + [1.0] * 8}


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    run = write_run(tmp_path, {"rome": GOOD}, run="good")
    save_baseline(load_runs([run]), tmp_path / "baseline.json")
    return tmp_path / "baseline.json"


def _run(tmp_path: Path, scores: dict[Criterion, list[float]], name: str = "now"):
    return load_runs([write_run(tmp_path, {"rome": scores}, run=name)])


def test_an_equal_run_passes(tmp_path, baseline):
    report = gate_run(baseline, _run(tmp_path, GOOD))
    assert report.passed
    assert report.status == 0
    assert report.text() == "The gate passes: none of 6 figures fell significantly.\n"


def test_a_significant_fall_fails_with_a_table(tmp_path, baseline):
    report = gate_run(baseline, _run(tmp_path, WORSE))
    assert report.status == EXIT_FELL == 10
    (fallen,) = report.fallen
    assert fallen.group.criterion == "symmetry"
    assert fallen.p == pytest.approx(2.0**-12)
    assert fallen.p_holm == pytest.approx(6 * 2.0**-12)
    text = report.text()
    assert text.startswith("The gate fails: 1 of 6 figures fell significantly.\n")
    assert "this run" in text
    assert "1.00 [0.83, 1.00]" in text
    assert "0.40 [" in text
    assert "-0.60 [" in text
    assert "reliability" not in text
    assert "| rome" in report.markdown()


def test_portability_is_not_gated(tmp_path):
    runs = [
        _run(tmp_path, {**GOOD, "portability": [score] * N}, name)
        for score, name in ((1.0, "then"), (0.0, "now"))
    ]
    save_baseline(runs[0], tmp_path / "portable.json")
    report = gate_run(tmp_path / "portable.json", runs[1])
    assert report.text() == "The gate passes: none of 6 figures fell significantly.\n"


def test_an_improvement_passes(tmp_path):
    low = write_run(tmp_path, {"rome": WORSE}, run="low")
    save_baseline(load_runs([low]), tmp_path / "low.json")
    assert gate_run(tmp_path / "low.json", _run(tmp_path, GOOD)).passed


@pytest.mark.parametrize(("fallen", "passes"), [(7, False), (6, True), (1, True)])
def test_a_fall_that_may_be_chance_passes(tmp_path, baseline, fallen, passes):
    # one-sided: 6 criteria x 2^-7 = 0.047, 6 x 2^-6 = 0.094
    scores = {**GOOD, "locality": [0.75] * fallen + [1.0] * (N - fallen)}
    assert gate_run(baseline, _run(tmp_path, scores)).passed is passes


@pytest.mark.parametrize(("tolerated", "passes"), [("0.6", True), ("0.59", False), ("0", False)])
def test_a_tolerated_fall_passes(tmp_path, baseline, tolerated, passes):
    report = gate_run(baseline, _run(tmp_path, WORSE), [f"symmetry:{tolerated}, locality:0.01"])
    assert report.passed is passes


def test_what_the_run_lacks_is_named(tmp_path, baseline):
    fewer: dict[Criterion, list[float]] = {"reliability": [1.0] * 15, "locality": [1.0] * N}
    report = gate_run(baseline, _run(tmp_path, fewer))
    assert report.passed
    assert "In the baseline, but not measured here:\n- rome on tiny-gpt2 (facts): generality, " in (
        report.text()
    )
    assert "rome on tiny-gpt2, reliability (facts): 5 cases only in the first" in report.text()


def test_a_gate_that_compares_nothing_fails(tmp_path, baseline):
    other = load_runs([write_run(tmp_path, {"kn": GOOD}, run="other")])
    report = gate_run(baseline, other)
    assert report.status == EXIT_FELL
    assert "no criterion in common" in report.text()


def test_another_model_under_the_same_name_is_pointed_out(tmp_path, baseline):
    text = baseline.read_text().replace("a" * 64, "9" * 64)
    baseline.write_text(text)
    report = gate_run(baseline, _run(tmp_path, GOOD))
    assert "tiny-gpt2 is not what the baseline was measured on (models differ)." in report.text()


@pytest.mark.parametrize("n", [N, N - 5])
def test_other_cases_are_not_taken_for_other_data(tmp_path, baseline, n):
    """The hash of the data is another one too where fewer cases were chosen."""
    baseline.write_text(baseline.read_text().replace("b" * 64, "9" * 64))
    fewer: dict[Criterion, list[float]] = {c: [1.0] * n for c in CRITERIA}
    text = gate_run(baseline, _run(tmp_path, fewer)).text()
    assert ("is not what the baseline was measured on (data differ)." in text) is (n == N)
    assert ("the cases are not those of the baseline: others were chosen, or" in text) is (n < N)


def test_noise_rarely_fails_the_gate(tmp_path):
    """Two runs of equal chances: at most 5 % of gates fail, all criteria of a method taken."""
    rng = np.random.default_rng(0)
    template = baseline_of(_run(tmp_path, GOOD))
    runs = _run(tmp_path, GOOD, "again")
    failed = 0
    for _ in range(60):
        then = [tuple(rng.random(N).round().tolist()) for _ in CRITERIA]
        scores = tuple(
            type(s)(s.task, s.model, s.method, s.criterion, s.cases, s.clusters, values)
            for s, values in zip(template.scores, then, strict=True)
        )
        base = Baseline(template.runs, {}, {}, {}, scores)
        runs.verdicts["verdict_score"] = rng.random(len(runs.verdicts)).round()
        failed += not gate(base, runs).passed
    assert failed <= 7  # of three expected at most, and two standard errors


# --- the baseline's file -------------------------------------------------------------------------


def test_a_baseline_is_small_and_comes_back(tmp_path, baseline):
    assert baseline.stat().st_size < 6 * N * 60
    stored = read_baseline(baseline)
    assert stored.runs == ("good",)
    assert stored.models == {"tiny-gpt2": "a" * 64}
    frame = stored.frame()
    assert len(frame) == 6 * N
    assert set(frame["score"]) == {1.0}
    assert frame["cluster"].nunique() == N


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no Baseline: Expecting value"),
        ("[]", "holds no Baseline: expected an object, found a list"),
        ('{"runs": []}', "field 'models' is missing"),
    ],
)
def test_a_broken_baseline_is_one_sentence(tmp_path, text, message):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(StoreError) as error:
        read_baseline(tmp_path / "b.json")
    assert message in str(error.value)
    assert str(error.value).endswith("; make a new one with --save-baseline")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"set": "kn.steps=[1, 2] rome.layer=3"}, ()),
        ({"set": "rome.layer=3"}, ()),  # kn is not measured
        ({"set": "rome.layer=4"}, ("rome.layer: 3 in the baseline, 4 now.",)),
        ({}, ("rome.layer: 3 in the baseline, not set now.",)),
        (
            {"set": "rome.layer=3 rome.steps=2", "preset rome tiny-gpt2": "lr=1"},
            (
                "preset rome tiny-gpt2: not set in the baseline, lr=1 now.",
                "rome.steps: not set in the baseline, 2 now.",
            ),
        ),
        ({"set": "rome.layer=3", "preset rome gpt2": "lr=1"}, ()),  # another model
        (
            {"set": "rome.layer=3", "chat template of tiny-gpt2": "a1", "chat template of x": "b"},
            ("chat template of tiny-gpt2: not set in the baseline, a1 now.",),
        ),
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_settings_that_are_not_those_of_the_baseline_are_told(tmp_path, now, said, old):
    """As other models and data are; the gate passed or failed without a sign of it."""
    then = {"set": "rome.layer=3 kn.steps=[1, 2]", "methods": "rome kn"}
    run = write_run(tmp_path, {"rome": GOOD, "kn": GOOD}, run="good", options=then)
    path = tmp_path / "baseline.json"
    save_baseline(load_runs([run]), path)
    assert read_baseline(path).settings == {"rome.layer": "3", "kn.steps": "[1, 2]"}
    if old:
        content = json.loads(path.read_text())
        del content["settings"]
        path.write_text(json.dumps(content))
    again = write_run(tmp_path, {"rome": GOOD}, run="again", options=now)
    report = gate_run(path, load_runs([again]))
    assert report.passed
    assert report.notes == (() if old else said)


def test_a_missing_baseline_says_how_to_make_one(tmp_path):
    with pytest.raises(StoreError, match="make one by a run with --save-baseline"):
        read_baseline(tmp_path / "none.json")


def test_columns_of_unequal_length_are_refused(baseline):
    raw = json.loads(baseline.read_text())
    raw["scores"][0]["scores"].pop()
    with pytest.raises(FormatError, match="20 cases, 20 clusters and 19 scores"):
        decode(Baseline, json.dumps(raw))


def test_a_run_without_scores_makes_no_baseline(tmp_path, baseline):
    runs = load_runs([tmp_path / "runs" / "good"])
    runs.verdicts["verdict_score"] = np.nan
    with pytest.raises(StoreError, match="no case of this run has a score"):
        save_baseline(runs, tmp_path / "empty.json")
    assert not (tmp_path / "empty.json").exists()


# --- tolerances ----------------------------------------------------------------------------------


def test_tolerances_are_read():
    assert tolerances(["symmetry:0.05,locality:0.01", " overturn : 1"]) == {
        "symmetry": 0.05,
        "locality": 0.01,
        "overturn": 1.0,
    }
    assert tolerances([]) == {}


@pytest.mark.parametrize(
    "text", ["luck:0.1", "symmetry", "symmetry:x", "symmetry:-1", "symmetry:nan", ""]
)
def test_what_is_no_tolerance_is_one_sentence(text):
    with pytest.raises(StoreError) as error:
        tolerances([text])
    assert str(error.value) == (
        f"--gate {text!r}: expected CRITERION:FALL, such as symmetry:0.05, with a "
        "fall from 0 to 1 and a criterion of reliability, generality, locality, symmetry, "
        "synonym, overturn"
    )


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        falls = tolerances([text])
    except StoreError:
        falls = {}
    assert all(0 <= value <= 1 for value in falls.values())


def test_a_baseline_is_plain_json(baseline):
    assert decode(Baseline, encode(read_baseline(baseline))) == read_baseline(baseline)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_a_run_becomes_the_baseline_only_where_the_gate_passes(tmp_path, passes, same):
    held = tmp_path / "held.json"
    save_baseline(load_runs([write_run(tmp_path, {"rome": GOOD}, run="held")]), held)
    saved = held if same else tmp_path / "saved.json"
    before = held.read_text()
    run = write_run(tmp_path, {"rome": GOOD if passes else WORSE}, run="now")
    options = Options(baseline=held, save_baseline=saved, reports=tmp_path)
    ending = end_run(run, options)
    assert ending.gate is not None
    assert ending.gate.passed == passes
    assert (saved.exists() and saved.read_text() != before) == passes
    said = mock.Mock()
    show(said, ending, options)
    written = [call.args[0] for call in said.write_line.call_args_list]
    not_written = f"baseline not written to {saved}: the gate failed"
    assert (f"baseline written to {saved}" if passes else not_written) in written
