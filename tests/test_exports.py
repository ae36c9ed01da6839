"""The board in other tools' formats, read back."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from kn_bench.cases.case import Criterion
from kn_bench.cases.sampling import slug
from kn_bench.results.board import board
from kn_bench.results.exports import chosen
from kn_bench.results.exports.every_eval_ever import _references
from kn_bench.results.exports.latex import latex
from kn_bench.results.exports.naming import distinct, identity
from kn_bench.results.files import StoreError
from kn_bench.results.loading import load_runs
from tests.made_up import TRUE, write_run
from tests.shares import mostly_slow
from tests.test_leaderboard import CHANCE, GOOD

FORMULA = "=cmd"
ONE: tuple[Criterion, ...] = ("reliability", "generality", "locality")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    scores = {"rome_1": GOOD, "control:rome_1": CHANCE, FORMULA: CHANCE}
    return load_runs([write_run(tmp_path_factory.mktemp("runs"), scores)])


def test_csv_and_parquet_have_a_row_a_figure_and_no_formula(runs, tmp_path):
    for name in ("b.csv", "b.parquet"):
        chosen(tmp_path / name)(runs, tmp_path / name)
    text, parquet = pd.read_csv(tmp_path / "b.csv"), pd.read_parquet(tmp_path / "b.parquet")
    assert set(text["method"]) == {"rome_1", f"'{FORMULA}"}
    for frame in (text, parquet):
        whole = frame[frame["part"].fillna("") == ""]
        rome = whole[(whole["method"] == "rome_1") & (whole["figure"] == "synonym")]
        (row,) = rome.to_dict("records")
        assert (row["mean"], row["n"], row["control_mean"]) == (0.75, 16, 0.0)
        assert row["beats_control"]


def test_latex_has_balanced_tables_and_escaped_names(runs, tmp_path):
    chosen(tmp_path / "b.tex")(runs, tmp_path / "b.tex")
    text = (tmp_path / "b.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"rome\_1 & " in text
    rows = [line for line in text.split("\n") if line.startswith("rome")]
    assert all(row.count("&") == 8 and row.endswith(r"\\") for row in rows)
    assert r"$^\circ$" in rows[0]
    assert "; $n = 16$ cases." in text


def test_latex_gives_the_range_of_n_and_names_methods_without_a_control(tmp_path):
    scores = {"rome": GOOD, "control:rome": CHANCE, "my_code": GOOD | {"symmetry": [1.0] * 9}}
    text = latex(load_runs([write_run(tmp_path, scores)]))
    assert "; $n = 9$ to $16$ cases." in text
    named = (
        r"No control on tiny-gpt2, so no $^\circ$ and a rank after all that have one: the method"
    )
    assert rf"{named} my\_code.}}" in text


def has_booktabs() -> bool:
    """Whether this machine can compile the tables."""
    if not shutil.which("pdflatex") or not (which := shutil.which("kpsewhich")):
        return False
    return subprocess.run([which, "booktabs.sty"], capture_output=True, check=False).returncode == 0


DOCUMENT = r"""\documentclass{article}
\usepackage[margin=1cm,landscape]{geometry}
\usepackage{booktabs}
\begin{document}
\input{b}
\end{document}
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_booktabs(), reason="there is no pdflatex with booktabs here")
def test_latex_compiles_whatever_the_names(tmp_path):
    scores = {r'50% & \input{x} $a_b^c$ #~|<> "é"': GOOD, "control:rome_1": CHANCE, "rome_1": GOOD}
    runs = load_runs([write_run(tmp_path, scores)])
    chosen(tmp_path / "b.tex")(runs, tmp_path / "b.tex")
    (tmp_path / "paper.tex").write_text(DOCUMENT)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stdout[-2000:]
    assert "Overfull" not in compiled.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_every_eval_ever_has_figures_that_its_instances_add_up_to(runs, tmp_path):
    chosen(tmp_path / "eee", "every-eval-ever")(runs, tmp_path / "eee")
    (aggregate,) = (tmp_path / "eee").rglob("*[0-9a-f].json")
    (samples,) = (tmp_path / "eee").rglob("*_samples.jsonl")
    whole = json.loads(aggregate.read_text())
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert whole["schema_version"] == "0.3.0"
    assert whole["detailed_evaluation_results"]["total_rows"] == len(rows)
    assert whole["detailed_evaluation_results"]["file_path"].endswith(samples.name)
    figure = next(
        r for r in whole["evaluation_results"]
        if r["evaluation_result_id"] == "kn_bench/facts/rome_1/synonym"
    )  # fmt: skip
    own = [r for r in rows if r["evaluation_result_id"] == figure["evaluation_result_id"]]
    mean = sum(r["evaluation"]["score"] for r in own) / len(own)
    assert mean == figure["score_details"]["score"] == 0.75


def test_the_hubs_yaml_is_a_list_of_results(runs, tmp_path):
    chosen(tmp_path / "hub", "hub")(runs, tmp_path / "hub")
    files = list((tmp_path / "hub").rglob(".eval_results/*.yaml"))
    assert len(files) == 2
    for file in files:
        for entry in yaml.safe_load(file.read_text()):
            assert {"dataset", "value", "date", "notes"} == set(entry)
            assert 0 <= entry["value"] <= 100


def said_of_figures(file):
    """What each figure in a file is said to be of; in one of tables, what each table is."""
    if file.suffix in (".csv", ".parquet"):
        frame = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
        names = ["task", "model", "method", "protocol", "asked", "figure", "part"]
        return list(frame[names].fillna("").itertuples(index=False, name=None))
    text = file.read_text()
    if file.suffix == ".tex":
        return re.findall(r"\\caption{.*", text)
    if file.suffix == ".yaml":
        entries = yaml.safe_load(text)
        return [(e["dataset"]["task_id"], e["notes"].partition(", n =")[0]) for e in entries]
    whole = json.loads(text)
    if "eval" in whole:
        return [(whole["eval"]["task"], *whole["eval"]["task_args"].values())]
    results = whole["evaluation_results"]
    return [(r["evaluation_name"], r["metric_config"]["metric_id"]) for r in results]


OCCASIONS = (
    ("single", "immediate"),
    ("batch:4", "immediate"),
    ("sequence:4/2", "immediate"),
    ("sequence:4/2", "retained"),
)


@pytest.mark.parametrize(
    "target", ["hub", "inspect", "every-eval-ever", "b.csv", "b.parquet", "b.tex"]
)
def test_what_was_asked_at_another_time_is_said_to_be_another_figure(runs, tmp_path, target):
    rome = runs.verdicts[runs.verdicts["method"] == "rome_1"]
    parts = [rome.assign(protocol=protocol, asked=asked) for protocol, asked in OCCASIONS]
    asked = replace(runs, verdicts=pd.concat(parts, ignore_index=True), memo={})
    assert len(board(asked)) == len(OCCASIONS)
    chosen(tmp_path / target, "" if "." in target else target)(asked, tmp_path / target)
    files = [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix != ".jsonl"]
    said = [figure for file in files for figure in said_of_figures(file)]
    assert len(said) >= len(OCCASIONS)
    assert len(set(said)) == len(said)


def test_inspects_own_reader_opens_the_log(runs, tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    chosen(tmp_path / "logs", "inspect")(runs, tmp_path / "logs")
    file = next(f for f in (tmp_path / "logs").glob("*.json") if "rome_1" in f.name)
    opened = log.read_eval_log(str(file))
    assert opened.status == "success"
    assert len(opened.samples) == 16
    scores = {score.name: score.metrics["mean"].value for score in opened.results.scores}
    assert scores["synonym"] == 0.75
    assert opened.samples[0].scores["reliability"].value == 1.0


MODELS = {
    "two folders": ("out/A/tiny", "out/B/tiny"),
    "two folders far apart": ("/data/A/tiny", "/data/B/tiny"),
    "two developers": ("org-a/x", "org-b/x"),
    "two spellings": ("org/x-1", "org/x_1"),
    "two cases": ("org/x", "org/X"),
    "two revisions": ("org/x@step-1", "org/x@step_1"),
    "a model and its revision": ("org/x", "org/x@main"),
}


@pytest.mark.parametrize("format", ["hub", "inspect", "every-eval-ever"])
@pytest.mark.parametrize("pair", mostly_slow(MODELS, fast=["two folders", "two cases"]))
@pytest.mark.parametrize("methods", [("rome",), ("my-edit", "my_edit", "my.edit")])
def test_no_result_takes_the_place_of_another(tmp_path, format, pair, methods):
    models = MODELS[pair]
    """Every line of the board is in the files, whatever models and methods are called."""
    folders = [
        write_run(
            tmp_path / str(i),
            {method: {c: [place / 10 + 0.1] for c in ONE} for place, method in enumerate(methods)},
            run=f"r{i}",
            model=model,
            models={model: str(i) * 64},
        )
        for i, model in enumerate(models)
    ]
    chosen(tmp_path / "out", format)(load_runs(folders), tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len({str(path).lower() for path in files}) == len(files)
    texts = [path.read_text() for path in files]
    lines = len(models) * len(methods)
    if format == "every-eval-ever":
        assert len(files) == 2 * len(models)
        assert all(sum(f'"name": "{model}"' in text for text in texts) == 1 for model in models)
        wholes = [json.loads(text) for text in texts if text.startswith("{\n")]
        assert len({whole["evaluation_id"] for whole in wholes}) == len(models)
        ids = {whole["model_info"]["name"]: whole["model_info"]["id"] for whole in wholes}
        assert len({id.lower() for id in ids.values()}) == len({m.split("@")[0] for m in models})
        instances = [json.loads(line) for text in texts if not text.startswith("{\n")
                     for line in text.splitlines()]  # fmt: skip
        named = {(row["evaluation_id"], row["model_id"]) for row in instances}
        assert named == {(whole["evaluation_id"], whole["model_info"]["id"]) for whole in wholes}
        return
    assert len(files) == lines
    for method in methods:
        said = f'"{method}, ' if format == "hub" else f'"method": "{method}"'
        assert sum(said in text for text in texts) == len(models)
    alone = tmp_path / "alone"
    chosen(alone, format)(load_runs(folders[:1]), alone)
    again = [path.read_bytes() for path in alone.rglob("*") if path.is_file()]
    assert len(again) == len(methods)
    assert set(again) <= {path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("model", "called"),
    [
        ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m"),
        ("org-1/A_b.c-d", "org-1/A_b.c-d"),
        ("EleutherAI/pythia-160m@step-143", "EleutherAI/pythia-160m"),
        ("org/x@refs/pr/1", "org/x"),
        ("gpt2@main", "kn_bench/gpt2"),
        ("tiny-gpt2", "kn_bench/tiny-gpt2"),
        ("/data/my models/gpt2 (1)", "kn_bench/gpt2_1"),
        ("out/a/gpt2", "kn_bench/gpt2"),
        ("../gpt2", "kn_bench/gpt2"),
        ("out/x.gguf", "kn_bench/x.gguf"),
        ("out/X.GGUF", "kn_bench/X.GGUF"),
    ],
)
def test_a_model_of_the_hub_has_its_own_id(tmp_path, model, called):
    runs = load_runs([write_run(tmp_path, {"rome": GOOD}, model=model, models={model: "a" * 64})])
    assert identity(model) == called
    for format in ("hub", "every-eval-ever"):
        chosen(tmp_path / format, format)(runs, tmp_path / format)
    (file,) = (tmp_path / "hub").rglob("*.yaml")
    assert file.parent.parent == tmp_path / "hub" / called
    (aggregate,) = (tmp_path / "every-eval-ever" / "data" / "kn_bench" / called).glob("*.json")
    whole = json.loads(aggregate.read_text())
    assert whole["model_info"]["id"] == called
    revision = model.partition("@")[2]
    assert whole["model_info"]["additional_details"].get("revision", "") == revision
    assert (f"revision {revision}, " in file.read_text()) == bool(revision)


def test_models_of_one_name_do_not_hide_behind_another(tmp_path):
    """An evaluation's id is its own, whether models, revisions or runs are called the same."""
    ended = {"created": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T01:00:00+00:00"}
    folders = [write_run(tmp_path / str(i), {"rome": GOOD}, run=f"r{i}", seed=i) for i in range(2)]
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **ended}))
    chosen(tmp_path / "eee", "every-eval-ever")(load_runs(folders), tmp_path / "eee")
    wholes = [json.loads(f.read_text()) for f in (tmp_path / "eee").rglob("*.json")]
    assert len({whole["evaluation_id"] for whole in wholes}) == len(wholes) == 2
    assert {whole["model_info"]["id"] for whole in wholes} == {"kn_bench/tiny-gpt2"}


def test_the_hubs_figures_have_the_dates_of_their_runs(tmp_path):
    dates = {"ft-l": "2026-01-01", "rome": "2026-03-05"}
    folders = []
    for method, date in dates.items():
        folder = write_run(tmp_path, {method: GOOD}, run=f"of-{method}")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= dict.fromkeys(("created", "finished"), f"{date}T00:00:00+00:00")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        folders.append(folder)
    chosen(tmp_path / "hub", "hub")(load_runs(folders), tmp_path / "hub")
    for method, date in dates.items():
        (file,) = (tmp_path / "hub").rglob(f"kn_bench_{slug(method)}_facts.yaml")
        assert {entry["date"] for entry in yaml.safe_load(file.read_text())} == {date}


def test_a_method_that_is_not_applicable_has_no_empty_file(runs, tmp_path):
    verdicts = runs.verdicts
    lost = {"verdict_score": np.nan, "verdict_status": "not_applicable"}
    rome = verdicts["method"] == "rome_1"
    other = replace(
        runs, verdicts=pd.concat([verdicts[~rome], verdicts[rome].assign(**lost)]), memo={}
    )
    assert len(board(other)) == 2
    chosen(tmp_path / "hub", "hub")(other, tmp_path / "hub")
    (file,) = (tmp_path / "hub").rglob("*.yaml")
    assert "rome" not in file.name
    assert yaml.safe_load(file.read_text())


def test_the_reference_of_an_instance_is_what_would_be_right(runs, tmp_path):
    chosen(tmp_path / "eee", "every-eval-ever")(runs, tmp_path / "eee")
    (samples,) = (tmp_path / "eee").rglob("*_samples.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    overturned = [row for row in rows if row["metadata"]["criterion"] == "overturn"]
    assert {row["evaluation"]["is_correct"] for row in overturned} == {True, False}
    for row in overturned:
        assert row["input"]["reference"] == []
        assert row["metadata"]["unwanted"] == TRUE
        said = row["output"]["raw"][0]
        assert row["evaluation"]["is_correct"] == (said != TRUE)
    others = [row for row in rows if row["metadata"]["criterion"] != "overturn"]
    assert all(len(row["input"]["reference"]) == 1 for row in others)
    assert not any("unwanted" in row["metadata"] for row in others)


@pytest.mark.parametrize(
    ("criterion", "kind", "expected"),
    [
        ("reliability", "", (["Paris"], "")),
        ("symmetry", "new_inverse", (["Paris"], "")),
        ("symmetry", "old_inverse", ([], "Paris")),
        ("overturn", "", ([], "Ottawa")),
    ],
)
def test_an_answer_that_must_not_come_is_no_reference(criterion, kind, expected):
    probe = {"kind": kind, "expected": "Paris", "rejected": "Ottawa"}
    assert _references(criterion, probe) == expected


def test_a_name_does_not_depend_on_the_order_of_names():
    names = ["my-edit", "my_edit", "My.Edit", "my_Edit", "other"]
    called = distinct(names)
    assert called == distinct(reversed(names))
    assert len({text.lower() for text in called.values()}) == len(names)
    assert (called["other"], distinct(["my-edit"])) == ("other", {"my-edit": "my_edit"})


@pytest.mark.parametrize(
    ("name", "format", "sentence"),
    [
        ("x.txt", "", r"expected a file that ends in \.md, \.html, \.csv, \.parquet, \.tex"),
        ("x.csv", "latex", r"expected a file that ends in \.tex for --format latex"),
        ("x.csv", "inspect", "expected a folder"),
        ("x", "excel", "expected one of markdown, html"),
    ],
)
def test_a_wrong_ending_is_refused(tmp_path, name, format, sentence):
    with pytest.raises(StoreError, match=sentence):
        chosen(tmp_path / name, format)
