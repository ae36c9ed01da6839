"""Options: what they accept, what contradicts what, and that other projects never see them."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from kn_bench.model import embedded
from kn_bench.testing import values
from tests.conftest import outcomes


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("2K", 2048), ("1.5M", 3 << 19), ("2g", 2 << 30), ("1GiB", 1 << 30)],
)
def test_sizes(text, size):
    assert values.size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "0", "2X", "much"])
def test_no_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number with K"):
        values.size(text)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--run", "a", "--resume", "b"), "--run a starts a run and --resume b goes on with one*"),
        (("--run", "../a"), "--run '../a': expected letters, digits*"),
        (("--gate", "symmetry:0.05"), "--gate: expected with --baseline FILE*"),
        (("--relation", "P999"), "unknown relation 'P999'; known: P36, P37, P106"),
        (("--model", "a/x", "--model", "b/x"), "--model a/x and --model b/x have the same name*"),
        (("--device", "tpu0"), "--device tpu0: expected cpu, cuda, cuda:N or auto"),
        (("--resume", "last"), "there is no run 'last'*"),
    ],
    ids=lambda value: "_".join(value).replace("-", "") if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_contradictions_are_one_sentence_and_exit_status_4(bench, args, sentence, workers):
    result = bench.run(*args, workers)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: *{sentence}"])
    assert result.stderr.str().count("ERROR") == 1
    assert "Traceback" not in result.stderr.str()
    assert not (bench.path / "reports").exists()


def test_an_unknown_model_names_the_embedded_ones(pytester, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = pytester.runpytest_subprocess("--pyargs", "kn_bench.suites", "--model", "tiny-gtp2")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["ERROR: unknown model 'tiny-gtp2': expected an embedded model (tiny-gpt2, tiny-*"]
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--limit", "0"), "argument --limit: '0': expected a positive integer or 'all'"),
        (("--memory", "much"), "argument --memory: 'much': expected a number with K, M, G"),
        (("--seed", "x"), "argument --seed: 'x' is no whole number"),
        (("--grain", "fine"), "argument --grain: invalid choice: 'fine'"),
        (("--dtype", "int8"), "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_values_that_cannot_be_are_usage_errors(pytester, args, sentence):
    result = pytester.runpytest_subprocess("--pyargs", "kn_bench.suites", *args)
    assert result.ret == 4
    assert sentence in result.stderr.str()


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncate, "*it was cut off; download it again"),
        (Path.unlink, "*expected safetensors weights*"),
    ],
    ids=["truncated", "missing"],
)
def test_weights_that_cannot_be_read_are_refused_in_one_sentence(pytester, spoil, sentence):
    folder = pytester.path / "my_model"
    shutil.copytree(embedded.folder("tiny-gpt2"), folder)
    spoil(folder / "model.safetensors")
    result = pytester.runpytest_subprocess(
        *("--pyargs", "kn_bench.suites", "--model", str(folder), "--method", "none"),
        *("--limit", "1", "--relation", "P36", "-k", "reliability"),
    )
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {sentence}"])
    assert len(result.stderr.str().strip().splitlines()) == 1
    assert not (pytester.path / "reports").exists()


def test_cases_that_cannot_be_read(pytester):
    (pytester.path / "broken.jsonl").write_text('{"id": 3}\n')
    for spec in ("broken.jsonl", "none.jsonl", "pararel=.", "blimp=nowhere", "nonsense"):
        result = pytester.runpytest_subprocess("--pyargs", "kn_bench.suites", "--cases", spec)
        assert result.ret == 4, spec
        (line,) = result.stderr.str().strip().splitlines()
        assert line.startswith("ERROR: ")
        assert not (pytester.path / "reports").exists()


def test_a_model_that_cannot_be_loaded_makes_errors_and_the_others_run(bench):
    result = bench.run(
        "--model", "toy-broken", "--model", "toy-gpt", "--method", "toy-a", "-k", "reliability"
    )
    counted = outcomes(result)
    assert (result.ret, counted["errors"]) == (1, 12)
    assert counted["passed"] + counted["missed"] == 12
    result.stdout.fnmatch_lines(["cannot load the model 'toy-broken'"])


def test_the_manifest_says_what_was_asked(bench):
    bench.run("-q", "--limit", "1", "--relation", "P36", "--seed", "7", "--run", "a")
    manifest = json.loads((bench.path / "reports/runs/a/manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["options"]["limit"] == "1"
    assert manifest["options"]["relations"] == "P36"
    assert manifest["options"]["methods"] == "toy-a toy-b"
    assert manifest["finished"]
    assert manifest["timings"]["measuring"] == pytest.approx(0.6)


# -- other projects ----------------------------------------------------------------------------


def test_another_project_is_left_alone(pytester):
    """Its options may be called as ours, and so may its fixtures; torch is not imported."""
    pytester.makeconftest(
        """
import sys
import pytest

def pytest_addoption(parser):
    for name in ("--model", "--seed", "--device", "--limit", "--run", "--baseline"):
        parser.addoption(name)

@pytest.fixture
def verdict():
    return "guilty"

def pytest_sessionfinish():
    heavy = {"torch", "transformers", "pandas", "numpy", "kn_bench.measure.engine"}
    heavy &= set(sys.modules)
    print(f"heavy: {sorted(heavy)}")
"""
    )
    pytester.makepyfile("def test_reliability(verdict): assert verdict == 'guilty'")
    for workers in ("-n0", "-n2"):
        args = ("-p", "no:hypothesispytest", "-p", "no:jaxtyping", "-s", "--seed", "3", workers)
        result = pytester.runpytest_subprocess(*args)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*heavy: [[][]]"])


def test_the_options_are_there_where_the_suites_are(pytester):
    result = pytester.runpytest_subprocess("--pyargs", "kn_bench.suites", "--help")
    result.stdout.fnmatch_lines(["kn_bench: what is measured, and how:", "*--strict-criteria*"])
    shown = " ".join(result.stdout.str().split())
    assert "those that put 20 behind each criterion" in shown
    result = pytester.runpytest_subprocess("--help")
    result.stdout.no_fnmatch_line("*--strict-criteria*")


def test_markers_are_registered(pytester):
    result = pytester.runpytest_subprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.facts: *", "@pytest.mark.pairs: *"])


@pytest.mark.parametrize("option", ["--sequences=3", "--allow-conflicts", "--stop-at-collapse"])
def test_what_only_several_edits_can_have_is_refused_under_single(bench, option):
    """Two of them were passed over."""
    refused = bench.run("-p", "no:xdist", option)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert "expected a --protocol of several edits" in refused.stderr.str()
