"""A small share of the quick drills; ``make drill`` runs all of them, whole or a share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drills import cuts, edits, fuzz, kills
from benchmarks.drills.row import DrillRow, table
from tests.shares import mostly_slow

SHARES = {
    "two kills": (kills.drill, 2 / kills.KILLS),
    "every 60th byte": (cuts.drill, 1 / 60),
    "300 spoilt files": (fuzz.drill, 300 / fuzz.INPUTS),
    "an edit of each method": (edits.drill, edits.TIMES / edits.EDITS),
}


@pytest.mark.parametrize(
    "name", mostly_slow(SHARES, fast=["two kills", "every 60th byte", "300 spoilt files"])
)
def test_a_share_of_a_drill_is_clean(tmp_path: Path, name: str) -> None:
    drill, share = SHARES[name]
    row = drill(share, 7, tmp_path)
    assert row.clean, table([row])


def test_a_row_counts_what_differs() -> None:
    row = DrillRow("made up", tried=1)
    assert row.clean
    row.compare(["a", "a", "c"], ["a", "b"], "run 1")
    assert dict(row.faults) == {"lost": 1, "doubled": 1, "different": 1}
    assert not row.clean
    assert "made up: lost: run 1" in table([row])
    assert not DrillRow("never run").clean


@pytest.mark.parametrize("reader", ["log: board", "facts.jsonl", "cached answers", "saved edit"])
def test_the_second_reader_sees_what_a_lenient_first_one_lets_pass(
    tmp_path: Path, reader: str
) -> None:
    """Each reader's own check is taken out: the drill must then not be clean."""
    from dataclasses import replace

    from benchmarks.drills.readers import SCORES, readers
    from kn_bench.cases.case import Selection
    from kn_bench.measure.cache import TargetScores

    real = next(file_reader for file_reader in readers(tmp_path) if file_reader.name == reader)
    content, result = real.good, real.read()
    if reader == "log: board":
        content = content.replace(b'"score":1.0', b'"score":5.0')
    elif reader == "facts.jsonl":
        (case, *_) = result.cases
        request = replace(case.request, target_new="None")
        result = Selection((replace(case, request=request),))
    elif reader == "cached answers":
        result = {next(iter(SCORES)): TargetScores((-9.0,), (True,))}
    else:
        result = replace(result, notes={"loss": 0.25})
    row = DrillRow("lenient")
    fuzz._try(replace(real, read=lambda: result), content, row)
    assert row.faults["different"] == 1, reader
