"""Every built-in method under every protocol that it admits: measured, or refused with a reason."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from kn_bench.cases import sources
from kn_bench.editing import builtin
from kn_bench.editing.registry import Registry, bind
from kn_bench.editing.settings import Choices, parse_assignment
from kn_bench.measure import ability
from kn_bench.measure.engine import Engine
from kn_bench.measure.sequences import measure_sequence
from kn_bench.model.loading import load_model
from kn_bench.results.loading import load_runs
from tests.test_sequences import _thinned, plan, rows

PROTOCOLS = ("batch:2", "sequence:3", "sequence:4/2")
QUICK = ("grace", "alphaedit")
"""A wrapper and a sum of low-rank updates, both with a state; run in continuous integration."""
METHODS = sorted(set(builtin.kinds()) - {"checkpoint"})  # that one needs a folder
CHOICES = Choices(
    tuple(map(parse_assignment, ("nas.norm_anchor=8.0", "lora.num_steps=3", "grace.n_iter=10")))
)


@cache
def specs():
    registry = Registry()
    for module in builtin.modules():
        registry.add(module)
    return registry.methods


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama", "tiny-bert"])
def engine(request):
    return Engine(load_model(request.param))


@pytest.fixture(scope="module")
def cases():
    drawn = sources.load("embedded", limit=6, relations=("P36", "P37")).cases
    return tuple(_thinned(case) for case in drawn if case.task == "fact")


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    monkeypatch.setattr(ability, "A_RELATION", 1)
    monkeypatch.setattr(ability, "TEXT_LINES", 8)
    monkeypatch.setattr(ability, "NEUTRAL", 4)


def check(engine, name, cases, protocol):
    """Measure a built-in method: results for every case, and the model as it was."""
    lm = engine.model
    method = bind(specs()[name], lm, choices=CHOICES)
    asked = plan(protocol, cases)
    result = measure_sequence(engine, name, method, asked)
    errors = {r.error for part in (result.results, result.retained) for r in part.values()}
    assert errors == {""}, name
    masked_only = builtin.kinds()[name] == "causal" and not lm.is_causal
    readings = [result.results, *([result.retained] if asked.protocol.name == "sequence" else [])]
    for part in readings:
        assert list(part) == [case.id for case in asked.cases]
        for r in part.values():
            assert r.measurements or r.not_applicable or r.exclusions, (name, r.case)
    if masked_only:
        assert all(r.not_applicable for r in result.results.values())
    if result.checkpoints:
        last = result.checkpoints[-1]
        assert last.perplexity is not None
        assert math.isfinite(last.perplexity)
        if any(rows(part) for part in readings):
            assert [p.step for p in result.checkpoints][-1] == asked.protocol.steps
    assert lm.parameter_hash() == lm.verified_hash
    assert engine.put_back() == ()
    return result


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_every_protocol(engine, cases, name, protocol):
    check(engine, name, cases, protocol)


@pytest.fixture(scope="module")
def gpt2():
    return Engine(load_model("tiny-gpt2"))


@pytest.mark.parametrize("name", QUICK)
def test_methods_that_carry_a_state_in_steps_of_two(gpt2, cases, name):
    result = check(gpt2, name, cases, "sequence:4/2")
    assert rows(result.results)
    assert rows(result.retained)


# -- through pytest ------------------------------------------------------------------------------


def suites(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs",
        "kn_bench.suites", "--model", "tiny-gpt2", "--grain", "unit", "-m", "facts",
        "--relation", "P36", "--relation", "P37", "--limit", "6", *args,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_methods_that_carry_a_state_through_pytest(tmp_path):
    names = ("alphaedit", "memit-seq", "ultraedit", "grace", "none")
    methods = [word for name in names for word in ("--method", name)]
    done = suites(tmp_path, "--protocol", "sequence:4/2", "--sequences", "2", *methods)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "reports" / "runs").iterdir()
    runs = load_runs([run])
    assert set(runs.verdicts["protocol"]) == {"sequence:4/2"}
    assert set(runs.verdicts["asked"]) == {"immediate", "retained"}
    assert set(runs.verdicts["sequence"]) == {0, 1}
    assert set(runs.verdicts["method"]) == set(names)
    assert not (runs.verdicts["verdict_status"] == "error").any()
    last = runs.curves[runs.curves["step"] == 2]
    retained = {
        name: last[last["method"] == name]["checkpoint_retained"].to_numpy(float) for name in names
    }
    assert [len(shares) for shares in retained.values()] == [2] * len(names)
    assert retained["grace"].min() > 0.5
    assert retained["none"].max() == 0
    # edits are stored with their steps, a state with the last one
    edits = run / "edits"
    assert (edits / "alphaedit-tiny_gpt2-1" / "00002.state.safetensors").is_file()
    assert (edits / "grace-tiny_gpt2-0" / "00001.json").is_file()
    board = (tmp_path / "reports" / "leaderboard.md").read_text()
    assert "## Facts, sequence:4/2: what is left" in board
    assert "2 sequences" in board
    assert list((tmp_path / "reports").glob("curves-*.png"))


@pytest.mark.slow
def test_batches_through_pytest_and_two_workers_as_one(tmp_path):
    methods = ("--method", "memit", "--method", "random-rank-one")
    tables = []
    for workers in ((), ("-n", "2")):
        folder = tmp_path / f"w{len(workers)}"
        folder.mkdir()
        done = suites(folder, "--protocol", "batch:3", "--sequences", "2", *methods, *workers)
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = (folder / "reports" / "runs").iterdir()
        lines = (run / "measurements.jsonl").read_text().splitlines()
        counted = Counter(line for line in lines if '"row":"edit"' not in line)
        tables.append(counted)
        assert all(json.loads(line)["row"] != "curve" for line in lines)
        assert {"immediate"} == set(load_runs([run]).verdicts["asked"])
    assert tables[0] == tables[1]
