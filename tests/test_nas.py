"""NAS measures its own m: the trimmed mean norm of targets of the unedited model."""

from dataclasses import replace
from typing import Any

import pytest

from kn_bench.cases import sources
from kn_bench.cases.sampling import stable_hash
from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import LowRankEdit
from kn_bench.editing.norm_anchor import measured_norm
from kn_bench.editing.rome.problem import ValueProblem
from kn_bench.editing.rome.value import optimise_values
from kn_bench.editing.settings import settings_for
from kn_bench.edits.memit import Memit
from kn_bench.edits.nas import NasSettings, nas
from kn_bench.model.loading import load_model

SOLVES = 41
QUICK: dict[str, Any] = {
    "v_num_grad_steps": 3,
    "context_template_length_params": ((3, 1),),
    "mom2_n_tokens": 2_000,
    "norm_solves": SOLVES,
    "norm_anchor": 0.0,
}


@pytest.fixture
def lm():
    return load_model("tiny-gpt2")  # with a memo of its own


@pytest.fixture
def settings(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))
    return replace(settings_for("nas", NasSettings, lm), **QUICK)


def test_m_is_the_mean_of_the_norms_between_the_extremes(lm, settings):
    facts = [case for case in sources.load("embedded").cases if case.task == "fact"]
    facts.sort(key=lambda case: stable_hash(0, case.id))
    method = Memit(lm, settings)
    norms = []
    for case in facts[:SOLVES]:
        (problem,) = method._read([case.request])
        assert isinstance(problem, ValueProblem)
        values = optimise_values(
            lm, settings.layers[-1], [problem], settings.value_settings, place="block"
        )
        norms.append(float(values[0].v_site.norm()))
    norms.sort()
    left_out = int(0.025 * SOLVES)
    assert left_out == 1
    expected = sum(norms[1:-1]) / (SOLVES - 2)
    assert measured_norm(lm, settings, SOLVES) == pytest.approx(expected, rel=1e-4)


def test_m_is_measured_before_the_first_edit_and_once(lm, settings, tmp_path):
    method = nas(lm, settings)
    assert method.settings.norm_anchor == measured_norm(lm, settings, SOLVES)
    (file,) = (tmp_path / "norm_anchors").glob("*.json")
    file.write_text("7.5")  # another process reads what this one wrote
    assert nas(load_model("tiny-gpt2"), settings).settings.norm_anchor == 7.5
    request = sources.load("embedded", relations=["P36"], limit=1).cases[0].request
    edit = method.edit_together([request])[0]
    assert isinstance(edit, LowRankEdit)
    assert f"norm_anchor={method.settings.norm_anchor:g}" in str(edit.notes["settings"])
    with in_place(lm, edit):  # of the model as it was loaded, also when it is edited
        assert measured_norm(lm, settings, SOLVES) == method.settings.norm_anchor


def test_m_that_is_given_is_not_measured(lm, settings, tmp_path):
    assert nas(lm, replace(settings, norm_anchor=7.5)).settings.norm_anchor == 7.5
    assert not (tmp_path / "norm_anchors").exists()
