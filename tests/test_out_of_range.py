"""Logs, manifests and baselines with values that nothing measured can have are refused by line."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest
from typer.testing import CliRunner

from kn_bench.cases.case import CRITERIA
from kn_bench.commands.app import group
from kn_bench.results.baseline import baseline_of, read_baseline
from kn_bench.results.codec import encode
from kn_bench.results.columns import write_parquet
from kn_bench.results.files import StoreError
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.log import LOG, rows
from kn_bench.results.manifest import FILE, read_manifest
from kn_bench.results.payload import payload
from kn_bench.results.serving import Server
from tests.made_up import manifest, write_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every criterion."""
    return write_run(tmp_path_factory.mktemp("good"), {"rome": {c: [1.0] for c in CRITERIA}})


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    for name in (LOG, FILE):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    return tmp_path


def spoil(run: Path, kind: str, path: str, value: Any) -> int:
    """Put ``value`` at ``path`` of the first row of ``kind`` that has it; return its line."""
    lines = (run / LOG).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        row = json.loads(line)
        if row["row"] != kind:
            continue
        *parents, last = path.split(".")
        parent: Any = row
        for name in parents:
            within = parent[: int(name) + 1] if isinstance(parent, list) else parent.get(name)
            parent = (within[-1] if within else None) if isinstance(parent, list) else within
            if parent is None:
                break
        if parent is not None:
            parent[last] = value
            lines[number - 1] = json.dumps(row, separators=(",", ":"))
            (run / LOG).write_text("\n".join(lines) + "\n")
            return number
    raise AssertionError(f"no {kind} has {path}")


VERDICTS = [
    ("verdict.score", 5.0),
    ("verdict.score", -0.1),
    ("verdict.score", 1e30),
    ("verdict.score", float("nan")),
    ("verdict.readings.prob", 1.5),
    ("verdict.readings.prob", 10**400),
    ("verdict.readings.tf_all", None),
    ("verdict.counted", -1),
    ("verdict.mean_kl", -1.0),
    ("verdict.kinds.0.held", -1),
    ("verdict.kinds.0.kind", None),
    ("verdict.symmetry.other", None),
    ("verdict.overturn.shift", 1.5),
    ("verdict.status", "fine"),
    ("verdict.status", None),
    ("criterion", "charm"),
    ("task", "riddle"),
    ("method", None),
    ("occasion", {"protocol": "single", "sequence": -1, "asked": "immediate"}),
]
EDITS = [
    ("record.seconds", -1.0),
    ("record.seconds", 1e30),
    ("record.seconds", float("nan")),
    ("record.norm", -1.0),
]
MEASUREMENTS = [
    ("before.log_prob_expected", 0.5),
    ("after.log_prob_rejected", 2.0),
    ("after.tf_token", 1.5),
    ("after.rank", -1),
    ("n_expected", 0),
    ("kl", -0.5),
    ("kl", float("nan")),
    ("task", "riddle"),
    ("after.prob", None),
    ("before.tf_all", "x"),
    ("after.rank", "first"),
    ("occasion", "never"),
]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [("verdict", *one) for one in VERDICTS] + [("edit", *one) for one in EDITS],
)
def test_no_board_is_made_of_it(run: Path, kind: str, path: str, value: Any) -> None:
    line = spoil(run, kind, path, value)
    with pytest.raises(StoreError) as refused:
        load_runs([run])
    assert f"{run / LOG}, line {line} " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("path", "value"), MEASUREMENTS)
def test_no_verdict_is_drawn_and_no_parquet_written_of_it(
    run: Path, path: str, value: Any, tmp_path: Path
) -> None:
    line = spoil(run, "measurement", path, value)
    (case, *_) = load_runs([run]).verdicts["case"]
    readers: list[Callable[[], object]] = [
        lambda: load_runs([run], judge_again=True),
        lambda: payload(load_runs([run])),
        lambda: served(load_runs([run]), case),
        lambda: write_parquet(run / LOG, tmp_path / "x.parquet"),
    ]
    for read in readers:
        with pytest.raises(StoreError, match=f"line {line} "):
            read()
    assert not (tmp_path / "x.parquet").exists()


def served(runs: Runs, case: str) -> bytes:
    """The answers that the page asks for."""
    with Server(runs) as server:
        return server.answers(case)


@pytest.mark.parametrize("answer", [b"R\xff", b'"x"'])
def test_a_log_that_changes_while_it_is_served(run: Path, answer: bytes) -> None:
    runs = load_runs([run])
    (case, *_) = runs.verdicts["case"]
    with Server(runs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"{server.address}answers.json?{urlencode({'case': case})}"
        assert urllib.request.urlopen(address).status == 200
        log = (run / LOG).read_bytes()
        (run / LOG).write_bytes(log.replace(b"false", answer.ljust(5), 1))
        for sentence in ("line 1 is no", "expected the run's log, and there is none"):
            with pytest.raises(HTTPError) as refused:
                urllib.request.urlopen(address)
            assert refused.value.code == 500
            text = refused.value.read().decode()
            assert sentence in text or "cannot be read" in text
            assert str(run / LOG) in text
            (run / LOG).unlink(missing_ok=True)
        server.shutdown()


@pytest.mark.parametrize(
    ("file", "was", "becomes"),
    [(LOG, '"tf_all":false', '"tf_all":"x"'), ("cases.jsonl", '"left"', '"right"')],
)
@pytest.mark.parametrize("format", ["", "every-eval-ever", "inspect"])
def test_no_output_is_written_when_one_cannot_be(
    tmp_path: Path, format: str, file: str, was: str, becomes: str
) -> None:
    run = write_run(tmp_path, {"rome": {c: [1.0, 0.0] for c in CRITERIA}})
    text = (run / file).read_text()
    (run / file).write_text(text.replace(was, becomes, 1))
    names = ["a", "b"] if format else ["b.md", "b.csv", "b.html"]
    outputs = [text for name in names for text in ("-o", str(tmp_path / "out" / name))]
    done = CliRunner().invoke(group, ["leaderboard", str(run), *outputs, f"--format={format}"])
    assert isinstance(done.exception, StoreError)
    assert f"{run / file}, line 1 " in str(done.exception)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert "written" not in done.output


@pytest.mark.parametrize("value", [-1e30, 0.0, 1e-7])
def test_what_can_be_measured_is_read(run: Path, value: float) -> None:
    """A log-probability of -inf (a look-up edit), of 0, and one that is rounded a little above."""
    spoil(run, "measurement", "after.log_prob_rejected", value)
    assert list(rows(run / LOG))
    assert len(load_runs([run], judge_again=True).verdicts)


def test_a_doubled_test(run: Path) -> None:
    lines = (run / LOG).read_text().splitlines(keepends=True)
    (run / LOG).write_text("".join(lines * 2))
    with pytest.raises(StoreError, match=r"line \d+ is a second verdict on .* which line \d+ has"):
        load_runs([run])


def test_a_doubled_measurement(run: Path) -> None:
    lines = (run / LOG).read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if line.startswith('{"row":"measurement"'))
    (run / LOG).write_text("".join([*lines[: at + 1], *lines[at:]]))
    with pytest.raises(StoreError, match=rf"line {at + 2} measures .* a second time"):
        load_runs([run], judge_again=True)


def _verdicts_first(lines: list[str]) -> list[str]:
    return sorted(lines, key=lambda line: not line.startswith('{"row":"verdict"'))


def _one_verdict_early(lines: list[str]) -> list[str]:
    """The second measurement of generality comes after its verdict."""
    at = [i for i, line in enumerate(lines) if '"criterion":"generality"' in line]
    moved = lines[at[1]]
    return [line for i, line in enumerate(lines[: at[-1] + 1]) if i != at[1]] + [
        moved, *lines[at[-1] + 1 :]
    ]  # fmt: skip


def _without_measurements(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith('{"row":"measurement"')]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_verdicts_first, r"line 1 is a verdict on .*: expected its measurements before it"),
        (_one_verdict_early, r"line \d+ measures generality/1 of .* no verdict on generality"),
        (_without_measurements, r"is a verdict on .*: expected its measurements before it"),
    ],
)
def test_verdicts_are_drawn_again_only_from_what_stands_before_them(
    run: Path, change: Callable[[list[str]], list[str]], sentence: str
) -> None:
    lines = (run / LOG).read_text().splitlines(keepends=True)
    (run / LOG).write_text("".join(change(lines)))
    assert len(load_runs([run]).verdicts)
    with pytest.raises(StoreError, match=rf"{LOG}, {sentence}" if sentence[0] == "l" else sentence):
        load_runs([run], judge_again=True)


def test_a_repeated_key(run: Path) -> None:
    text = (run / LOG).read_text()
    (run / LOG).write_text(text.replace('"method":"rome"', '"method":"rome","method":"memit"', 1))
    with pytest.raises(StoreError, match=r"line 1 .*'method' stands in it twice"):
        list(rows(run / LOG))


@pytest.mark.parametrize("field", ["created", "finished", "resumed"])
@pytest.mark.parametrize("time", ["yesterday", "2026-13-01", "1", " "])
def test_a_manifest_with_times_that_are_none(tmp_path: Path, field: str, time: str) -> None:
    whole = json.loads(encode(manifest()))
    whole[field] = [time] if field == "resumed" else time
    (tmp_path / FILE).write_text(json.dumps(whole))
    with pytest.raises(StoreError, match=rf"field '{field}' holds '{time}': expected a time such"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("timing", [-1.0, 1e30, float("nan")])
def test_a_manifest_with_impossible_times(tmp_path: Path, timing: float) -> None:
    text = encode(manifest())
    whole = json.loads(text)
    whole["timings"] = {"session": timing}
    (tmp_path / FILE).write_text(json.dumps(whole))
    with pytest.raises(StoreError, match=f"{FILE} holds no Manifest") as refused:
        read_manifest(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("scores", [5.0]), ("scores", [None]), ("criterion", "charm")]
)
def test_a_baseline_with_impossible_scores(
    good: Path, tmp_path: Path, name: str, value: Any
) -> None:
    whole = json.loads(encode(baseline_of(load_runs([good]))))
    whole["scores"][0][name] = value
    (tmp_path / "b.json").write_text(json.dumps(whole))
    with pytest.raises(StoreError, match=r"b\.json holds no Baseline") as refused:
        read_baseline(tmp_path / "b.json")
    assert name in str(refused.value)
