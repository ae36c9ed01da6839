"""Methods are found wherever they come from, and told apart."""

from __future__ import annotations

import os
from types import ModuleType
from unittest import mock

import pytest

from kn_bench.editing import builtin
from kn_bench.editing.registry import Registry, RegistryError, edit_method, marked
from kn_bench.results.manifest import read_manifest
from tests.conftest import PLUGINS, outcomes

METHOD = """
import toy_bench
from kn_bench.editing.registry import edit_method

@edit_method("{name}")
def {function}(language_model):
    return toy_bench.Toy()
"""


def plugin(*methods):
    module = ModuleType("some_plugin")
    for number, method in enumerate(methods):
        setattr(module, f"m{number}", method)
    return module


def test_the_function_stays_a_function():
    @edit_method("mine", models="causal")
    def mine(language_model):
        return language_model

    assert mine(3) == 3
    (spec,) = marked(plugin(mine))
    assert (spec.name, spec.models, spec.function) == ("mine", "causal", mine)
    assert spec.origin.startswith(__file__)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü"])
def test_names_that_cannot_be(name):
    with pytest.raises(ValueError, match="expected a name of letters, digits"):
        edit_method(name)


class Bound:
    def edit(self, requests):
        return []


def yields(language_model):
    yield Bound()


async def waits(language_model):
    return Bound()


def positional(language_model, /):
    return Bound()


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (positional, "positional is a function with parameters before '/'"),
        (Bound, "Bound is a class"),
        (Bound(), "a Bound is a Bound"),
        (waits, "waits is an async function"),
    ],
)
def test_what_is_no_function_that_returns_a_method_is_refused_where_it_is_written(function, kind):
    with pytest.raises(ValueError, match=r"^edit_method\('mine'\): ") as refused:
        edit_method("mine")(function)
    assert kind in str(refused.value)
    assert "expected a function that returns the method" in str(refused.value)


@pytest.mark.parametrize("given", [yields, Bound, None, 3])
def test_a_decorator_without_a_name_says_how_it_is_written(given):
    with pytest.raises(ValueError, match=r'^edit_method: expected a name.*@edit_method\("name"\)'):
        edit_method(given)


@pytest.mark.parametrize("settings", [dict, Bound, {}, Bound()])
def test_settings_that_are_none_are_refused_where_they_are_written(settings):
    with pytest.raises(ValueError, match=r"^edit_method\('mine'\): settings=.*a frozen dataclass"):
        edit_method("mine", settings=settings)


def test_kinds_of_model_that_cannot_be():
    with pytest.raises(ValueError, match="models='gpt': expected one of causal, masked, any"):
        edit_method("mine", models="gpt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shares=\['notes'\]: expected a name"):
        edit_method("mine", shares=["notes"])  # type: ignore[arg-type]


def test_objects_that_answer_to_everything_are_no_methods():
    assert list(marked(plugin(pytest.mark, mock.MagicMock(), mock.call))) == []


def test_doubled_names_are_refused_with_both_places():
    def one(language_model): ...

    def two(language_model): ...

    registry = Registry()
    registry.add(plugin(edit_method("mine")(one)))
    registry.add(plugin(one))  # the same function again, imported elsewhere
    registry.check()
    registry.add(plugin(edit_method("mine")(two)))
    with pytest.raises(RegistryError, match=r"two methods are called 'mine': .*py:\d+ and .*py:"):
        registry.check()


@pytest.mark.parametrize("argument", ["", "FOLDER"])
def test_methods_of_one_name_from_one_line_are_refused(argument):
    def made(strength):
        @edit_method("mine", argument=argument)
        def mine(language_model, argument=strength): ...

        return mine

    registry = Registry()
    registry.add(plugin(made(1), made(2)))
    with pytest.raises(RegistryError, match=r"called 'mine': .*py:\d+, two functions; rename one"):
        registry.check()


def test_names_that_are_the_same_in_a_test_id_are_refused():
    def one(language_model): ...

    def two(language_model): ...

    registry = Registry()
    registry.add(plugin(edit_method("rome-no-c")(one), edit_method("rome_no_c")(two)))
    with pytest.raises(RegistryError, match="'rome_no_c' or 'rome-no-c', the same in a test id"):
        registry.check()


def test_unknown_names_are_answered_with_the_known():
    registry = Registry()
    registry.add(plugin(edit_method("b")(lambda language_model: 1)))
    with pytest.raises(RegistryError, match=r"^unknown method 'x'; known: b$"):
        registry.select(["b", "x"])
    assert [spec.name for spec in registry.select(["b", "b"])] == ["b"]


def test_what_bears_on_test_ids_is_read_without_importing_the_builtin_methods():
    pytest.importorskip("torch")
    methods = Registry()

    for module in builtin.modules():
        methods.add(module)

    def told(methods):
        return [
            (spec.name, spec.origin, spec.models, spec.by_default, spec.takes, spec.shares)
            for spec in (*methods.methods.values(), *methods.templates.values())
        ]

    declared = Registry()
    declared.add(builtin.unimported())
    assert told(declared) == told(methods)  # in one order: test ids come in it


def test_a_session_that_only_collects_does_not_import_torch(pytester):
    pytester.makepyfile(
        told="""
        import sys

        def pytest_sessionfinish():
            print("torch was imported:", "torch" in sys.modules)
        """
    )
    session = (*PLUGINS, "-p", "told", "--pyargs", "kn_bench.suites", "--limit", "1",
               "--method", "all", "--collect-only", "-q")  # fmt: skip
    declared = pytester.runpytest_subprocess(*session)
    # a setting is checked by its method, which is imported for it
    imported = pytester.runpytest_subprocess(*session, "--set", "rome.v_lr=0.5")
    told = [result.outlines[:] for result in (declared, imported)]
    assert "torch was imported: False" in told[0]
    assert "torch was imported: True" in told[1]
    tests = [[line for line in lines if "::" in line] for lines in told]
    assert tests[0] == tests[1] != []


def test_a_worker_imports_torch_only_after_it_has_sent_its_tests(pytester):
    """Its ids take as much memory again as its tests, and for a moment only."""
    pytester.makepyfile(
        told="""
        import pathlib, sys
        import pytest

        @pytest.hookimpl(trylast=True)  # once xdist has sent the ids
        def pytest_collection_finish(session):
            if hasattr(session.config, "workerinput"):
                pathlib.Path("imported").write_text(str("torch" in sys.modules))
        """
    )
    session = (*PLUGINS, "-p", "told", "--pyargs", "kn_bench.suites", "-n1", "--model", "tiny-gpt2",
               "--relation", "P36", "--limit", "1", "--method", "in-context", "-q")  # fmt: skip
    assert pytester.runpytest_subprocess(*session).ret == 0
    assert (pytester.path / "imported").read_text() == "False"


@pytest.mark.parametrize("mode", ["--collect-only", "-n1"])
def test_a_builtin_file_named_by_p_is_no_second_method(pytester, mode):
    session = (*PLUGINS, "-p", "kn_bench.edits.controls", "--pyargs", "kn_bench.suites", mode, "-q",
               "--model", "tiny-gpt2", "--relation", "P36", "--limit", "1")  # fmt: skip
    assert pytester.runpytest_subprocess(*session, "--method", "none").ret == 0


# -- in sessions of their own -----------------------------------------------------------------


def test_a_module_given_by_p(bench):
    bench.pytester.makepyfile(my_module=METHOD.format(name="mine", function="mine"))
    result = bench.run("-p", "my_module", "--method", "mine", "-n2")
    assert result.ret == 0
    assert {method for _, method in bench.computed} == {"mine"}


def test_an_entry_point_of_an_installed_package(bench):
    _install(bench, "mine = my_package", my_package=METHOD.format(name="mine", function="mine"))
    result = bench.run("--method", "mine", "-n2")
    assert result.ret == 0
    assert {method for _, method in bench.computed} == {"mine"}


def test_an_entry_point_that_names_the_function(bench):
    _install(bench, "x = my_package:mine", my_package=METHOD.format(name="m", function="mine"))
    assert bench.run("--method", "m").ret == 0


BROKEN = {
    "no_module": ("mine = no_module", "import nothing_of_the_kind",
                  "*the entry point mine = no_module of kn_bench.methods cannot be imported: "
                  "*nothing_of*"),
    "skips": ("skipped = skips", "import pytest\npytest.importorskip('nothing_of_it')",
              "*cannot be imported: Skipped: could not import 'nothing_of_it'*"),
    "leaves": ("exits = leaves", "import sys\nsys.exit('no licence')",
               "*cannot be imported: SystemExit: no licence*"),
    "nameless": ("my method! = nameless", "import nothing_of_it",
                 "*the entry point my method! = nameless of * cannot be imported: Mod*"),
    "number": ("thing = number:thing", "thing = 42",
               "*the entry point thing = number:thing of kn_bench.methods is no method: *"),
    "empty": ("nothing = empty", "", "*the entry point nothing = empty of * is no method: "
              "expected a function with @edit_me*"),
}  # fmt: skip
"""Of a module: its entry point, its text, and what is said of it."""


def test_an_entry_point_that_offers_no_method_is_an_error_and_the_others_run(bench):
    entries = "\n".join(entry for entry, _, _ in BROKEN.values())
    _install(bench, entries, **{module: text for module, (_, text, _) in BROKEN.items()})
    result = bench.run("-k", "reliability and toy_gpt", "--limit", "1")
    assert (result.ret, outcomes(result)["errors"]) == (1, 3 * len(BROKEN)), result.stdout.str()
    assert outcomes(result)["passed"] + outcomes(result)["missed"] == 6
    for _, _, sentence in BROKEN.values():
        result.stdout.fnmatch_lines([sentence])
    assert bench.run("-p", "no:xdist", "--method", "toy-a", "--limit", "1").ret == 0


REFUSED = {
    "a name that is taken": (
        "x = my_package:mine",
        METHOD.format(name="toy-a", function="mine"),
        "ERROR: two methods are called 'toy-a': *",
    ),
    "one that cannot be imported": (
        "toy-a = my_package",
        "import nothing_of_it",
        "ERROR: two methods are called 'toy-a': *the entry point toy-a = my_package of kn_bench*",
    ),
    "the same in a test id": (
        "x = my_package:mine",
        METHOD.format(name="toy_a", function="mine"),
        "ERROR: two methods are called 'toy_a' or 'toy-a', the same in a test id: *",
    ),
    "an unknown fixture": (
        "x = my_package:mine",
        METHOD.format(name="mine", function="mine").replace("language_model", "wheel"),
        "ERROR: the method mine asks for wheel (*), and there is no such fixture*",
    ),
    "settings without any": (
        "x = my_package:mine",
        METHOD.format(name="mine", function="mine").replace("language_model", "settings"),
        "ERROR: the method mine asks for settings (*), and has none: name their dataclass by *",
    ),
}


@pytest.mark.parametrize("workers", ["-n0", pytest.param("-n2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("entry", "text", "sentence"), REFUSED.values(), ids=REFUSED)
def test_an_entry_point_that_cannot_be_measured_is_one_sentence(
    bench, workers, entry, text, sentence
):
    _install(bench, entry, my_package=text)
    result = bench.run(workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([sentence])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_the_code_of_an_entry_point_bears_on_the_run_by_default(bench):
    _install(bench, "mine = my_package", my_package=METHOD.format(name="mine", function="mine"))
    assert bench.run("-p", "no:xdist", "--limit", "1", "--run", "a").ret == 0
    assert read_manifest(bench.path / "reports/runs/a").options["methods"] == "toy-a toy-b mine"


def _install(bench, entry, **modules):
    """A package as pip leaves it."""
    bench.pytester.makepyfile(**modules)
    info = bench.pytester.mkdir("my_package-1.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kn_bench.methods]\n{entry}\n")
    bench.monkeypatch.setenv("PYTHONPATH", str(bench.path), prepend=os.pathsep)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_an_unknown_method_is_one_sentence_once(bench, workers):
    result = bench.run("--method", "rme", workers)
    assert result.ret == 4
    assert result.stderr.str().strip() == "ERROR: unknown method 'rme'; known: toy-a, toy-b"
    assert "rme" not in result.stdout.str()


def test_a_doubled_method_names_both_files(bench):
    bench.pytester.makepyfile(my_module=METHOD.format(name="toy-a", function="mine"))
    result = bench.run("-p", "my_module", "-n2")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["ERROR: two methods are called 'toy-a': *my_module.py:4 and *conftest.py:*; rename one*"]
    )


def test_fixtures_of_the_user_are_not_touched(bench):
    """A method called as one of the user's fixtures, which itself uses another of them."""
    bench.pytester.makepyfile(
        my_module=METHOD.format(name="tmp_path", function="tmp_path")
        + """
import pytest

@pytest.fixture(scope="session")
def corpus():
    return "text"

@edit_method("with-corpus")
def with_corpus(language_model, corpus, tmp_path):
    assert corpus == "text" and tmp_path.is_dir()
    return toy_bench.Toy()
"""
    )
    result = bench.run("-p", "my_module", "--method", "with-corpus", "--method", "tmp_path", "-q")
    assert result.ret == 0
    assert {method for _, method in bench.computed} == {"with-corpus", "tmp_path"}


def test_a_fixture_that_fails_names_its_file_and_the_others_run(bench):
    bench.pytester.makepyfile(
        my_module="""
from kn_bench.editing.registry import edit_method

@edit_method("broken")
def broken(language_model):
    raise KeyError("nothing there")
"""
    )
    result = bench.run("-p", "my_module", "-n2", "-k", "reliability")
    assert (result.ret, outcomes(result)["errors"]) == (1, 24)
    assert len([line for line in bench.verdicts() if line.verdict.status == "error"]) == 24
    result.stdout.fnmatch_lines(
        ["broken on toy-gpt could not be measured: KeyError: 'nothing there' (*my_module.py:3)"]
    )
    assert outcomes(result)["passed"] > 0
