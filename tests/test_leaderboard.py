"""The board: its figures against plain arithmetic, and nothing on it without its n."""

from __future__ import annotations

import math
import re
import shutil
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kn_bench.cases.case import CRITERIA, Criterion, Exclusion
from kn_bench.commands.app import group
from kn_bench.measure.criteria import UNKNOWN, judge
from kn_bench.measure.measurement import Checkpoint, Written
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.measure.statistics import Interval
from kn_bench.results import tables
from kn_bench.results.abilities import ability_tables
from kn_bench.results.accounting import accounts
from kn_bench.results.board import _alike, board
from kn_bench.results.curves import curve_rows
from kn_bench.results.files import StoreError
from kn_bench.results.further import further_tables
from kn_bench.results.leaderboard import TITLES, leaderboard, terminal_table, write_leaderboard
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.manifest import read_manifest
from kn_bench.results.payload import payload
from kn_bench.results.rows import CrashRow, Key, encode_row, encode_rows
from kn_bench.results.store import RunStore, find_runs
from kn_bench.results.summary import append_summary, junit_properties, summary
from kn_bench.results.texts import write_texts
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
    whole_case,
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
MORE = encode_row(CrashRow("tiny-gpt2", "rome", "embedded/P36/c99", "locality", "crashed"))
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
    three = [means[c] for c in CRITERIA[:3]]
    assert rome.s.mean == pytest.approx(statistics.harmonic_mean(three))
    assert rome.k.mean == pytest.approx((means["symmetry"] + means["synonym"]) / 2)
    assert rome.s.low < rome.s.mean < rome.s.high
    assert rome.k.low < rome.k.mean < rome.k.high
    assert rome.seconds == 0.5
    assert rome.kl.mean == 0.25


def test_s_is_over_the_cases_that_have_all_three(tmp_path):
    scores: dict[Criterion, list[float]] = {
        "reliability": [1, 1, 0, 0],
        "generality": [1, 0.5],
        "locality": [1, 0.5, 0, 0],
    }
    (line,) = board(load_runs([write_run(tmp_path, {"rome": scores})]))
    assert line.s.mean == pytest.approx(statistics.harmonic_mean([1, 0.75, 0.75]))
    assert line.s.n == 2
    assert math.isnan(line.k.mean)


def test_the_control_that_changes_nothing(folder):
    _, line = board(load_runs([folder]))
    assert [line.criteria[c].interval.mean for c in CRITERIA] == [0, 0, 1, 0, 0, 0]
    assert line.s.mean == line.k.mean == 0
    assert line.shift.mean == 0
    # four clusters: all agree, and still the interval is wide
    assert line.criteria["locality"].interval.low == pytest.approx(0.025 ** (1 / 4))


# --- against chance ------------------------------------------------------------------------------


def _pattern(n: int, **means: float) -> dict[Criterion, list[float]]:
    """Scores of ``n`` cases: the first share of them 1, the others 0."""
    return {c: [float(i < round(n * means.get(c, 0))) for i in range(n)] for c in CRITERIA}


GOOD = _pattern(16, reliability=1, generality=1, locality=1, synonym=0.75, overturn=1)
CHANCE = _pattern(16, reliability=0.5, generality=0.5, locality=0.25, overturn=0.5)
WEAK = _pattern(16, reliability=0.5, generality=0.5, locality=0.3, overturn=0.5)


def test_each_figure_is_compared_with_the_control_on_the_same_cases(tmp_path):
    run = write_run(tmp_path, {"rome": GOOD, "control:rome": CHANCE})
    (line,) = board(load_runs([run]))
    better = {c for c in CRITERIA if line.criteria[c].beats_control}
    assert better == {"reliability", "generality", "locality", "synonym", "overturn"}
    assert line.beating == 4
    symmetry = line.criteria["symmetry"]
    assert symmetry.no_better
    assert symmetry.p == 1
    assert line.criteria["locality"].control.mean == 0.25
    # eight clusters differ, all one way: (1/2)^8, times the six criteria less two of smaller p
    assert line.criteria["reliability"].p == pytest.approx(4 / 2**8)


def test_a_figure_without_a_control_is_neither_better_nor_by_chance(folder):
    rome, _ = board(load_runs([folder]))
    assert not any(f.beats_control or f.no_better for f in rome.criteria.values())
    assert math.isnan(rome.criteria["reliability"].p)


def test_nothing_that_is_like_chance_ranks_above_what_is_not(tmp_path):
    few = _pattern(16, reliability=0.5, generality=0.5, locality=0.5, synonym=0.5)
    run = write_run(
        tmp_path,
        {
            "damage": WEAK | {"synonym": [1.0] * 16},
            "control:damage": WEAK | {"synonym": [1.0] * 16},
            "neurons": few,
            "control:neurons": _pattern(16, locality=0.5),
        },
    )
    first, second = board(load_runs([run]))
    assert (first.name.method, second.name.method) == ("neurons", "damage")
    assert second.k.mean > first.k.mean
    assert (first.beating, second.beating) == (3, 0)
    assert (first.rank, second.rank) == (1, 2)


def test_lines_within_each_others_intervals_are_tied(tmp_path):
    nearly = GOOD | {"generality": [1.0] * 15 + [0.0]}
    worse = GOOD | {"generality": [1.0] * 3 + [0.0] * 13}
    run = write_run(tmp_path, {"a": nearly, "b": GOOD, "c": worse})
    lines = board(load_runs([run]))
    assert [(line.name.method, line.rank) for line in lines] == [("b", 1), ("a", 1), ("c", 3)]
    text = leaderboard(load_runs([run]))
    assert "|1 b" in text.replace("| ", "|")
    assert "|1 a" in text.replace("| ", "|")


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ((0.9, 0.8, 0.95), (0.85, 0.8, 0.92), True),
        ((0.9, 0.8, 0.95), (0.79, 0.7, 0.92), False),  # the second mean is below the first's range
        ((0.9, 0.8, 0.95), (0.85, 0.8, 0.89), False),  # the first mean is above the second's
        ((0.76, 0.68, 0.84), (0.0, 0.0, 0.89), False),  # two cases: anything overlaps
        ((math.nan,) * 3, (math.nan,) * 3, True),
        ((0.9, 0.8, 0.95), (math.nan,) * 3, False),
    ],
)
def test_lines_are_alike_where_each_mean_lies_in_the_others_interval(first, second, alike):
    one, other = (Interval(mean, low, high, 20) for mean, low, high in (first, second))
    assert _alike(one, other) == _alike(other, one) == alike


def test_what_is_like_chance_is_marked_and_named(tmp_path):
    run = write_run(
        tmp_path,
        {"rome": GOOD, "control:rome": CHANCE, "noise": WEAK, "control:noise": WEAK},
    )
    text = leaderboard(load_runs([run]))
    rome = next(line for line in text.split("\n") if "1 rome" in line)
    assert "0° 0–21" in rome  # symmetry
    assert rome.count("°") == 1
    assert "Like chance damage in every criterion on tiny-gpt2: the method noise." in text
    assert not [line for line in text.split("\n") if line.startswith("|") and "noise" in line]


def test_a_board_without_controls_says_so_and_has_no_mark(folder):
    runs = load_runs([folder])
    for text in (leaderboard(runs), terminal_table(runs)):
        assert "°" not in text
        assert "Nothing was compared with a random edit of equal size." in " ".join(text.split())
        assert "No control" not in text
    assert "Ranked by S, then K;" in " ".join(leaderboard(runs).split())


def test_a_method_without_a_control_comes_after_those_with_one_and_is_named(tmp_path):
    run = write_run(
        tmp_path,
        {
            "code": GOOD | {"symmetry": [1.0] * 16},
            "weak": WEAK,
            "control:weak": WEAK | {"reliability": [0.0] * 16},
            "noise": WEAK,
            "control:noise": WEAK,
        },
    )
    runs = load_runs([run])
    *others, last = board(runs)
    assert (last.name.method, last.rank, last.controlled) == ("code", 3, False)
    assert all(line.controlled for line in others)
    for text in (leaderboard(runs), terminal_table(runs)):
        assert "no ° and a rank after all that have one: the method code." in text
        assert "not significantly better than a random edit" in " ".join(text.split())
        assert "criterion on tiny-gpt2: the method noise." in text


# --- 60 lines of 120 characters ----------------------------------------------------------------


def test_the_board_fits_a_pull_request_whatever_was_measured(tmp_path):
    runs = [
        write_run(
            tmp_path,
            {f"method-with-quite-a-long-name-{i}": GOOD for i in range(9)},
            run=f"r{m}-{task}",
            task=task,
            model=f"an-organisation/a-model-of-some-length-{m}",
        )
        for m in range(5)
        for task in ("fact", "pair")
    ]
    for text in (leaderboard(load_runs(runs)), terminal_table(load_runs(runs))):
        lines = text.split("\n")
        assert len(lines) <= 61
        assert max(map(len, lines)) <= 120
        assert "further rows are on the page" in text
        assert "Facts" in text
        assert "Syntax" in text


def test_every_figure_has_its_interval_and_the_table_its_n(folder):
    text = leaderboard(load_runs([folder]))
    rows = [line for line in text.split("\n") if re.match(r"\|[12] ", line)]
    assert len(rows) == 2
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")[1:]]
        assert len(cells) == 8
        assert all(re.fullmatch(r"\d+ \d+–\d+", cell) for cell in cells)
    assert "n = 8 cases." in text
    assert text.index("## Facts") < text.index("- one: ")


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
    runs = load_runs([_mixed(tmp_path)])
    rows = {tuple(map(str, row)) for account in accounts(runs) for row in account.rows}
    assert {
        ("pararel", "the same fact is listed again", "1"),
        ("fact", "tiny-gpt2", "generality", "excluded",
         UNKNOWN["generality"], "rome", "1"),
        ("fact", "tiny-gpt2", "symmetry", "not applicable",
         "the case has no symmetry probe", "rome", "3"),
        ("tiny-gpt2", "generality", "the answer is no single token", "rome", "1"),
        ("tiny-gpt2", "generality", "the unedited model did not answer it correctly", "rome", "1"),
        ("rome", "tiny-gpt2", "NaN", "1"),
        ("rome", "tiny-gpt2", "gw1 died", "1"),
    } <= rows  # fmt: skip
    text = leaderboard(runs)
    assert "## Facts" in text.split("## Syntax")[0]
    assert "1 verdicts excluded, 3 errors: reasons are on the page." in text


# --- several runs ------------------------------------------------------------------------------


def test_runs_made_of_the_same_count_once_in_whatever_order_they_are_named(tmp_path):
    full = write_run(tmp_path, {"rome": SCORES}, run="full")
    half = write_run(tmp_path, {"rome": {c: v[:4] for c, v in SCORES.items()}}, run="half")
    both, turned, twice = (load_runs(f) for f in ([full, half], [half, full], [full, full]))
    assert [line.criteria["reliability"].interval.n for line in board(both)] == [8]
    assert len({repr(board(runs)) for runs in (both, turned, twice, load_runs([full]))}) == 1
    assert leaderboard(both) == leaderboard(turned)
    assert both.doubled == 24
    assert "24 verdicts stand in several runs" in leaderboard(both)
    assert "several runs" not in leaderboard(twice)


@pytest.mark.parametrize(
    ("unlike", "named"),
    [
        ({"models": {"tiny-gpt2": "e" * 64}}, "weights"),
        ({"data": {"embedded": "e" * 64}}, "data"),
        ({"options": {"dtype": "bfloat16"}}, "dtype"),
        ({"seed": 1}, "seed"),
        ({"code": "e" * 64}, "code"),
    ],
)
def test_what_one_name_means_twice_is_shown_apart(tmp_path, unlike, named):
    run_folder = write_run(tmp_path, {"rome": SCORES}, run="one")
    two = write_run(tmp_path, {"rome": NOTHING}, run="two", **unlike)
    runs = load_runs([two, run_folder])
    lines = {line.name.shown: line for line in board(runs)}
    assert set(lines) == {"rome (one)", "rome (two)"}
    (alone,) = board(load_runs([run_folder]))
    assert repr(lines["rome (one)"].criteria) == repr(alone.criteria)
    assert lines["rome (two)"].criteria["reliability"].interval.mean == 0
    assert runs.apart == (f"one, two differ in {named} for tiny-gpt2: shown apart.",)
    assert runs.apart[0] in leaderboard(runs)


def test_a_run_keeps_its_figures_beside_another(tmp_path):
    run_folder = write_run(tmp_path, {"rome": GOOD, "control:rome": CHANCE}, run="one")
    two = write_run(tmp_path, {"kn": WEAK, "control:kn": CHANCE}, run="two")
    alone = {line.name: repr(line.criteria) for line in board(load_runs([run_folder]))}
    beside = {line.name: repr(line.criteria) for line in board(load_runs([run_folder, two]))}
    assert len(beside) == 2
    assert alone.items() <= beside.items()


def write_asked(
    reports: Path,
    run: str,
    *,
    sequences: int = 0,
    cases: Iterable[int] = range(8),
    methods: Sequence[str] = ("rome",),
    worse: bool = False,
    further: bool = True,
    **made_of: object,
) -> Path:
    """A run whose cases are asked in turn in so many sequences (0: each edit on its own).

    Args:
        worse: the method holds less, and leaves less of the model.
        further: with portability and free generation.
    """
    scores = (WEAK if worse else GOOD) | ({"portability": [1.0 - worse] * 16} if further else {})
    written = Written((), 5.0, 2.0 if worse else 4.0) if further else None
    with RunStore.create(reports, manifest(run, **made_of)) as store:
        texts = []
        for i, method in product(cases, methods):
            if not sequences:
                times = [ONCE]
            else:
                number = i % sequences
                times = [
                    Occasion("sequence:16", number, "immediate"),
                    Occasion("sequence:16", number, "retained"),
                ]
            for at, name in product(times, (method, f"control:{method}")):
                control = name != method
                outcomes = {c: v[i] for c, v in (CHANCE if control else scores).items()}
                case, result = whole_case(
                    outcomes, id=f"embedded/P36/c{i}", cluster=f"k{i // 2}", method=name
                )
                result = replace(result, written=None if control else written)
                curve = [] if control or at == ONCE else left(at.sequence, worse=worse)
                for criterion in outcomes:
                    key = Key("tiny-gpt2", name, case.id, criterion, at)
                    verdict = judge(criterion, case, result)
                    store.append(encode_rows(key, case, result, verdict, curve=curve))
                texts.append(case)
        write_texts(store.folder, texts)
        store.finish({})
    return store.folder


def left(sequence: int, *, worse: bool) -> list[Checkpoint]:
    """What the unedited and the edited model can do; each sequence ends elsewhere."""
    known = (0.3 if worse else 0.8) + 0.05 * sequence
    about = (0.5, 4, 0.9, 10, 6.0, 100, 0.1, 8)
    return [Checkpoint(0, 0, *about, 1.0, 20), Checkpoint(16, 16, *about, known, 20)]


def test_a_method_without_a_step_has_no_abilities(tmp_path, monkeypatch):
    """Those of the unedited model stood in its row."""
    unedited, _ = left(0, worse=False)
    monkeypatch.setattr(f"{__name__}.left", lambda *_, **__: [unedited])
    runs = load_runs([write_asked(tmp_path, "one", sequences=1)])
    (table,) = ability_tables(runs, board(runs), TITLES)
    cells = {row[0]: row[-6:] for row in table.rows}
    assert cells["unedited"][2:] == ("6.00", "0.10", "0.00", tables.NOTHING)
    assert set(cells["rome"]) == {tables.NOTHING}


def test_a_prefix_behind_which_no_text_fits_leaves_dashes(tmp_path, monkeypatch):
    unedited, edited = left(0, worse=False)
    crowded = replace(edited, blimp=None, n_blimp=0, perplexity=None, n_tokens=0, kl=None)
    monkeypatch.setattr(f"{__name__}.left", lambda *_, **__: [unedited, crowded])
    folder = write_asked(tmp_path / "runs", "one", sequences=1)
    runs = write_leaderboard([folder], tmp_path / "leaderboard.md")
    (table,) = ability_tables(runs, board(runs), TITLES)
    (cells,) = (row[-6:] for row in table.rows if row[0] == "rome")
    measured = [cell != tables.NOTHING for cell in cells]
    assert measured == [False, True, False, False, True, False]
    assert "BLiMP on 0 pairs" in table.sentence


def all_figures(runs: Runs, run: str) -> list[str]:
    """Every figure of the method rome that ``run`` has, whatever the run is called there."""
    lines = board(runs)
    own = ("", run)
    figures: list[object] = [
        replace(line, name=line.name._replace(variant=""), rank=0)
        for line in lines
        if line.name.method == "rome" and line.name.variant in own
    ]
    figures += [
        (table.title, row.name._replace(variant=""), row.figures)
        for table in further_tables(runs)
        for row in table.rows
        if row.name.method == "rome" and row.name.variant in own
    ]
    figures += [
        row[1:]
        for table in ability_tables(runs, lines, TITLES)
        for row in table.rows
        if row[0] in ("rome", f"rome ({run})", "unedited", f"unedited ({run})")
    ]
    figures += [
        sorted((key, value) for key, value in row.items() if key != "variant")
        for row in curve_rows(runs)
        if row["method"] == "rome" and row["variant"] in own
    ]
    return [repr(figure) for figure in figures]


@pytest.mark.parametrize(
    ("sequences", "further", "neighbour"),
    [
        (0, True, {"seed": 1}),
        (0, True, {"cases": range(4)}),  # made of the same, and less full
        (0, False, {"cases": range(4)}),
        (1, True, {"seed": 1}),
        (1, True, {"seed": 1, "sequences": 3}),
        (1, False, {"methods": ("kn",), "sequences": 2}),
        (2, True, {"seed": 1, "sequences": 1}),
        (2, True, {"seed": 1, "sequences": 3}),
        (2, True, {"cases": range(4), "methods": ("rome", "kn")}),
        (2, False, {"cases": range(4)}),
    ],
)
def test_a_run_keeps_every_figure_beside_any_other(tmp_path, sequences, further, neighbour):
    one = write_asked(tmp_path, "one", sequences=sequences, further=further)
    two = write_asked(tmp_path, "two", **{"sequences": sequences, "worse": True, **neighbour})
    alone = all_figures(load_runs([one]), "one")
    assert any("locality" in figure for figure in alone)
    assert set(all_figures(load_runs([two, one]), "one")) == set(alone)


@pytest.mark.parametrize("sequences", [0, 1, 2])
def test_questions_in_no_score_have_the_clusters_of_the_criteria(tmp_path, sequences):
    runs = load_runs([write_asked(tmp_path, "one", sequences=sequences)])
    asked = {line.name: line.criteria["reliability"].interval for line in board(runs)}
    portability = next(further_tables(runs))
    assert {row.name: row.figures[0] for row in portability.rows} == asked
    clusters = sequences if sequences > 1 else 4
    assert [i.low for i in asked.values()] == pytest.approx([0.025 ** (1 / clusters)] * len(asked))


def test_a_copy_of_a_run_adds_nothing(tmp_path):
    one = write_asked(tmp_path, "one", sequences=2)
    copy = shutil.copytree(one, one.with_name("a copy"))
    both, turned = load_runs([one, copy]), load_runs([copy, one])
    assert all_figures(both, "") == all_figures(load_runs([one]), "")
    assert leaderboard(both) == leaderboard(turned)
    assert [*both.folders] == [*turned.folders] == ["a copy", "one"]
    assert not both.cut


@pytest.mark.parametrize("sequences", [0, 2])
@pytest.mark.parametrize(
    ("first", "second", "repeated", "lacking"),
    [
        (range(2), range(2, 4), 0, 2),
        (range(4), range(4, 5), 0, 1),
        (range(4), range(3, 6), 1, 2),
        (range(4), range(2), 2, 0),
    ],
)
def test_what_only_a_run_that_is_not_kept_has_is_counted_and_told(
    tmp_path, sequences, first, second, repeated, lacking
):
    kept, other = ("b", "a") if len(first) == len(second) else ("a", "b")
    a = write_asked(tmp_path, "a", cases=first, sequences=sequences)
    b = write_asked(tmp_path, "b", cases=second, sequences=sequences)
    runs = load_runs([a, b])
    assert {*runs.verdicts["run"]} == {kept}
    a_case = 7 * (2 if sequences else 1)  # verdicts: the six criteria and portability, when asked
    assert runs.doubled == repeated * a_case
    sentence = f"verdicts that {kept} lacks are left out ({lacking * a_case}); draw a board of each"
    assert [sentence in cut for cut in runs.cut] == [True] * bool(lacking)
    for text in (leaderboard(runs), terminal_table(runs), *payload(runs)["notes"]):
        assert (sentence in " ".join(text.split())) == bool(lacking)
        assert (f"{kept} and {other} are made of the same" in text) == bool(lacking)
    assert leaderboard(runs) == leaderboard(load_runs([b, a]))


@pytest.mark.parametrize(
    "names",
    [("x", "x", "x (2)"), ("x (2)", "x", "x"), ("x", "x (2)", "x", "x"), ("x (2)", "x", "x (2)")],
)
def test_every_run_has_a_label_of_its_own_whatever_its_folder_is_called(tmp_path, names):
    folders = []
    for i, name in enumerate(names):
        folder = write_run(tmp_path / str(i), {f"m{i}": SCORES}, run="x")
        folders.append(folder.rename(folder.with_name(name)))
    runs = load_runs(folders)
    assert {*runs.folders.values()} == {*folders}
    assert len(board(runs)) == len(names)
    for order in (folders[::-1], [*folders[1:], folders[0]]):
        assert load_runs(order).folders == runs.folders


def test_two_settings_of_one_value_are_two_settings(tmp_path):
    one = write_run(tmp_path, {"rome": SCORES}, run="one", options={"layer": "5"})
    two = write_run(tmp_path, {"rome": SCORES}, run="two", options={"steps": "5"})
    runs = load_runs([one, two])
    assert runs.apart == ("one, two differ in layer, steps for tiny-gpt2: shown apart.",)


def test_a_folder_of_runs_is_a_leaderboard(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path, {name: SCORES}, run=name)
    folders = find_runs(tmp_path, [str(tmp_path / "runs")])
    assert [folder.name for folder in folders] == ["one", "two"]
    assert find_runs(tmp_path, ["one", str(tmp_path / "runs" / "two")]) == folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"empty: expected a run or a folder of runs"):
        find_runs(tmp_path, [str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("was", "becomes"), [('"score":1.0', '"score":5.0'), ('"prob":1.0', '"prob":-1.0')]
)
def test_a_log_with_a_score_that_cannot_be_is_refused(folder, was, becomes):
    log = folder / "measurements.jsonl"
    text = log.read_text()
    at = text.index(was, text.index('"row":"verdict"'))
    log.write_text(text[:at] + becomes + text[at + len(was) :])
    with pytest.raises(StoreError, match=r"measurements\.jsonl"):
        load_runs([folder])


def test_an_empty_run_has_an_empty_board(tmp_path):
    with RunStore.create(tmp_path, manifest()) as store:
        store.finish({})
    text = leaderboard(load_runs([store.folder]))
    assert "Nothing has been measured." in text
    assert terminal_table(load_runs([store.folder])) == ""


def test_the_terminal_table_is_compact_and_has_n(folder):
    text = terminal_table(load_runs([folder]))
    assert max(map(len, text.split("\n"))) <= 120
    assert text.startswith("Facts: %, 95 % interval; n = 8 cases.")
    assert "88 " in next(line for line in text.split("\n") if "1 rome" in line)


def test_a_board_of_a_run_that_died_can_be_drawn(folder, tmp_path):
    log = folder / "measurements.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    (folder / "measurements.parquet").unlink()
    write_leaderboard([folder], tmp_path / "board.md")
    assert "n = 8 cases (overturn 7 to 8)." in (tmp_path / "board.md").read_text()


@pytest.mark.parametrize("only", [(), *((c,) for c in CRITERIA), ("reliability", "overturn")])
@pytest.mark.parametrize("task", ["fact", "pair"])
def test_every_table_of_the_board_is_markdown_whatever_was_measured(tmp_path, only, task):
    """Each cell of a table's rule has a hyphen, and each row as many cells as the rule."""
    scores: dict[Criterion, list[float]] = {c: [1.0, 0.5] for c in only or CRITERIA}
    text = leaderboard(load_runs([write_run(tmp_path, {"m": scores}, task=task)]))
    blocks = [part.split("\n") for part in text.split("\n\n") if part.startswith("|")]
    assert blocks
    for header, rule, *body in blocks:
        cells = rule.strip("|").split("|")
        assert all(re.fullmatch(":?-+:?", cell) for cell in cells), rule
        rows = [line for line in (header, *body) if line.startswith("|")]
        assert {line.count("|") for line in rows} == {len(cells) + 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c[:-1], "one: the log has 95 of the 96 tests that the run ended with; continue"),
        (lambda c: c[: len(c) // 2], r"one: the log has \d\d of the 96 tests that the run ended"),
        (lambda c: b"", "one: the log has 0 of the 96 tests that the run ended with; continue it"),
        (lambda c: c + MORE.encode(), "one: the log has 97 tests, and the run ended with 96;"),
        (lambda c: c, ""),
    ],
)
def test_a_log_that_is_not_what_the_run_ended_with_is_told(folder, tmp_path, change, sentence):
    log = folder / "measurements.jsonl"
    log.write_bytes(change(log.read_bytes()))
    target = tmp_path / "board.md"
    done = CliRunner().invoke(group, ["leaderboard", str(folder), "-o", str(target)])
    assert done.exit_code == 0
    runs = load_runs([folder])
    for text in (done.output, target.read_text(), *payload(runs)["notes"]):
        assert re.search(sentence, " ".join(text.split()).replace("\\", "")), text
    assert len(runs.cut) == len(payload(runs)["notes"]) == bool(sentence)


def test_a_run_that_is_continued_ends_with_all_of_its_tests(folder):
    log, reports = folder / "measurements.jsonl", folder.parents[1]
    log.write_bytes(log.read_bytes()[:-1])
    with RunStore.resume(reports, "one", manifest()) as store:
        assert not load_runs([folder]).cut  # it has not ended
        store.finish({})
    assert read_manifest(folder).tests == 95
    with RunStore.resume(reports, "one", manifest()) as store:
        store.append(MORE)
        store.finish({})
    assert read_manifest(folder).tests == 96
    assert not load_runs([folder]).cut


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Interval(0.934, 0.88, 0.97, 120), "0.93 [0.88, 0.97] n=120"),
        (Interval(float("nan"), float("nan"), float("nan"), 0), "–"),
        (Interval(-0.001, -0.004, 0.2, 3), "0.00 [0.00, 0.20] n=3"),
        (Interval(float("inf"), float("nan"), float("nan"), 3), "inf n=3"),
        # 3/8 as a sum of thirds: the page and the board once told 38 and 37 %
        (Interval(0.37499999999999994, 0.125, 0.375, 8), "0.38 [0.12, 0.38] n=8"),
    ],
)
def test_intervals_as_text(value, text):
    assert tables.interval(value) == text


def test_shares_as_text():
    nan = float("nan")
    assert tables.share(Interval(0.536, 0.481, 0.575, 9)) == "54% [48%, 58%]"  # half to even
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
    other = target.with_name("again.md")
    again = CliRunner().invoke(group, [*args[:-1], str(other), "--judge-again"])
    assert again.exit_code == 0, again.output
    assert other.read_text() == target.read_text()


def test_help_lists_the_commands():
    done = CliRunner().invoke(group, ["--help"])
    assert "leaderboard" in done.output
    assert "compare" in done.output


def test_the_summary_page_has_the_gate_and_the_board(folder, tmp_path):
    text = leaderboard(load_runs([folder]))
    page = summary(text, "The gate passes.\n")
    assert page.startswith("# kn_bench\n\n## Gate\n\nThe gate passes.\n")
    assert text.partition("\n\n")[2] in page
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    append_summary(target, page)
    assert target.read_text() == "before\n" + page


def test_a_junit_report_says_what_was_found():
    row = measured("reliability", says(TRUE), says(NEW))
    properties = dict(junit_properties(judge("reliability", case_of([row]), result_of([row]))))
    assert properties == {
        "kn_bench.status": "holds",
        "kn_bench.score": "1",
        "kn_bench.counted": "1",
        "kn_bench.explanation": "1 of 1 probes give the new answer",
    }
