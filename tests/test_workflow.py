"""The example workflow for a repository with one method: its shell step does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kn_bench.testing.gate import EXIT_FELL
from tests.conftest import TOYS

ROOT = Path(__file__).resolve().parents[1]
FLOW = yaml.safe_load((ROOT / ".github/workflows/method-gate.yml").read_text())
METHOD = """
import toy_bench
from kn_bench import edit_method

toy_bench.install()

@edit_method("toy-a")
def toy_a(language_model):
    return toy_bench.Toy()
"""


@pytest.fixture
def measure(tmp_path):
    """Runs the step that measures, as the runner does, in a fresh checkout of a method's."""
    (tmp_path / "toy_bench.py").write_text(TOYS.read_text())
    (tmp_path / "fine_tune.py").write_text(METHOD)
    (step,) = (s for s in FLOW["jobs"]["gate"]["steps"] if "--baseline" in s.get("run", ""))

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        subprocess.run(["rm", "-rf", "reports"], cwd=tmp_path, check=True)
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env={
                **os.environ,
                **FLOW["env"],
                "OPTIONS": "--method toy-a --limit 12",
                "TOLERATED": "symmetry:0.05",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTEST_PLUGINS": "xdist.plugin,kn_bench.testing.plugin",
                "OMP_NUM_THREADS": "1",
                "TOY_BOARD": "1",
                "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
                **environment,
            },
            capture_output=True,
            text=True,
        )

    return run


def test_the_first_run_saves_a_baseline_the_next_passes_and_a_worse_one_fails(measure, tmp_path):
    first = measure()
    assert first.returncode == 0, first.stdout + first.stderr
    assert (tmp_path / "baseline.json").is_file()
    same = measure()
    assert same.returncode == 0, same.stdout + same.stderr
    assert "The gate passes" in same.stdout
    worse = measure(TOY_WORSE="toy-a")
    assert worse.returncode == EXIT_FELL, worse.stdout + worse.stderr
    assert "The gate fails" in (tmp_path / "page.md").read_text()
    assert 'name="kn_bench.status"' in (tmp_path / "report.xml").read_text()


def test_it_starts_for_a_method_s_own_files_only():
    # YAML 1.1 takes the bare word `on` for a truth value
    triggers = FLOW[True]
    assert set(triggers) == {"push", "pull_request", "workflow_dispatch"}
    for trigger in ("push", "pull_request"):
        for path in triggers[trigger]["paths"]:
            assert not (ROOT / path).exists()
