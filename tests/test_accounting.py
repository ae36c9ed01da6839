"""What was left out is counted under the reason that was given, word for word."""

from __future__ import annotations

import pytest

from kn_bench.results.accounting import accounts
from kn_bench.results.loading import load_runs
from kn_bench.results.store import RunStore
from tests.made_up import manifest, rows_of, whole_case


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
