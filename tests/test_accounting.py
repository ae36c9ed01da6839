"""What was left out is counted under the reason that was given, word for word."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from kn_bench.cases.case import Exclusion
from kn_bench.measure.criteria import judge
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.results.accounting import accounts
from kn_bench.results.loading import load_runs
from kn_bench.results.rows import Key, encode_rows
from kn_bench.results.store import RunStore
from tests.made_up import (
    NEW,
    OTHER,
    TRUE,
    case_of,
    manifest,
    measured,
    result_of,
    rows_of,
    says,
    whole_case,
)

UNKNOWN = "the unedited model did not answer it correctly"
UNFIT = "the answer is no single token"
OCCASIONS = {
    "single": [ONCE],
    "a batch": [Occasion("batch:2")],
    "a sequence": [Occasion("sequence:2", 0, asked) for asked in ("immediate", "retained")],
    "two sequences": [
        Occasion("sequence:2", number, asked)
        for number in (0, 1)
        for asked in ("immediate", "retained")
    ],
    "both": [ONCE, Occasion("sequence:2", 0, "immediate"), Occasion("sequence:2", 0, "retained")],
}


def _write(reports: Path, run: str, occasions: Sequence[Occasion], **made_of: object) -> Path:
    """Two methods on three cases, of each of which 2 + i probes did not fit and i were unknown."""
    with RunStore.create(reports, manifest(run, **made_of)) as store:
        for occasion, method, i in product(occasions, ("rome", "memit"), range(3)):
            name = f"embedded/P36/c{i}"
            rows = [
                measured("generality", says(TRUE), says(NEW), number=n, case=name, method=method)
                for n in range(2)
            ]
            rows += [
                measured("generality", says(OTHER), says(NEW), number=n, case=name, method=method)
                for n in range(2, 2 + i)
            ]
            unfit = [f"generality/{n}" for n in range(10, 12 + i)]
            probe = case_of(rows).probes[0]
            case = case_of(rows, id=name, unasked=[probe._replace(id=each) for each in unfit])
            exclusions = [Exclusion(name, UNFIT, each, "?") for each in unfit]
            result = result_of(rows, case=name, exclusions=exclusions)
            key = Key("tiny-gpt2", method, name, "generality", occasion)
            store.append(encode_rows(key, case, result, judge("generality", case, result)))
        store.finish({})
    return store.folder


@pytest.mark.parametrize("beside", [None, {}, {"seed": 1}], ids=["alone", "the same", "apart"])
@pytest.mark.parametrize("occasions", OCCASIONS.values(), ids=OCCASIONS)
def test_probes_left_out_add_up_however_often_they_were_asked(tmp_path, occasions, beside):
    folders = [_write(tmp_path, "one", occasions)]
    if beside is not None:
        folders.append(_write(tmp_path, "two", occasions[:1], **beside))
    runs = load_runs(folders)
    (account,) = accounts(runs)
    counts = {row[2]: row[-1] for row in account.rows}
    assert counts == {UNFIT: 2 + 3 + 4, UNKNOWN: 0 + 1 + 2}
    left_out = runs.verdicts.groupby("case")["verdict_left_out"]
    assert left_out.nunique().max() == 1  # the same on every occasion
    assert left_out.first().sum() == sum(counts.values())


@pytest.mark.parametrize("relation", ["on", "e", "the", "edit", "it", "."])
def test_a_relation_with_a_common_name_leaves_the_reasons_as_they_are(tmp_path, relation):
    reason = "the unedited model was not right before the edit. It is one"
    case, result = whole_case({"reliability": 1.0}, id="embedded/x/c0", cluster="c0", method="rome")
    with RunStore.create(tmp_path, manifest()) as store:
        for text in rows_of(case, result, ("reliability",), method="rome"):
            store.append(text)
    runs = load_runs([store.folder])
    verdicts = runs.verdicts.assign(
        verdict_status="excluded", verdict_reason=reason, relation=relation
    )
    object.__setattr__(runs, "verdicts", verdicts)
    assert reason in {cell for account in accounts(runs) for row in account.rows for cell in row}
