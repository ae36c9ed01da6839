"""General ability by lm-evaluation-harness: a task of our own, from files alone."""

from __future__ import annotations

import json
import random

import pytest
import torch
from typer.testing import CliRunner

import kn_bench as kn
from kn_bench.commands import evaluate
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.editing.saving import save_edit
from kn_bench.measure.harness import check_tasks, task_figures

lm_eval = pytest.importorskip("lm_eval", reason="the extra 'lm-eval' is not installed")
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Cuba": "Havana"}
TASK = """task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {test: DOCS}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task's YAML file beside its documents."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = tmp_path / "docs.jsonl"
    choices = list(CAPITALS.values())
    rows = [
        {"question": f"The capital of {country} is", "choices": choices, "gold": i}
        for i, country in enumerate(CAPITALS)
    ]
    docs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "capitals.yaml"
    path.write_text(TASK.replace("DOCS", str(docs)))
    return str(path)


@pytest.fixture(scope="module")
def model():
    return kn.load_model("tiny-gpt2")


def best(model, country):
    """The capital that the model prefers, by the log-probabilities of its own reading."""
    ids = model.tokens.encode(f"The capital of {country} is").ids
    last = model.forward(model.tensor([ids]), model.tensor([[len(ids) - 1]]))[0, 0]
    texts = [f"The capital of {country} is {capital}" for capital in CAPITALS.values()]
    first = [model.tokens.encode(text).ids[len(ids)] for text in texts]
    return list(CAPITALS.values())[int(last[torch.tensor(first)].argmax())]


def damage(model):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, generator=generator) for n in (model.d_mlp, model.d_model))
    update = LowRank(model.n_layers - 1, 3 * u[:, None], 3 * v[None])
    return LowRankEdit((update,))


def test_the_harness_asks_the_edited_model_and_leaves_no_trace(model, task):
    edit = damage(model)
    before, drawn = model.parameter_hash(), random.getstate()
    (figure,) = task_figures(model, [edit], [task])
    assert model.parameter_hash() == before
    assert random.getstate() == drawn
    assert (figure.task, figure.metric, figure.n) == ("capitals", "acc", len(CAPITALS))
    right = sum(best(model, country) == capital for country, capital in CAPITALS.items())
    assert figure.unedited == right / len(CAPITALS)
    with kn.edited(model, edit):
        right = sum(best(model, country) == capital for country, capital in CAPITALS.items())
    assert figure.edited == right / len(CAPITALS)
    assert figure.edited < figure.unedited  # or the edit was not there


def test_evaluate_puts_the_tasks_beside_the_board(model, task, tmp_path):
    saved = tmp_path / "edits"
    saved.mkdir()
    provenance = kn.method("none", model).provenance
    save_edit(damage(model), saved / "0.safetensors", provenance=provenance)
    folder = tmp_path / "run"
    ended = CliRunner().invoke(
        evaluate.app,
        ["--base", "tiny-gpt2", "--edited", str(saved), "--relation", "P36", "--limit", "1",
         "--lm-eval", task, "-o", str(folder)],
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert any(line.split()[:2] == ["capitals", "acc"] for line in ended.output.splitlines())
    (figure,) = json.loads((folder / "lm_eval.json").read_text())
    assert figure["edited"] < figure["unedited"]


def test_what_cannot_be_run_is_one_sentence(model, task):
    with pytest.raises(ValueError, match="'no-such-task': expected a task of lm-evaluation"):
        check_tasks(["no-such-task"])
    check_tasks([task])
    with pytest.raises(ValueError, match="expected a causal model"):
        task_figures(kn.load_model("tiny-bert"), [], [task])
    with pytest.raises(ValueError, match="builds its own prompts"):
        task_figures(model, [kn.PromptEdit("Rome is the capital of France.")], [task])
