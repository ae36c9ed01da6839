"""The wheel and the sdist hold what is needed, and no copy of the package is taken for another."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CONFTEST, PLUGINS, TOYS

CHECKOUT = Path(__file__).resolve().parents[1]


def run(*command, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("dist")
    for target in ("wheel", "sdist"):
        result = run("hatchling", "build", "-t", target, "-d", str(folder), cwd=CHECKOUT)
        if "No module named hatchling" in result.stderr:
            pytest.skip("hatchling is not installed")
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The wheel, unpacked as pip does it."""
    folder: Path = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_suites_methods_models_and_types(installed):
    package = installed / "kn_bench"
    assert (package / "py.typed").is_file()
    names = {path.name for path in (package / "suites").glob("test_*.py")}
    assert names == {path.name for path in (CHECKOUT / "suites").glob("test_*.py")}
    assert (package / "edits" / "rome.py").is_file()
    assert (package / "suites" / "conftest.py").is_file()
    for model in ("tiny_gpt2", "tiny_llama", "tiny_bert"):
        assert (package / "model/embedded" / model / "model.safetensors").is_file()
    assert {path.name for path in installed.iterdir()} == {
        "kn_bench",
        *(path.name for path in installed.glob("*.dist-info")),
    }, "training/ and tests/ stay out"


def test_no_module_of_the_wheel_is_a_test_or_a_recipe(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if name.endswith(".py")}
    assert "kn_bench/edits/kn.py" in modules
    assert "kn_bench/suites/test_locality.py" in modules
    assert not [name for name in modules if {"tests", "training"} & set(name.split("/"))]
    assert {name.split("/")[0] for name in modules} == {"kn_bench"}, "edits has one name"


def test_the_methods_have_one_name():
    """In a checkout, where the folder edits/ itself can be found."""
    assert (
        run("edits.rome", cwd=CHECKOUT)
        .stderr.splitlines()[-1]
        .endswith(
            "edits: import the methods as kn_bench.edits; under two names every method would exist "
            "twice"
        )
    )


def test_the_tests_are_no_part_of_the_package():
    assert importlib.util.find_spec("kn_bench.edits") is not None
    assert importlib.util.find_spec("kn_bench.tests") is None


def test_the_sdist_can_be_tested_and_built(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "pyproject.toml",
        "conftest.py",
        "suites/conftest.py",
        "edits/rome.py",
        "tests/toy_bench.py",
        "training/train.py",
        "kn_bench/py.typed",
        "Makefile",
    ):
        assert name in names


def test_the_installed_suites_run_from_an_unrelated_folder(installed, tmp_path):
    (tmp_path / "toy_bench.py").write_text(TOYS.read_text())
    (tmp_path / "conftest.py").write_text(CONFTEST)
    result = run(
        *("pytest", *PLUGINS, "--pyargs", "kn_bench.suites", "-n2", "--method", "toy-a", "-rs"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "78 passed" in result.stdout
    assert f"{installed.name}/kn_bench/suites/test_symmetry.py" in result.stdout


def test_a_checkout_beside_another_copy_is_refused(installed):
    # not `python -m pytest`, which puts the current folder in front
    result = subprocess.run(
        [Path(sys.executable).with_name("pytest"), "suites", "--co", "-p", "no:cacheprovider"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 4
    assert result.stderr.strip() == (
        f"ERROR: kn_bench is imported from {installed}/kn_bench, not from this checkout "
        f"({CHECKOUT}): run `pip install -e .` here, or uninstall the other copy"
    )


FOREIGN = """
import sys, pytest
status = pytest.main(["-q", "-p", "no:cacheprovider"])
ours = sorted(name for name in sys.modules if name.startswith("kn_bench"))
heavy = sorted({"torch", "transformers", "pandas", "numpy", "datasets", "rich"} & set(sys.modules))
print("status", int(status), "ours", len(ours), "heavy", heavy)
"""


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_another_projects_tests_start_no_run(tmp_path, workers):
    """With xdist the controller has nothing but ids, and theirs may have three parts as ours do."""
    (tmp_path / "test_theirs.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('c', ['z'])\n"
        "@pytest.mark.parametrize('b', ['y'])\n"
        "@pytest.mark.parametrize('a', ['x'])\n"
        "def test_theirs(a, b, c): pass\n"
    )
    result = run(
        "pytest", *PLUGINS, workers, "-v", cwd=tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert result.returncode == 0
    assert "test_theirs[x-y-z]" in result.stdout
    assert "kn_bench" not in result.stdout.partition("plugins:")[2].partition("\n")[2]
    assert not (tmp_path / "reports").exists()


def test_another_project_imports_next_to_nothing(tmp_path):
    """What a session costs that has nothing to do with us: a few light modules of our own."""
    (tmp_path / "test_a.py").write_text("def test_a(): pass")
    environment = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "kn_bench.testing.plugin",
    }
    result = subprocess.run(
        [sys.executable, "-c", FOREIGN],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    match = re.search(r"status (\d+) ours (\d+) heavy (.*)", result.stdout)
    assert match, result.stderr
    assert (match[1], match[3]) == ("0", "[]")
    # the plug-in, its options, the registry and what these three name: 17, text and tables only
    assert 0 < int(match[2]) <= 17
