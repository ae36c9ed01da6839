"""The board: its figures against plain arithmetic, and nothing on it without its n."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kn_bench.cases.case import CRITERIA, Criterion, Exclusion
from kn_bench.commands.app import group
from kn_bench.measure.statistics import Interval
from kn_bench.results import tables
from kn_bench.results.board import board
from kn_bench.results.leaderboard import leaderboard, main_table, terminal_table, write_leaderboard
from kn_bench.results.loading import load_runs
from kn_bench.results.rows import CrashRow, encode_row
from kn_bench.results.store import RunStore
from kn_bench.results.summary import append_summary, junit_properties, summary
from tests.made_up import (
    NEW,
    OTHER,
    TRUE,
    case_of,
    manifest,
    measured,
    prefers,
    result_of,
    rows_of,
    says,
    write_run,
)

SCORES: dict[Criterion, list[float]] = {
    "reliability": [1, 1, 1, 0, 1, 1, 1, 1],
    "generality": [1, 0.5, 0.25, 0, 1, 1, 0.75, 1],
    "locality": [1, 1, 0.5, 0.75, 1, 1, 1, 0.25],
    "symmetry": [1, 0, 0, 0, 1, 1, 0, 1],
    "synonym": [0.5, 0.5, 0.5, 0.5, 1, 1, 1, 0],
    "overturn": [1, 1, 1, 0, 1, 1, 1, 1],
}
NOTHING: dict[Criterion, list[float]] = {c: [float(c == "locality")] * 8 for c in CRITERIA}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, {"no-edit": NOTHING, "rome": SCORES}, a_cluster=2)


def test_figures_are_means_over_cases(folder):
    rome, nothing = board(load_runs([folder]))
    assert (rome.name.method, nothing.name.method) == ("rome", "no-edit")  # the best first
    means = {c: statistics.fmean(values) for c, values in SCORES.items()}
    for criterion, mean in means.items():
        interval = rome.criteria[criterion].interval
        assert interval.mean == pytest.approx(mean)
        assert interval.n == 8
        assert interval.low <= mean <= interval.high
    assert rome.score.mean == pytest.approx(
        statistics.harmonic_mean([means[c] for c in CRITERIA[:5]])
    )
    assert rome.seconds == 0.5
    assert rome.kl.mean == 0.25


def test_the_control_that_changes_nothing(folder):
    _, line = board(load_runs([folder]))
    assert [line.criteria[c].interval.mean for c in CRITERIA] == [0, 0, 1, 0, 0, 0]
    assert line.score.mean == 0
    assert line.shift.mean == 0
    # four clusters: all agree, and still the interval is wide
    assert line.criteria["locality"].interval.low == pytest.approx(0.025 ** (1 / 4))


def test_a_score_needs_all_five_criteria(tmp_path):
    four: dict[Criterion, list[float]] = {c: v for c, v in SCORES.items() if c != "symmetry"}
    (line,) = board(load_runs([write_run(tmp_path, {"rome": four})]))
    assert line.score.mean != line.score.mean
    assert line.criteria["symmetry"].interval.n == 0


def test_no_figure_stands_without_its_interval_and_n(folder):
    text = leaderboard(load_runs([folder]))
    cells = [
        cell.strip()
        for row in text.split("## Runs")[0].split("\n")
        if row.startswith("|") and not row.startswith(("| method", "|:"))
        for cell in row.strip("|").split("|")[2:]
    ]
    figures = [cell for cell in cells if re.match(r"[+-]?\d", cell)]
    assert len(figures) > 60
    seconds = [cell for cell in figures if cell == "0.5"]
    assert len(seconds) == 2
    shape = re.compile(r"[+-]?\d\.\d+ \[[+-]?\d\.\d+, [+-]?\d\.\d+\] n=\d+")
    assert all(shape.fullmatch(cell) for cell in figures if cell != "0.5")


def _mixed(tmp_path: Path) -> Path:
    """Known, unknown, excluded, not applicable, failed and crashed cases; facts and a pair."""
    left = Exclusion("embedded/P36/b", "the answer is no single token", "generality/1", "Ulan-Ude")
    know = [
        measured("reliability", says(TRUE), says(NEW), case="embedded/P36/a"),
        measured("generality", says(TRUE), says(NEW), case="embedded/P36/a"),
        measured("generality", says(OTHER), says(NEW), case="embedded/P36/a", number=1),
    ]
    guess = [
        measured("reliability", says(OTHER), says(OTHER), case="embedded/P36/b"),
        measured("generality", says(OTHER), says(NEW), case="embedded/P36/b"),
    ]
    pair = [measured("reliability", prefers(-1.0), prefers(1.0), task="pair", case="blimp/x/c")]
    probe = case_of(guess).probes[1]._replace(id="generality/1")
    cases = [
        (case_of(know, id="embedded/P36/a"), result_of(know, case="embedded/P36/a")),
        (
            case_of(guess, id="embedded/P36/b", unasked=[probe]),
            result_of(guess, case="embedded/P36/b", exclusions=[left]),
        ),
        (case_of(know, id="embedded/P36/d"), result_of([], error="NaN", case="embedded/P36/d")),
        (case_of(pair, id="blimp/x/c", task="pair"), result_of(pair, case="blimp/x/c")),
    ]
    with RunStore.create(tmp_path, manifest()) as store:
        store.leave_out([Exclusion("pararel/P36/x", "the same fact is listed again")] * 2)
        for case, result in cases:
            for text in rows_of(case, result, ("reliability", "generality", "symmetry")):
                store.append(text)
        for name in ("a", "z"):  # the first was measured all the same
            store.append(
                encode_row(
                    CrashRow("tiny-gpt2", "rome", f"embedded/P36/{name}", "reliability", "gw1 died")
                )
            )
    return store.folder


def test_strata_are_told_apart(tmp_path):
    fact, pair = board(load_runs([_mixed(tmp_path)]))
    assert (fact.name.task, pair.name.task) == ("fact", "pair")
    known, unknown = fact.strata[:2]
    assert (known.mean, known.n) == (1.0, 1)
    assert (unknown.mean, unknown.n) == (0.0, 1)
    figure = fact.criteria["generality"]
    assert (figure.interval.n, figure.out) == (1, 2)
    assert fact.criteria["symmetry"].not_applicable == 3


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    text = leaderboard(load_runs([_mixed(tmp_path)]))
    left_out = text.split("## Left out")[1]
    rows = {
        tuple(cell.strip() for cell in row.strip("|").split("|"))
        for row in left_out.split("\n")
        if row.startswith("|")
    }
    assert {
        ("pararel", "the same fact is listed again", "1"),
        ("fact", "tiny-gpt2", "generality", "excluded",
         "the unedited model did not know the fact on any other pattern", "rome", "1"),
        ("fact", "tiny-gpt2", "symmetry", "not applicable",
         "the case has no symmetry probe", "rome", "3"),
        ("tiny-gpt2", "generality", "the answer is no single token", "rome", "1"),
        ("tiny-gpt2", "generality", "the unedited model did not answer it correctly", "rome", "1"),
        ("rome", "tiny-gpt2", "NaN", "1"),
        ("rome", "tiny-gpt2", "gw1 died", "1"),
    } <= rows  # fmt: skip
    assert text.count("gw1 died") == 1
    assert "## Facts" in text.split("## Syntax")[0]
    assert "1.00 [0.03, 1.00] n=1 (2 out)" in text
    assert " n/a |" in text


def test_the_last_named_run_counts_and_the_board_says_so(tmp_path):
    good = write_run(tmp_path, {"rome": SCORES}, run="good")
    bad = write_run(tmp_path, {"rome": NOTHING}, run="bad")
    (line,) = board(load_runs([good, bad]))
    assert line.criteria["reliability"].interval.mean == 0
    assert line.criteria["reliability"].interval.n == 8
    assert "48 verdicts stand in several runs" in leaderboard(load_runs([good, bad]))
    assert "several runs" not in leaderboard(load_runs([good]))


def test_an_empty_run_has_an_empty_board(tmp_path):
    with RunStore.create(tmp_path, manifest()) as store:
        store.finish({})
    text = leaderboard(load_runs([store.folder]))
    assert "Nothing has been measured." in text
    assert terminal_table(load_runs([store.folder])) == ""


def test_the_terminal_table_is_compact_and_has_n(folder):
    text = terminal_table(load_runs([folder]))
    assert max(map(len, text.split("\n"))) < 120
    assert text.startswith("Facts: % (n, left out), 95 % interval")
    rome = next(line for line in text.split("\n") if line.startswith("rome"))
    assert rome.count("(8)") == 8
    assert "88 (8)" in rome


def test_a_board_of_a_run_that_died_can_be_drawn(folder, tmp_path):
    log = folder / "measurements.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    (folder / "measurements.parquet").unlink()
    write_leaderboard([folder], tmp_path / "board.md")
    assert "n=8" in (tmp_path / "board.md").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Interval(0.934, 0.88, 0.97, 120), "0.93 [0.88, 0.97] n=120"),
        (Interval(float("nan"), float("nan"), float("nan"), 0), "–"),
        (Interval(-0.001, -0.004, 0.2, 3), "0.00 [0.00, 0.20] n=3"),
        (Interval(float("inf"), float("nan"), float("nan"), 3), "inf n=3"),
    ],
)
def test_intervals_as_text(value, text):
    assert tables.interval(value) == text


def test_shares_as_text():
    nan = float("nan")
    assert tables.share(Interval(0.536, 0.481, 0.575, 9)) == "54% [48%, 57%]"
    assert tables.share(Interval(0.536, nan, nan, 1), 1) == "53.6%"
    assert tables.share(Interval(nan, nan, nan, 0)) == "–"


def test_a_pipe_in_a_reason_does_not_break_the_table():
    assert "a\\|b" in tables.markdown(["x"], [["a|b"]])


# --- the command line, and pages for CI ----------------------------------------------------------


def test_the_command_rebuilds_the_board(folder, tmp_path):
    reports, target = folder.parent.parent, tmp_path / "out" / "board.md"
    args = ["leaderboard", "last", "--reports", str(reports), "-o", str(target)]
    done = CliRunner().invoke(group, args)
    assert done.exit_code == 0, done.output
    assert target.read_text() == leaderboard(load_runs([folder]))
    again = CliRunner().invoke(group, [*args[:-1], f"{target}2", "--judge-again"])
    assert again.exit_code == 0, again.output
    assert Path(f"{target}2").read_text() == target.read_text()


def test_help_lists_the_commands():
    done = CliRunner().invoke(group, ["--help"])
    assert "leaderboard" in done.output
    assert "compare" in done.output


def test_the_summary_page_has_the_boards_and_not_their_details(folder, tmp_path):
    page = summary(leaderboard(load_runs([folder])), "The gate passes.\n")
    assert page.startswith("# kn_bench\n\n## Gate\n\nThe gate passes.\n")
    assert main_table(board(load_runs([folder]))) in page
    assert "Locality by neighbour" not in page
    assert "Each figure is a mean over cases" in page
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    append_summary(target, page)
    assert target.read_text() == "before\n" + page


def test_a_junit_report_says_what_was_found():
    row = measured("reliability", says(TRUE), says(NEW))
    from kn_bench.measure.criteria import judge

    found = dict(junit_properties(judge("reliability", case_of([row]), result_of([row]))))
    assert found == {
        "kn_bench.status": "holds",
        "kn_bench.score": "1",
        "kn_bench.counted": "1",
        "kn_bench.explanation": "1 of 1 probes give the new answer",
    }
