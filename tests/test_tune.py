"""``kn-bench tune``: what it tries, what it keeps apart, what it writes."""

import dataclasses
import sys
from typing import get_args

import pytest

from kn_bench import evaluate
from kn_bench.cases import sources
from kn_bench.commands import tune
from kn_bench.commands.tune import as_toml, held_out, points
from kn_bench.editing import registry
from kn_bench.editing.edit import NoEdit
from kn_bench.editing.presets import read_presets
from kn_bench.editing.registry import MethodSpec, marked_spec
from kn_bench.editing.settings import (
    Choices,
    SettingError,
    checked_choices,
    parameters,
    settings_for,
)
from kn_bench.edits.rome import RomeSettings, rome
from kn_bench.measure.engine import Engine
from kn_bench.model.loading import load_model
from kn_bench.results.board import board
from tests.test_settings import model, specs

_found = marked_spec(rome)
assert _found is not None
SPEC: MethodSpec = _found
BARE = dataclasses.replace(SPEC, name="none", settings=None)


def test_every_combination_is_tried_in_its_type():
    grid = points(["v_lr=1|2.5", "layer=0|1"], SPEC)
    assert grid == [{"v_lr": lr, "layer": layer} for lr in (1.0, 2.5) for layer in (0, 1)]
    with pytest.raises(SettingError, match="rome has no parameter 'lr'"):
        points(["lr=1"], SPEC)
    with pytest.raises(ValueError, match="expected PARAMETER=V1"):
        points(["v_lr"], SPEC)


@pytest.mark.parametrize(
    "values",
    [
        ["v_lr=1", "v_lr=2.5", "layer=0|1"],
        ["v_lr=1", "layer=0", "v_lr=2.5", "layer=1"],
        ["v_lr=1|1.0|2.5", "layer=0|1", "v_lr=2.5|1"],
    ],
)
def test_values_of_one_parameter_add_up_and_equal_ones_count_once(values):
    assert points(values, SPEC) == points(["v_lr=1|2.5", "layer=0|1"], SPEC)


@pytest.mark.parametrize(
    ("specs", "relations"), [(["embedded"] * 2, ["P36"]), (["embedded"], ["P36"] * 2)]
)
def test_what_is_named_twice_is_held_out_once(specs, relations):
    once = held_out(["embedded"], ["P36"], 2, 0)
    assert held_out(specs, relations, 2, 0) == once


@pytest.mark.parametrize(
    ("spec", "text", "reason"),
    [
        (SPEC, "v_lr", "expected PARAMETER=V1|V2, such as v_lr=0.1|0.5"),
        (SPEC, "v_lr=", "rome.v_lr is of type float: expected float, got str"),
        (SPEC, "v_lr=0.5|fast", "rome.v_lr is of type float: expected float, got str"),
        (SPEC, "v_lr=nan|0.1", "rome.v_lr is nan: expected a finite number"),
        (SPEC, "lr=1", "rome has no parameter 'lr'; expected one of "),
        (SPEC, "=1", "rome has no parameter ''; expected one of "),
        (SPEC, "rome.v_lr=1", "rome has no parameter 'rome.v_lr'; expected one of "),
        (BARE, "v_lr=1", "expected a method with parameters, and none has none; name another"),
        (BARE, "v_lr=", "expected a method with parameters, and none has none; name another"),
    ],
)
def test_a_refused_value_is_named_by_the_option_and_the_text_that_were_given(spec, text, reason):
    with pytest.raises(ValueError, match=r"^--try ") as refused:
        points(["layer=1", text] if spec is SPEC else [text], spec)
    assert str(refused.value).startswith(f"--try {text!r}: {reason}")


def test_held_out_cases_are_those_that_no_board_up_to_the_limit_asks():
    held, apart = held_out(["embedded"], ["P36", "P101"], 4, 0)
    board = sources.load("embedded", relations=["P36", "P101"], limit=apart, seed=0).cases
    assert held
    assert not {case.id for case in held} & {case.id for case in board}
    more = sources.load("embedded", relations=["P36", "P101"], limit=apart + 4, seed=0).cases
    assert {case.id for case in held} & {case.id for case in more}


def test_what_is_written_is_a_preset(tmp_path):
    file = tmp_path / "mine.toml"
    best = {"v_lr": 2.5, "context_template_length_params": ((5, 1),)}
    file.write_text(as_toml("rome", "org/Tiny-GPT2", best, [{**best, "score": 0.5}], "4 cases"))
    (preset,) = read_presets(file)
    assert preset.curve[0]["score"] == 0.5
    made = settings_for("rome", RomeSettings, model(), Choices(presets=(preset,)))
    assert (made.v_lr, made.context_template_length_params) == (2.5, ((5, 1),))
    assert made.settings_from == "mine.toml for tiny-gpt2"


NONE = [
    (method, name, None if type(None) in get_args(hint) else "none")
    for method, spec in specs().items()
    if spec.settings is not None
    for name, hint in parameters(spec.settings).items()
    if {type(None), "none"} & set(get_args(hint))
]
"""Each parameter that can be none, and what that is: no value, or a choice of this name."""


@pytest.mark.parametrize(("method", "name", "value"), NONE)
def test_none_that_wins_is_written_and_read_again(tmp_path, method, name, value):
    """The package's own preset may have a number there, which would come back."""
    spec = specs()[method]
    (point,) = points([f"{name}=none"], spec)
    assert point == {name: value}
    file = tmp_path / "mine.toml"
    file.write_text(as_toml(method, "tiny-gpt2", point, [{**point, "score": 0.5}], "4 cases"))
    presets = read_presets(file)
    assert presets[0].curve == ({name: "none", "score": 0.5},)
    choices = checked_choices((), presets, {method: spec.settings})
    assert getattr(settings_for(method, spec.settings, model(), choices), name) == value


def test_a_sweep_that_is_stopped_leaves_the_points_that_it_had(tmp_path, monkeypatch):
    scores = iter([0.25, 0.75])

    def measured(engine, spec, point, cases):
        score = next(scores, None)
        if score is None:
            raise KeyboardInterrupt
        return {**point, "score": score}

    monkeypatch.setattr(tune, "measured", measured)
    file = tmp_path / "mine.toml"
    with pytest.raises(KeyboardInterrupt):
        tune.command("rome", "tiny-gpt2", ["v_lr=1|2|3"], file, relation=["P36"], limit=1)
    (preset,) = read_presets(file)
    assert [point["v_lr"] for point in preset.curve] == [1.0, 2.0]
    assert preset.values["v_lr"] == 2.0
    assert preset.source.endswith("; stopped after 2 of 3 points")


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [((0.0,), None), ((0.0, 0.0), None), ((0.0, 0.25, 0.25), 2.0), ((0.5, 0.0), 1.0)],
)
def test_values_are_written_and_advised_only_where_a_point_worked(
    tmp_path, monkeypatch, capsys, scores, chosen
):
    left = iter(scores)
    monkeypatch.setattr(tune, "measured", lambda _, __, point, ___: {**point, "score": next(left)})
    file = tmp_path / "mine.toml"
    tried = "v_lr=" + "|".join(str(n + 1) for n in range(len(scores)))
    tune.command("rome", "tiny-gpt2", [tried], file, relation=["P36"], limit=1)
    said = capsys.readouterr().out.splitlines()[-1]
    (preset,) = read_presets(file)
    assert [point["score"] for point in preset.curve] == list(scores)
    assert "stopped" not in preset.source
    assert preset.values == ({} if chosen is None else {"v_lr": chosen})
    if chosen is None:
        assert said.startswith(f"no point of {len(scores)} worked: ")
        assert "--preset" not in said
    else:
        assert said == f"written to {file}: use it by --preset {file}"


@pytest.mark.parametrize(
    ("method", "name", "values", "reason"),
    [
        (
            "memit*",
            "tiny-gpt2",
            ["v_lr=1"],
            r"'memit\*': expected one method, and it names ",
        ),
        (
            "rome",
            "tiny-bert",
            ["layer=1"],
            "rome: expected a causal model, and tiny-bert is",
        ),
        ("rome", "tiny-gpt2", ["layer=1|99"], "layer 99: tiny-gpt2 has layers 0 to 3; set others"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_first_point(
    tmp_path, monkeypatch, method, name, values, reason
):
    monkeypatch.setattr(tune, "measured", lambda *_: pytest.fail("a point was measured"))
    with pytest.raises(ValueError, match=reason):
        tune.command(method, name, values, tmp_path / "mine.toml", relation=["P36"], limit=1)
    assert not list(tmp_path.iterdir())


PACKAGE = """
from dataclasses import dataclass

from kn_bench import PromptEdit, edit_method
from kn_bench.editing.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Repeated(Settings):
    times: int = 1


class Stated:
    def __init__(self, times):
        self.times = times

    def edit(self, requests):
        facts = [f"{r.cloze.left} {r.target_new}." for r in requests]
        return [PromptEdit(" ".join([fact] * self.times)) for fact in facts]


@edit_method("stated", settings=Repeated)
def stated(language_model, settings):
    return Stated(settings.times)


@edit_method("asking", settings=Repeated)
def asking(language_model, settings, tmp_path):
    return Stated(settings.times)
"""


@pytest.mark.parametrize(
    ("entry", "method", "reason"),
    [
        ("my_package", "stated", ""),
        ("my_package:stated", "stated", ""),
        ("my_package", "asking", "asking: expected a method that takes .* also takes tmp_path"),
        ("my_package:typo", "stated", "mine = 'my_package:typo': expected a module with methods"),
    ],
)
def test_a_method_of_an_installed_package_is_swept(tmp_path, monkeypatch, entry, method, reason):
    (tmp_path / "my_package.py").write_text(PACKAGE)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kn_bench.methods]\nmine = {entry}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    file = tmp_path / "mine.toml"
    asked = (method, "tiny-gpt2", ["times=1|2"], file)
    if reason:
        with pytest.raises(ValueError, match=reason):
            tune.command(*asked, relation=["P36"], limit=1)
        assert not file.exists()
        return
    tune.command(*asked, relation=["P36"], limit=1)
    (preset,) = read_presets(file)
    assert [point["times"] for point in preset.curve] == [1, 2]
    assert preset.methods == ("stated",)


def test_a_share_of_no_case_is_no_share(tmp_path):
    """ROME edits no pair whose answer comes before the word that decides."""
    file, pairs = tmp_path / "mine.toml", "determiner_noun_agreement_2"
    with pytest.raises(ValueError, match="reliability: expected held-out cases that show it, and"):
        tune.command("rome", "tiny-gpt2", ["layer=1"], file, relation=[pairs], limit=1)
    assert not file.exists()


class Fails:
    """Changes nothing, and fails on the first ``n`` of the cases."""

    def __init__(self, cases, n):
        self.failing = {case.id for case in cases[:n]}

    def edit(self, requests):
        if any(request.id in self.failing for request in requests):
            raise ArithmeticError("no inverse")
        return [NoEdit() for _ in requests]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_case_that_the_method_fails_on_counts_as_missed_and_is_told(monkeypatch, capsys, n):
    cases = sources.load("embedded", relations=["P36"], limit=3).cases
    monkeypatch.setattr(registry, "bind", lambda *_: Fails(cases, n))
    point = tune.measured(Engine(load_model("tiny-gpt2")), SPEC, {"v_lr": 0.5}, cases)
    assert point["locality"] == pytest.approx(1 - n / 3, abs=1e-4)
    assert (point["reliability"], point["score"], point.get("errors", 0)) == (0, 0, n)
    said = f"{n} of 3 cases failed: rome failed while editing: ArithmeticError: no inverse"
    assert (said in capsys.readouterr().err) == (n > 0)


def test_the_score_of_a_point_is_the_board_s(monkeypatch):
    """A case counted only where all of its probes held: settings with S 73 had a score of 0."""
    lm = load_model("tiny-gpt2")
    cases = sources.load("embedded", relations=["P36", "P103"], limit=4).cases
    point = tune.measured(Engine(lm), SPEC, {}, cases)
    evaluation = evaluate(lm, "rome", cases)
    (line,) = board(evaluation.runs)
    for criterion in tune.CRITERIA:
        assert point[criterion] == pytest.approx(evaluation.score(criterion), abs=1e-4)
    assert point["score"] == pytest.approx(line.s.mean, abs=1e-4)
    assert 0.3 < point["score"] < 1
