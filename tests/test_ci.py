"""The project's own workflow and what it relies on: make targets, lower bounds, pages of docs/."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import kn_bench

ROOT = Path(__file__).resolve().parents[1]
FLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = [step["run"] for job in FLOW["jobs"].values() for step in job["steps"] if "run" in step]


def test_every_make_target_of_the_workflow_exists():
    targets = {target for command in COMMANDS for target in re.findall(r"\bmake (\w+)", command)}
    assert targets == {"test", "shapes", "bench", "drill", "docs", "wheel"}
    for target in targets:
        result = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


def test_make_knows_no_other_target():
    """Else the test above could not fail."""
    result = subprocess.run(["make", "--dry-run", "nothing"], cwd=ROOT, capture_output=True)
    assert result.returncode == 2


def test_the_tests_run_on_every_python_that_the_package_names():
    named = {
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", classifier)
    }
    assert set(FLOW["jobs"]["test"]["strategy"]["matrix"]["python"]) == named
    assert (
        Version(min(named, key=Version)) in Requirement(f"p{PROJECT['requires-python']}").specifier
    )


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_the_lowest_versions_tested_are_the_lowest_allowed(package):
    (requirement,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == package)
    (bound,) = requirement.specifier
    (pinned,) = {m for command in COMMANDS for m in re.findall(rf"\b{package}==(\S+)", command)}
    assert bound.operator == ">="
    assert Version(pinned) == Version(bound.version)


def test_the_version_is_written_once():
    """hatch reads it from the package; the reference for citing names the same one."""
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.get("version", kn_bench.__version__) == kn_bench.__version__


def test_every_public_name_has_its_place_in_the_api_reference():
    listed = re.findall(r"^::: kn_bench\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(kn_bench.__all__)


def test_every_page_of_the_documentation_is_in_its_menu():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(menu) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
