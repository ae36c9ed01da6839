"""The house keeps its order: layers, sizes of files, importing without effect."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUND_TO_TOP = ("cases", "model", "editing", "localise", "measure", "results", "testing")
"""Lowest first. A package imports from those before it; localise and measure stand side by side."""
SIDE_BY_SIDE = {"localise": {"measure"}, "cases": {"model"}, "testing": {"plugin"}}
"""cases may name the embedded models' folder of fact tables; localise asks measure to fit texts;
the fixtures of testing ask the plug-in for the session it keeps."""
MODULES = sorted((ROOT / "kn_bench").rglob("*.py"))


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", GROUND_TO_TOP)
def test_imports_run_downwards(package):
    above = set(GROUND_TO_TOP[GROUND_TO_TOP.index(package) + 1 :]) | {"cli", "plugin"}
    above -= SIDE_BY_SIDE.get(package, set())
    upwards = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "kn_bench" / package).rglob("*.py")
        for name in imported(path)
        if any(name == f"kn_bench.{up}" or name.startswith(f"kn_bench.{up}.") for up in above)
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    uses = {name: imported(path) & names.keys() - {name} for name, path in names.items()}
    assert uses["kn_bench.model.ragged"] >= {"kn_bench.model.resuming"}
    tuple(TopologicalSorter(uses).static_order())  # raises CycleError, which names them


def test_nothing_below_testing_imports_pytest():
    assert not [
        str(path.relative_to(ROOT))
        for package in GROUND_TO_TOP[:-1]
        for path in (ROOT / "kn_bench" / package).rglob("*.py")
        if {"pytest", "_pytest"} & {name.split(".")[0] for name in imported(path)}
    ]


def test_no_module_outgrows_its_purpose():
    sizes = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert not {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > 420}


def test_every_module_says_what_it_is_for():
    assert not [str(p) for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))]


SIDE_EFFECTS = """
import logging, os, random, sys
import numpy, torch, transformers
def state():
    return (
        random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().tolist(),
        torch.backends.cuda.matmul.allow_tf32, torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), len(logging.getLogger().handlers),
        logging.getLogger().level, dict(os.environ), sorted(os.listdir(".")),
    )
before = state()
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before, "importing changed the process"
"""


def test_trap_25_importing_changes_nothing_in_the_process(tmp_path):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.stem != "__main__"
    ]
    run = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_importing_the_package_is_light():
    heavy = "{'torch', 'transformers', 'pandas', 'pytest', 'datasets'} & set(sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys, kn_bench; sys.exit(str({heavy}) if {heavy} else 0)"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
