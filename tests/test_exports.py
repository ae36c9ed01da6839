"""The board in other tools' formats, read back."""

import json
import shutil
import subprocess

import pandas as pd
import pytest
import yaml

from kn_bench.cases.case import Criterion
from kn_bench.results.exports import chosen
from kn_bench.results.exports.naming import distinct
from kn_bench.results.files import StoreError
from kn_bench.results.loading import load_runs
from tests.made_up import write_run
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
}


@pytest.mark.parametrize("format", ["hub", "inspect", "every-eval-ever"])
@pytest.mark.parametrize("models", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("methods", [("rome",), ("my-edit", "my_edit", "my.edit")])
def test_no_result_takes_the_place_of_another(tmp_path, format, models, methods):
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
