"""What a page names by number: the question, the edit and the answers of each run are its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kn_bench.results.board import GROUP
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.log import LOG
from kn_bench.results.payload import payload
from kn_bench.results.serving import Server
from kn_bench.results.texts import FILE
from tests.made_up import write_run
from tests.test_leaderboard import CHANCE, GOOD

SOME = {criterion: scores[:2] for criterion, scores in GOOD.items()}
LIKE_CHANCE = {criterion: scores[:2] for criterion, scores in CHANCE.items()}


def write_own_texts(reports: Path, run: str, *, seed: int = 0, method: str = "rome") -> Path:
    """A run of two cases whose every text names the run, under ids that all runs share."""
    scores = {f"control:{method}": LIKE_CHANCE, method: {**SOME, "portability": [0.5] * 2}}
    folder = write_run(reports, scores, run=run, seed=seed)
    cases = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    for case in cases:
        case |= {"prompt": f"{run} asks {{}}", "subject": f"{run} subject"}
        case |= {"target_true": f"{run} true", "target_new": f"{run} new"}
        case["probes"] = [{**p, "left": f"{run} {p['id']}"} for p in case["probes"]]
    text = "".join(json.dumps(case, separators=(",", ":")) + "\n" for case in cases)
    (folder / FILE).write_text(text)
    log = (folder / LOG).read_text()
    log = log.replace('"cluster":"k', f'"cluster":"{run} k').replace("P36", f"{run} P36")
    log = log.replace(f'"case":"embedded/{run} P36', '"case":"embedded/P36')
    (folder / LOG).write_text(log)
    return folder


@pytest.fixture(
    params=[((0, "rome"), (3, "rome")), ((0, "rome"), (3, "ft-l")), ((0, "rome"), (0, "rome"))],
    ids=["one method", "two methods", "made of the same"],
)
def runs(request: Any, tmp_path: Path) -> Runs:
    about = zip(("ours", "theirs"), request.param, strict=True)
    return load_runs(
        [write_own_texts(tmp_path, run, seed=seed, method=method) for run, (seed, method) in about]
    )


def run_of(runs: Runs) -> dict[tuple[str, ...], str]:
    """The run behind each line."""
    pairs = runs.verdicts[[*GROUP, "run"]].drop_duplicates()
    return {tuple(names): run for *names, run in pairs.itertuples(index=False, name=None)}


def test_a_case_has_the_question_and_the_edit_of_the_run_behind_its_line(runs: Runs) -> None:
    data = payload(runs)
    behind, texts, cases = run_of(runs), data["texts"], data["cases"]
    seen = set()
    for part in ("verdicts", "edits"):
        for line, case in zip(data[part]["line"], data[part]["case"], strict=True):
            run = behind[tuple(data["lines"][line][name] for name in GROUP)]
            assert data["runs"][data["lines"][line]["run"]]["run"] == run
            said = {name: texts[column[case]] for name, column in cases.items()}
            assert said.pop("id").startswith("embedded/P36/c")
            names = ("relation", "cluster", "subject", "prompt", "target_true", "target_new")
            assert all(said[name].startswith(run) for name in names)
            seen.add(run)
    assert seen == set(behind.values())


@pytest.mark.parametrize("is_served", [False, True], ids=["embedded", "served"])
def test_a_probe_has_the_prompt_of_the_run_behind_its_answers(runs: Runs, is_served: bool) -> None:
    data = payload(runs)
    found: list[tuple[Any, Any]] = [(data["answers"], data["texts"])]
    if is_served:
        with Server(runs) as server:
            ids = sorted(set(runs.verdicts["case"]))
            found = [(each, each["texts"]) for each in (json.loads(server.answers(i)) for i in ids)]
    behind, seen = run_of(runs), set()
    for told, texts in found:
        probes, after = told["probes"], told["after"]
        for line, probe in zip(after["line"], after["probe"], strict=True):
            run = behind[tuple(data["lines"][line][name] for name in GROUP)]
            assert texts[probes["left"][probe]] == f"{run} {texts[probes['id'][probe]]}"
            own = data["cases"]["prompt"][probes["case"][probe]]
            assert data["texts"][own].startswith(run)
            seen.add((run, line, data["asked"][probes["criterion"][probe]]))
    criteria = {*SOME, "portability"} - {"overturn"}
    assert {(line, c) for _, line, c in seen} == {
        (line, c) for line in range(len(data["lines"])) for c in criteria
    }


def test_runs_that_asked_the_same_share_their_cases(tmp_path: Path) -> None:
    alone = write_run(tmp_path, {"rome": SOME}, run="one")
    other = write_run(tmp_path, {"rome": SOME}, run="two", seed=1)
    one, both = payload(load_runs([alone])), payload(load_runs([alone, other]))
    assert len(both["lines"]) == 2
    assert [len(both["cases"]["id"]), len(one["cases"]["id"])] == [2, 2]


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({}, {}),
        ({"seed": 1}, {"0 1 ": "seed", "0 1 tiny-gpt2": "seed"}),
        ({"data": {"embedded": "d" * 64}}, {"0 1 ": "data", "0 1 tiny-gpt2": "data"}),
        ({"models": {"tiny-gpt2": "e" * 64}}, {"0 1 tiny-gpt2": "weights"}),
        ({"seed": 1, "model": "tiny-bert", "models": {"tiny-bert": "e" * 64}}, {"0 1 ": "seed"}),
    ],
)
def test_in_what_two_runs_differ_is_said(
    tmp_path: Path, changes: dict[str, Any], differ: dict[str, str]
) -> None:
    first = write_run(tmp_path, {"rome": SOME}, run="one")
    second = write_run(tmp_path, {"ft-l": SOME}, run="two", **changes)
    assert payload(load_runs([first, second]))["unlike"] == differ
