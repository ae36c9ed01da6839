"""The commands of the study."""

from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from kn_bench.commands import runner
from kn_bench.localise.selection import Neuron
from kn_bench.results.files import StoreError


def test_neurons_are_named_by_layer_and_number():
    assert runner.parse_neurons(["9:1094", "0:2"]) == (Neuron(9, 1094), Neuron(0, 2))
    assert runner.parse_neurons(None) == ()
    with pytest.raises(
        ValueError, match=r"--neuron '9\.1094': expected LAYER:NUMBER, such as 9:1094"
    ):
        runner.parse_neurons(["9.1094"])


def test_a_neuron_that_the_model_has_not_is_refused():
    from kn_bench.commands import modifiers

    result = CliRunner().invoke(modifiers.app, ["tiny-bert", "--neuron", "9:1094"])
    assert str(result.exception) == (
        "neuron '9:1094' of tiny-bert: expected a layer from 0 to 2 and a number from 0 to 511"
    )


@pytest.mark.parametrize("name", ["localise", "modifiers", "trace", "control", "study"])
def test_every_option_of_a_command_is_explained(name):
    app = import_module(f"kn_bench.commands.{name}").app
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "--device" in result.output
    command = typer.main.get_command(app)
    unexplained = [p.name for p in command.params if not getattr(p, "help", None)]
    assert unexplained == []


def test_commands_share_their_options():
    """The same name means the same option, with the same text, in every command."""
    texts: dict[str, set[str]] = {}
    for name in ("localise", "trace", "control", "study"):
        app = import_module(f"kn_bench.commands.{name}").app
        for option in typer.main.get_command(app).params:
            texts.setdefault(option.name or "", set()).add(getattr(option, "help", ""))
    shared = {"model", "output", "cases", "relation", "paradigm", "seed", "device", "dtype"}
    assert shared <= texts.keys()
    assert {name: len(texts[name]) for name in shared} == dict.fromkeys(shared, 1)


@pytest.mark.parametrize("load", ["load_cases", "chosen_cases"])
@pytest.mark.parametrize("twice", ["specs", "relations"])
def test_commands_take_each_case_once(load, twice):
    specs = ["embedded"] * (1 + (twice == "specs"))
    wanted = ["P36"] * (1 + (twice == "relations"))
    if load == "load_cases":
        cases = runner.load_cases("tiny-gpt2", specs, wanted, 0)
    else:
        cases = runner.chosen_cases(specs, wanted, 3, 0)
    assert cases
    assert len({case.id for case in cases}) == len(cases)


def test_a_section_that_is_not_known_is_refused_before_anything_is_loaded():
    from kn_bench.commands.control import app

    result = CliRunner().invoke(app, ["figure1", "no-such-model"])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("section 'figure1': expected one of determiners, ")


@pytest.mark.parametrize("name", ["localise", "modifiers", "trace", "study"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(name, tmp_path):
    (tmp_path / "file").touch()
    app = import_module(f"kn_bench.commands.{name}").app
    result = CliRunner().invoke(app, ["no-such-model", "-o", str(tmp_path / "file")])
    assert isinstance(result.exception, StoreError)
    assert "file cannot be written (File exists)" in str(result.exception)


def test_a_command_prints_findings_and_keeps_the_page(tmp_path, monkeypatch, material):
    monkeypatch.setattr(runner, "load_material", lambda *_: material)
    from kn_bench.commands.control import app

    result = CliRunner().invoke(app, ["dose", "any", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "how many neurons hold an answer" in result.output
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "dose" / "needed.csv").is_file()
