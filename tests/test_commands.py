"""``kn-bench data`` and ``kn-bench blimp``, as a user calls them."""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kn_bench.cases import sources
from kn_bench.cases.sources import embedded
from kn_bench.commands import blimp, data
from kn_bench.commands.app import COMMANDS, LEFT, app, group
from kn_bench.results.files import atomically
from kn_bench.testing.options import Options
from kn_bench.testing.plan import make_plan

PAIRS = [
    {"sentence_good": "This boy hugs the cats.", "sentence_bad": "This boy hug the cats."},
    {"sentence_good": "These boys hug the cats.", "sentence_bad": "These boys hugs the cats."},
]


def run(module, *arguments):
    return CliRunner().invoke(module.app, [str(argument) for argument in arguments])


@pytest.fixture
def pairs(tmp_path):
    """A folder with one of BLiMP's paradigms."""
    rows = [{**pair, "pairID": str(i)} for i, pair in enumerate(PAIRS)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "regular_plural_subject_verb_agreement_1.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path / "cache"))


def test_data_lists_what_is_there_and_says_how_to_get_the_rest(no_cache):
    result = run(data)
    assert result.exit_code == 0
    selection = embedded.load()
    assert sources.content_hash(selection.cases) in result.output
    assert f" {len(selection.cases)} " in result.output
    assert "pararel is not in the cache: `kn-bench data pararel --fetch`" in result.output


@pytest.mark.parametrize(
    ("name", "left"),
    [
        *((name, "run it again") for name in COMMANDS if name not in LEFT),
        (
            "edit",
            "if it said what it wrote, that is whole; otherwise run it again",
        ),
        ("study", "the same command without --again goes on after the finished sections"),
        ("tune", "the preset, where one was written, holds the points measured so far"),
    ],
)
def test_an_interrupted_command_says_so(monkeypatch, name, left):
    def command():
        raise KeyboardInterrupt

    interrupted = typer.Typer()
    interrupted.command()(command)
    monkeypatch.setattr(import_module(COMMANDS[name].module), "app", interrupted)
    result = CliRunner().invoke(group, [name])
    assert result.exit_code == 130
    assert result.stderr == f"kn-bench {name}: interrupted; {left}\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_ended_leaves_nothing_half_written(tmp_path, monkeypatch, capsys, name):
    """The system's own answer to these signals runs no handler of ours."""
    number, file = signal.Signals[name], tmp_path / "board.md"

    def command():
        with atomically(file) as half:
            half.write(b"half")
            os.kill(os.getpid(), number)
            time.sleep(5)

    ended = typer.Typer()
    ended.command()(command)
    monkeypatch.setattr(import_module(COMMANDS["leaderboard"].module), "app", ended)
    monkeypatch.setattr(sys, "argv", ["kn-bench", "leaderboard"])
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as status:
            app()
    finally:
        signal.signal(number, before)
    assert status.value.code == 128 + number
    assert capsys.readouterr().err.strip() == "kn-bench leaderboard: interrupted; run it again"
    assert list(tmp_path.iterdir()) == []


def test_data_by_relation_adds_up(no_cache):
    rows = data.rows("embedded", embedded.load(), by_relation=True)
    (whole,) = data.rows("embedded", embedded.load(), by_relation=False)
    assert sum(int(row[2]) for row in rows) == int(whole[2])
    assert sum(int(row[3]) for row in rows) == int(whole[3])
    assert len(rows) == int(whole[1])


def test_data_counts_what_is_excluded_by_reason(pairs):
    path = next(pairs.glob("*.jsonl"))
    same = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleep.", "pairID": "9"}
    path.write_text(path.read_text() + json.dumps(same) + "\n")
    result = run(data, f"blimp={pairs}")
    assert result.exit_code == 0
    assert "the two sentences are the same" in result.output
    listed = run(data, f"blimp={pairs}", "--by-relation", "--markdown").output
    assert "| regular_plural_subject_verb_agreement_1 |" in listed


FACT = {
    "subject": "Canada",
    "prompt": "The capital of {} is",
    "target_true": "Ottawa",
    "target_new": "Paris",
    "aliases": ["Paname"],
    "neighbours": [{"prompt": "The capital of France is", "answer": "Paris"}],
}


def test_data_prints_three_cases_as_they_will_be_asked(tmp_path):
    subjects = ("Canada", "Cuba", "Chad", "Fiji", "Mali", "Oman", "Togo")
    rows = [{**FACT, "subject": name} for name in subjects]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    printed = run(data, path).output
    edits = [line for line in printed.splitlines() if "edit to 'Paris' (before: 'Ottawa')" in line]
    assert [line.split()[0] for line in edits] == [
        "mine/mine/Canada",
        "mine/mine/Chad",
        "mine/mine/Mali",
    ]
    lines = printed.splitlines()
    assert (
        "reliability/0  The capital of Chad is ▁. → 'Paris', not 'Ottawa' (1 more names count)"
        in lines
    )
    assert (
        "locality/same_relation/0  The capital of France is ▁. → unchanged (true: 'Paris')" in lines
    )
    # what the file lacks and what is left out is said once, with its count
    (symmetry,) = [line for line in lines if "the data brings no inverse question" in line]
    assert symmetry.split()[-1] == "7"
    assert "the same fact is listed again" in printed
    assert "edit to" not in run(data, path, "--examples", "0").output


def test_data_shows_text_of_a_file_without_control_sequences(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({**FACT, "target_new": "\x1b[31mParis"}) + "\n")
    printed = run(data, path).output
    assert "\x1b" not in printed
    assert "Paris" in printed


def test_data_names_the_line_of_your_file_that_is_wrong(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"subject": "Canada"}\n')
    result = run(data, path)
    assert isinstance(result.exception, ValueError)
    assert "mine.jsonl, line 1" in str(result.exception)


@pytest.mark.parametrize(
    "rows",
    [
        [{**FACT, "relation": "born-in"}, {**FACT, "relation": "born_in"}],
        [{"good": f"He sold this {word}.", "bad": f"He sold this {word}s.", "id": "a"}
         for word in ("book", "cup")],
    ],
)  # fmt: skip
def test_data_refuses_cases_of_one_id_as_a_run_does(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert str(run(data, path).exception).startswith("two cases are called mine/")
    with pytest.raises(ValueError, match="two cases are called mine/"):
        make_plan(Options(cases=(str(path),)))


def test_blimp_gives_the_share_of_grammatical_sentences_preferred(pairs):
    result = run(blimp, "tiny-gpt2", pairs, "--markdown")
    assert result.exit_code == 0
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in result.output.splitlines() if line
    ]
    assert cells[2] == ["regular_plural_subject_verb_agreement_1", "1.000", cells[2][2], "2"]
    assert cells[-1][:2] == ["mean of all paradigms", "1.000"]
    assert cells[3][0] == "mean of subject_verb_agreement"


def test_blimp_turned_round_gives_the_rest(pairs):
    path = next(pairs.glob("*.jsonl"))
    turned = [
        {"sentence_good": p["sentence_bad"], "sentence_bad": p["sentence_good"], "pairID": str(i)}
        for i, p in enumerate(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in turned))
    assert " 0.000 " in run(blimp, "tiny-gpt2", pairs).output


def test_blimp_takes_the_first_so_many_pairs(pairs):
    last = run(blimp, "tiny-gpt2", pairs, "--limit", 1).output.split()[-1]
    assert last == "1"


def test_blimp_names_a_paradigm_that_is_not_there(pairs):
    result = run(blimp, "tiny-gpt2", pairs, "--paradigm", "wh_island")
    assert str(result.exception) == (
        f"{pairs}: expected wh_island.jsonl in it; add it, or leave the paradigm out"
    )


@pytest.mark.skipif("KN_BENCH_SHARED" not in os.environ, reason="KN_BENCH_SHARED is not set")
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_the_embedded_models_prefer_grammatical_agreement(name):
    folder = Path(os.environ["KN_BENCH_SHARED"]) / "data" / "blimp"
    result = run(blimp, name, folder, "--paradigm", "determiner_noun_agreement_1", "--limit", 50)
    accuracy = float(result.output.splitlines()[2].split()[1])
    assert accuracy >= 0.9
