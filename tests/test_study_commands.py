"""The commands of the study."""

import pytest
from typer.testing import CliRunner

from kn_bench.commands import studying
from kn_bench.localise.selection import Neuron
from kn_bench.results.files import StoreError


def test_neurons_are_named_by_layer_and_number():
    assert studying.neurons(["9:1094", "0:2"]) == (Neuron(9, 1094), Neuron(0, 2))
    assert studying.neurons(None) == ()
    with pytest.raises(ValueError, match=r"'9\.1094' names no neuron: write LAYER:NUMBER"):
        studying.neurons(["9.1094"])


def test_a_neuron_that_the_model_has_not_is_refused():
    from kn_bench.commands import modifiers

    result = CliRunner().invoke(modifiers.app, ["tiny-bert", "--neuron", "9:1094"])
    assert str(result.exception) == (
        "tiny-bert has no neuron 9:1094: its layers are 0 to 2, the neurons of each 0 to 511"
    )


@pytest.mark.parametrize("name", ["localise", "modifiers", "trace", "control", "study"])
def test_commands_explain_themselves(name):
    from importlib import import_module

    app = import_module(f"kn_bench.commands.{name}").app
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "model" in result.output


def test_a_section_that_is_not_known_is_refused_before_anything_is_loaded():
    from kn_bench.commands.control import app

    result = CliRunner().invoke(app, ["figure1", "no-such-model"])
    assert isinstance(result.exception, ValueError)
    assert "there is no section 'figure1'" in str(result.exception)


@pytest.mark.parametrize("name", ["localise", "modifiers", "trace", "study"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(name, tmp_path):
    from importlib import import_module

    (tmp_path / "file").touch()
    app = import_module(f"kn_bench.commands.{name}").app
    result = CliRunner().invoke(app, ["no-such-model", "-o", str(tmp_path / "file")])
    assert isinstance(result.exception, StoreError)
    assert "file cannot be written (File exists)" in str(result.exception)


def test_a_command_prints_findings_and_keeps_the_page(tmp_path, monkeypatch, material):
    monkeypatch.setattr(studying, "material", lambda *_, **__: material)
    from kn_bench.commands.control import app

    result = CliRunner().invoke(app, ["dose", "any", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "how many neurons hold an answer" in result.output
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "dose" / "needed.csv").is_file()
