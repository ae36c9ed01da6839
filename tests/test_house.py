"""The house keeps its order: layers, sizes of files, importing without effect."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    "model",
    "cases",
    "editing",
    "measure",
    "localise",
    "results",
    "edits",
    "study",
    "api",
    "testing",
    "commands",
)
"""Lowest first: a package imports only from those before it."""
MODULES = sorted(path for folder in (ROOT / "kn_bench").iterdir() for path in folder.rglob("*.py"))
"""All but the package's own __init__; ``iterdir`` enters the links to edits/ and suites/."""


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_package_has_its_layer():
    packages = {path.parent.name for path in (ROOT / "kn_bench").glob("*/__init__.py")}
    assert packages == {*LAYERS, "suites"}
    assert [path.name for path in (ROOT / "kn_bench").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_from_those_below_it(package):
    above = set(LAYERS[LAYERS.index(package) + 1 :])
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
        for package in LAYERS[: LAYERS.index("testing")]
        for path in (ROOT / "kn_bench" / package).rglob("*.py")
        if {"pytest", "_pytest"} & {name.split(".")[0] for name in imported(path)}
    ]


CONTAINERS = {
    "Memo", "OrderedDict", "defaultdict", "dict", "list", "set", "deque", "Counter",
    "WeakKeyDictionary", "WeakValueDictionary", "WeakSet",
}  # fmt: skip


def _called(node: ast.expr) -> str:
    """The name of what a call or a decorator calls."""
    function = node.func if isinstance(node, ast.Call) else node
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def kept_by_modules(tree: ast.Module) -> list[str]:
    """What a module would remember: empty containers it owns, and caches without a bound."""
    remembered = []
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        empty = value is not None and ast.unparse(value) in ("{}", "[]")
        if empty or (isinstance(value, ast.Call) and _called(value) in CONTAINERS):
            remembered.append(ast.unparse(node))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for decorator in function.decorator_list:
            bounded = isinstance(decorator, ast.Call) and any(
                keyword.arg == "maxsize" and ast.unparse(keyword.value) != "None"
                for keyword in decorator.keywords
            )
            unbounded = _called(decorator) == "lru_cache" and not bounded
            if unbounded or (_called(decorator) == "cache" and function.args.args):
                remembered.append(f"@{ast.unparse(decorator)} def {function.name}")
    return remembered


def test_no_module_remembers_what_it_has_computed():
    """Results belong to a model (``lm.memo``) or to the disk: see DESIGN's table, One of each."""
    owners = {
        path.relative_to(ROOT): kept_by_modules(ast.parse(path.read_text())) for path in MODULES
    }
    assert not {str(path): kept for path, kept in owners.items() if kept}


@pytest.mark.parametrize(
    ("source", "n"),
    [
        ("KNOWN: dict[str, int] = {}", 1),
        ("seen = weakref.WeakKeyDictionary()", 1),
        ("_values: Memo[Value] = Memo(64)", 1),
        ("@cache\ndef f(model): ...", 1),
        ("@functools.lru_cache(maxsize=None)\ndef f(): ...", 1),
        ("@lru_cache\ndef f(x): ...", 1),
        ("@lru_cache(maxsize=8)\ndef f(x): ...", 0),
        ("@cache\ndef table(): ...", 0),
        ("NAMES = {'a': 1}", 0),
        ("def f():\n    seen = {}", 0),
    ],
)
def test_what_counts_as_remembering(source, n):
    assert len(kept_by_modules(ast.parse(source))) == n


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


def test_importing_changes_nothing_in_the_process(tmp_path):
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


def test_the_methods_load_nothing_that_only_boards_and_studies_need():
    """A worker imports all methods before its first test."""
    code = """
import importlib, pkgutil, sys
import kn_bench.testing.session, kn_bench.measure.engine, kn_bench.edits
for module in pkgutil.iter_modules(kn_bench.edits.__path__):
    importlib.import_module(f"kn_bench.edits.{module.name}")
heavy = {"pandas", "scipy", "sklearn", "matplotlib", "datasets", "peft", "hypothesis"}
sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
