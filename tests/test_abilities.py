"""What a sequence leaves: which sequences count, and the intervals over several."""

from dataclasses import replace
from itertools import count

import pandas as pd
import pytest
from scipy import stats

from kn_bench.results.abilities import HEADERS, ability_tables
from kn_bench.results.board import board
from kn_bench.results.files import StoreError
from kn_bench.results.leaderboard import TITLES, terminal_table
from kn_bench.results.loading import load_runs
from kn_bench.results.log import LOG
from tests.test_leaderboard import write_asked

LAST = 16
"""Steps of the protocol of the runs."""


@pytest.fixture
def left(tmp_path):
    """Give the line and the sentence of sequences that leave such known facts, of 20, by step."""

    numbers = count()

    def written(*sequences, collapsed_at=0, **options):
        folder = write_asked(tmp_path / str(next(numbers)), "one", sequences=len(sequences))
        runs = load_runs([folder])
        rows = [
            {**row, "step": step, "checkpoint_edits": step, "checkpoint_known": known,
             "checkpoint_collapsed_at": collapsed_at * (step >= collapsed_at)}
            for row in runs.curves.drop_duplicates("sequence").to_dict("records")
            for step, known in sequences[row["sequence"]].items()
        ]  # fmt: skip
        (manifest,) = runs.manifests
        asked_for = replace(manifest, options={**manifest.options, **options})
        runs = replace(runs, manifests=(asked_for,), curves=pd.DataFrame(rows), memo={})
        (table,) = ability_tables(runs, board(runs), TITLES)
        assert table.sentence.split()[-1] in terminal_table(runs)
        cells = {name: dict(zip(HEADERS, [name, *row], strict=True)) for name, *row in table.rows}
        return cells["rome"], table.sentence

    return written


WHOLE, WORSE = {0: 1.0, 1: 0.9, LAST: 0.5}, {0: 1.0, 1: 0.9, LAST: 0.3}


@pytest.mark.parametrize("broken", [{0: 1.0}, {0: 1.0, 1: 0.9, 10: 0.8}])
def test_a_sequence_that_breaks_off_is_in_no_figure_of_abilities(left, broken):
    alone, said = left(WHOLE)
    assert alone["known"].startswith("50 ")
    assert "broke off" not in said
    both, said = left(WHOLE, broken)
    assert {k: v for k, v in both.items() if k in HEADERS[7:]} == {
        k: v for k, v in alone.items() if k in HEADERS[7:]
    }
    assert "2 sequences" in said
    assert said.endswith(
        "Sequences that broke off before their last step are left out of the abilities: 1 of 2 "
        "(rome on tiny-gpt2)."
    )
    none, said = left(broken)
    assert [none[name] for name in ("BLiMP", "known", "ppl", "KL", "dW/W")] == ["–"] * 5
    assert "1 of 1 (rome on tiny-gpt2)" in said
    mean, _ = left(WHOLE, broken, WORSE)
    assert mean["known"].startswith("40 ")


def test_a_sequence_that_a_collapse_ended_counts_where_it_was_to_end_there(left):
    collapsed = {0: 1.0, 1: 0.9, 10: 0.2}
    stopped, said = left(collapsed, collapsed_at=10, stop="at collapse")
    assert stopped["known"].startswith("20 ")
    assert "broke off" not in said
    failed, said = left(collapsed, collapsed_at=10)
    assert (failed["known"], failed["collapse"]) == ("–", "step 10")
    assert "1 of 1" in said
    earlier, said = left(collapsed, collapsed_at=0, stop="at collapse")
    assert (earlier["known"], earlier["collapse"]) == ("–", "–")


def test_sequences_that_agree_have_the_end_of_clopper_and_pearson(left):
    """Three that kept every fact were stated at 100 to 100 %, one at 83 to 100."""
    kept = {0: 1.0, LAST: 1.0}
    assert left(kept)[0]["known"] == f"100 {100 * stats.beta.ppf(0.025, 20, 1):.0f}–100"
    cells, _ = left(kept, kept, kept)
    assert cells["known"] == f"100 {100 * stats.beta.ppf(0.025, 3, 1):.0f}–100" == "100 29–100"


def altered(tmp_path, run, change):
    """A run of two sequences whose log is changed by hand."""
    folder = write_asked(tmp_path, run, sequences=2)
    (folder / LOG).write_text(change((folder / LOG).read_text()))
    return folder


def test_a_protocol_whose_sequences_have_no_checkpoint_has_no_table(tmp_path):
    """Its method failed before the first: the board of all runs could not be drawn."""

    def failed(log):
        kept = [line for line in log.splitlines(keepends=True) if '"row":"curve"' not in line]
        return "".join(kept).replace(f"sequence:{LAST}", "sequence:8")

    runs = load_runs([write_asked(tmp_path, "one", sequences=2), altered(tmp_path, "two", failed)])
    assert [table.title for table in ability_tables(runs, board(runs), TITLES)] == [
        f"Facts, sequence:{LAST}: what is left"
    ]


def test_a_log_with_a_protocol_that_cannot_be_is_refused(tmp_path):
    folder = altered(tmp_path, "one", lambda log: log.replace(f"sequence:{LAST}", "sequence:x"))
    with pytest.raises(StoreError, match=r"jsonl: protocol 'sequence:x': expected single, batch:N"):
        load_runs([folder])
