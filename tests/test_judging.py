"""Verdicts by column are those of the definition, row by row: made-up logs, and one of a model."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import kn_bench as kn
from kn_bench.cases.case import ALL_CRITERIA, CRITERIA, Criterion, Exclusion, Task
from kn_bench.measure import judging
from kn_bench.measure.judging import judged
from kn_bench.measure.measurement import Answer, Measurement
from kn_bench.measure.verdict import STATUSES, Verdict
from kn_bench.results import rejudging
from kn_bench.results.columns import _flat, schema_of, table_of
from kn_bench.results.log import LOG, row_of, rows
from kn_bench.results.rejudging import rejudged
from kn_bench.results.rows import ExclusionRow, VerdictRow, encode_row, kind_of
from tests.made_up import NEW, OTHER, TRUE, measured, says

STAND_IN = -12345.5
"""Stands for NaN, which no log can hold: it becomes NaN in the columns and in the rows."""
COMPENSATED = ("verdict_mean_kl", "verdict_readings_tf_token")
"""What is a sum of floats, which the built-in ``sum`` of Python 3.12 adds in another way."""

# --- one log, judged in both ways --------------------------------------------------------------


def tables(log: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The measurements, exclusions and verdicts of a log, with the test of the former two."""
    lines: dict[str, list[bytes]] = {"measurement": [], "exclusion": [], "verdict": []}
    tests: dict[str, list[int]] = {"measurement": [], "exclusion": [], "verdict": []}
    for line in log.read_bytes().splitlines(keepends=True):
        kind = kind_of(line)
        if kind in lines:
            lines[kind].append(line)
            tests[kind].append(len(lines["verdict"]))
    measurements, exclusions, verdicts = (
        table_of(of_kind, kind) if of_kind else _flat(schema_of(kind).empty_table())
        for kind, of_kind in lines.items()
    )
    numbered = [
        table.append_column("test", pa.array(tests[kind], pa.int64()))
        for kind, table in (("measurement", measurements), ("exclusion", exclusions))
    ]
    return with_nan(numbered[0]), numbered[1], verdicts


def with_nan(table: pa.Table) -> pa.Table:
    """The table with NaN for its stand-in."""
    for i, field in enumerate(table.schema):
        if pa.types.is_float64(field.type):
            values = table.column(i).to_numpy()
            values = np.where(np.abs(values) == -STAND_IN, math.nan, values)
            table = table.set_column(i, field.name, pa.array(values))
    return table


def row_with_nan(row: Any) -> Any:
    """The row with NaN for its stand-in."""
    if not isinstance(row, Measurement):
        return row
    before, after = (
        replace(
            answer,
            log_prob_expected=nan_for(answer.log_prob_expected),
            log_prob_rejected=nan_for(answer.log_prob_rejected),
        )
        for answer in (row.before, row.after)
    )
    return replace(row, before=before, after=after, kl=nan_for(row.kl))


def nan_for(value: float) -> float:
    return math.nan if abs(value) == -STAND_IN else value


def by_rows(log: Path) -> pa.Table:
    """The verdicts by the definition, without the explanations of those judged again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejudging, "row_of", lambda *given: row_with_nan(row_of(*given)))
        again = list(rejudged(log))
    kept = ("not_applicable", "error")
    before = [row for row in rows(log) if isinstance(row, VerdictRow)]
    silent = [
        row
        if old.verdict.status in kept
        else replace(row, verdict=replace(row.verdict, explanation=""))
        for row, old in zip(again, before, strict=True)
    ]
    return table_of([encode_row(row).encode() for row in silent], "verdict")


def encoded(table: pa.Table, at: int) -> pa.Table:
    """The table in two chunks, each with dictionaries of its own for its texts."""
    parts = []
    for part in (table.slice(0, at), table.slice(at)):
        for i, field in enumerate(part.schema):
            if pa.types.is_string(field.type):
                part = part.set_column(i, field.name, part.column(i).dictionary_encode())
        parts.append(part)
    return pa.concat_tables(parts)


def decoded(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
    return table


def differing(ours: pa.Table, definition: pa.Table) -> list[str]:
    """The columns that are not equal to the last bit (where ``sum`` compensates: nearly)."""
    assert ours.schema == definition.schema
    return [
        name
        for name in definition.column_names
        if not ours[name].equals(definition[name])
        and not (
            sys.version_info >= (3, 12) and name in COMPENSATED and near(ours, definition, name)
        )
    ]


def near(ours: pa.Table, definition: pa.Table, name: str) -> bool:
    return bool(ours[name].to_pylist() == pytest.approx(definition[name].to_pylist(), rel=1e-12))


def closing(row: Measurement, verdict: Verdict) -> VerdictRow:
    """The verdict on the test that the measurement is of."""
    about = (row.task, row.relation, row.source, row.cluster)
    return VerdictRow(row.model, row.method, row.case, row.criterion, *about, verdict)


def written(folder: Path, log: list[Any]) -> Path:
    path = folder / LOG
    path.write_text("".join(map(encode_row, log)))
    return path


# --- made-up logs ------------------------------------------------------------------------------

KINDS_OF: dict[Criterion, tuple[str, ...]] = {
    "locality": ("same_relation", "other_task", ""),
    "symmetry": ("new_inverse", "old_inverse"),
    "generality": ("", "unconditioned"),
    "portability": ("Reasoning", "condition"),
}
ODD_KINDS = ("", "other_task", "new_inverse", "old_inverse", "condition", "unconditioned", "é")
PROBES = (
    "p/0",
    "p/1",
    "p/0/condition/0",
    "p/0/condition/1",
    "p/1/condition/0",
    "p/2",
    "p/condition",
)
TEXTS = (NEW, f" the {NEW.lower()}!", f"{NEW}. It is", TRUE, "", "¡", "São")
REJECTED = (TRUE, NEW, "", "É")
LOG_PROBS = (-math.inf, -800.0, -5.3, -2.5, -2.4, -0.1, 0.0)
ARGMAX = ("", " ", " Ott", "pa", NEW, "Ottawa ")
WHYS = ("too long", "no single token", "the subject is cut")
EXCLUDED = (None, *PROBES, "p/0/condition/7")


def made_up_answer(random: Random) -> Answer:
    """An answer as a model gives them, or one whose fields have nothing to do with each other."""
    generated = random.choice(TEXTS)
    if random.random() < 0.3:
        return says(generated, gap=random.choice([None, 0.0, random.uniform(-3, 3)]))
    return Answer(
        log_prob_expected=random.choice(LOG_PROBS),
        log_prob_rejected=random.choice(LOG_PROBS),
        prob=random.random() < 0.5,
        tf_token=random.choice([0.0, 1 / 3, 0.1, 1.0, random.random()]),
        tf_all=random.random() < 0.5,
        rank=0,
        argmax=random.choice(ARGMAX),
        generated=generated,
        gives_expected=random.random() < 0.4,
        gives_rejected=random.random() < 0.4,
    )


def made_up_measurements(
    random: Random, number: int, criterion: Criterion, task: Task
) -> list[Measurement]:
    kinds = KINDS_OF.get(criterion, ("",))
    kinds += ODD_KINDS if random.random() < 0.3 else ()
    log: list[Measurement] = []
    for probe in random.sample(PROBES, random.randrange(6)):
        is_condition = "/condition/" in probe and criterion == "portability"
        row = measured(
            criterion, made_up_answer(random), made_up_answer(random), task=task,
            kind="condition" if is_condition else random.choice(kinds),
            kl=random.choice([0.0, 0.1, math.inf, random.random()]),
            rejected=random.choice(REJECTED), case=f"toy/P36/{number}",
        )  # fmt: skip
        log.append(replace(row, probe=probe))
    if log and random.random() < 0.1:
        log[-1] = spoilt(random, log[-1])
    return log


def spoilt(random: Random, row: Measurement) -> Measurement:
    """The measurement with one number that stands for NaN."""
    before, after = replace(row.before, log_prob_expected=STAND_IN), row.after
    return random.choice([
        replace(row, kl=-STAND_IN),
        replace(row, before=before),
        replace(row, after=replace(after, log_prob_rejected=STAND_IN)),
    ])  # fmt: skip


def made_up_test(random: Random, number: int) -> list[Any]:
    """The rows of one test, closed by a verdict that need not be theirs."""
    criterion, task = random.choice(ALL_CRITERIA), random.choice(get_args(Task))
    log: list[Any] = [*made_up_measurements(random, number, criterion, task)]
    status = random.choice([*STATUSES, "holds", "missed"])
    score = 0.5 if log and status in ("holds", "missed") else None
    verdict = Verdict(status, score, "as it was", "of old")
    verdict = replace(verdict, known_before=random.choice([None, True, False]))
    last = closing(measured(criterion, says(NEW), says(NEW), task=task), verdict)
    for _ in range(random.choice([0, 0, 1, 2, 3, 4])):
        why = Exclusion(f"toy/P36/{number}", random.choice(WHYS), random.choice(EXCLUDED))
        log.append(ExclusionRow(last.model, last.method, criterion, why))
    return [*log, replace(last, case=f"toy/P36/{number}")]


# a log of some hundred tests is no smaller for being shrunk
@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(st.integers(0, 2**64), st.none() | st.integers(0, 99))
def test_columns_are_judged_as_rows_are(seed, split):
    random = Random(seed)
    log = [row for number in range(200) for row in made_up_test(random, number)]
    with TemporaryDirectory() as folder:
        path = written(Path(folder), log)
        definition, given_tables = by_rows(path), tables(path)
    if split is not None:
        given_tables = tuple(encoded(table, split) for table in given_tables)
    ours = judged(*given_tables)
    assert ours.schema == given_tables[2].schema
    assert differing(decoded(ours), definition) == []


# --- the log of a model ------------------------------------------------------------------------


RELATIONS = ("P36", "P1376", "determiner_noun_agreement_1")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """What methods of several kinds did to facts and pairs of a small model."""
    folder = tmp_path_factory.mktemp("log")
    model = kn.load_model("tiny-gpt2")
    cases = kn.load_cases("embedded", relation=RELATIONS, limit=3)
    for method in ("rome", "kn-edit", "none"):
        kn.evaluate(model, method, cases).save(folder / method)
    path: Path = folder / LOG
    path.write_bytes(b"".join((run / LOG).read_bytes() for run in sorted(folder.iterdir())))
    return path


def test_the_log_of_a_model_is_judged_as_its_rows_are(log):
    definition, given_tables = by_rows(log), tables(log)
    for column, values in (("task", get_args(Task)), ("criterion", CRITERIA)):
        assert set(definition[column].unique().to_pylist()) == set(values)
    assert definition["verdict_score"].null_count < len(definition) / 2
    assert differing(judged(*given_tables), definition) == []


@pytest.fixture
def small_log(tmp_path):
    """One test of each criterion, in which the definition makes a difference."""
    log: list[Any] = []
    for criterion in ALL_CRITERIA:
        row = measured(criterion, says(TRUE, gap=-1.0), says(NEW, gap=1.0))
        if criterion == "locality":
            row = measured(criterion, says(OTHER), says(f"{OTHER}."))
        log.append(row)
        if criterion == "portability":
            condition = measured(criterion, says(OTHER), says(NEW), kind="condition")
            log.append(replace(condition, probe=f"{row.probe}/condition/0"))
        log.append(closing(row, Verdict("excluded", None, "", "")))
    return written(tmp_path, log)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("same_answer", lambda first, second: False),
        ("is_start_of", lambda token, answer: False),
        ("conditioned", lambda probe: probe),
        ("_exp", lambda gaps: np.exp(gaps) * (1 + 1e-14)),
        ("_unchanged", lambda block: np.zeros(len(block.test), bool)),
        ("_is_nan", lambda measurements: np.ones(len(measurements), bool)),
        ("SHARED", ("generality", "locality")),
        ("UNKNOWN", {"portability": "for another reason"}),
    ],
)
def test_the_comparison_notices_another_definition(small_log, monkeypatch, name, wrong):
    definition, given_tables = by_rows(small_log), tables(small_log)
    assert differing(judged(*given_tables), definition) == []
    monkeypatch.setattr(judging, name, wrong)
    assert differing(judged(*given_tables), definition) != []


# --- what it costs and needs -------------------------------------------------------------------


def test_an_empty_block_stays_empty():
    kinds = ("measurement", "exclusion", "verdict")
    given_tables = [_flat(schema_of(kind).empty_table()) for kind in kinds]
    numbered = [t.append_column("test", pa.array([], pa.int64())) for t in given_tables[:2]]
    assert judged(numbered[0], numbered[1], given_tables[2]).equals(given_tables[2])


def test_it_needs_neither_torch_nor_pandas():
    code = "import sys, kn_bench.measure.judging; print({'torch', 'pandas'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "set()"
