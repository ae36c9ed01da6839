"""The page in a real browser: filters, sorting, a case; no error, request or markup of a log."""

import re
import shutil
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from benchmarks import page as large
from kn_bench.cases.case import CRITERIA, Criterion
from kn_bench.results.board import board
from kn_bench.results.comparison import compare, remarks, scores_of
from kn_bench.results.curves import _points, curves_of
from kn_bench.results.html import write_page
from kn_bench.results.leaderboard import percent
from kn_bench.results.loading import load_runs
from kn_bench.results.log import LOG
from kn_bench.results.serving import Server
from kn_bench.results.store import RunStore
from kn_bench.results.texts import FILE
from tests.made_up import manifest, write_run
from tests.shares import mostly_slow
from tests.test_leaderboard import CHANCE, GOOD, WEAK
from tests.test_shown import write_own_texts

sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    scores = {
        "rome": {**GOOD, "portability": [0.5] * 16},
        "control:rome": CHANCE,
        "noise": WEAK,
        "control:noise": WEAK,
        EVIL: WEAK,
    }
    return load_runs([write_run(tmp_path_factory.mktemp("runs"), scores)])


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of runs; whatever it asks of a network or complains of fails the test."""
    target = tmp_path / "board.html"
    seen: list[str] = []
    tab = browser.new_page()
    tab.on("console", lambda message: seen.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: seen.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: seen.append("dialog"))
    tab.on("request", lambda request: seen.append(request.url))

    def at(runs, view=""):
        write_page(runs, target)
        tab.goto(f"file://{target}#{view}")
        tab.wait_for_selector("html[data-ready=yes]")
        return tab

    yield at
    tab.close()
    assert not [text for text in seen if not text.startswith(("file:", "data:"))]


@pytest.fixture
def page(opened, runs):
    """The page of ``runs``."""
    return opened(runs)


def names(page) -> list[str]:
    return [text.strip() for text in page.locator("table.board tbody th button").all_inner_texts()]


def test_rows_are_ranked_filtered_and_sorted(page):
    assert names(page)[0] == "rome"
    assert len(names(page)) == 3
    page.select_option("#filter-method", "noise")
    page.wait_for_function("document.querySelectorAll('table.board tbody th').length === 1")
    assert names(page) == ["noise"]
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="method").click()
    page.wait_for_selector("th[aria-sort=descending]")
    assert names(page) == sorted(names(page), reverse=True)
    page.get_by_role("button", name="method").click()
    page.wait_for_selector("th[aria-sort=ascending]")
    assert names(page) == sorted(names(page))


def test_what_is_like_chance_is_grey_and_says_so(page):
    row = page.locator("table.board tbody tr", has_text="rome").first
    assert row.locator("td.chance").count() == 1
    assert "not significantly better" in row.locator("td.chance").text_content()


def test_a_case_shows_every_answer_and_is_reached_by_keyboard(page):
    page.get_by_role("tab", name="Board").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#tab-compare:focus")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("button.row")
    page.locator("button.row").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.probes")
    text = page.inner_text("main")
    for said in (
        "embedded/P36/c",
        "Ottawa",
        "Paris",
        "unedited model",
        "edit of equal size",
        "log p",
    ):
        assert said in text
    page.get_by_role("button", name="All cases").click()
    page.wait_for_selector("button.row")


def test_a_case_shows_what_follows_from_the_edit_too(page):
    page.evaluate("location.hash = '#view=cases&method=rome'")
    page.wait_for_selector("button.row")
    page.locator("button.row").first.click()
    page.wait_for_selector("table.probes")
    section = page.locator("section", has=page.get_by_role("heading", name="portability"))
    assert "2 of 4 probes give the new answer" in section.inner_text()
    assert section.locator("tbody tr").count() == 4


def test_the_cases_behind_the_figures_are_counted(page):
    every = ", ".join(f"{criterion} 16" for criterion in CRITERIA)
    assert page.inner_text(".counts") == f"Cases behind a figure: {every}."


def test_two_methods_are_compared_on_the_same_cases(page):
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#pick-b")
    assert "minus" in page.inner_text("caption")
    assert page.locator("main table").first.locator("tbody tr").count() == 6


def made(tmp_path, n, *, sequences=1, more=(), protocol="sequence:2"):
    """A run of two methods on ``n`` cases of two relations, two to a cluster; scores of all sizes.

    Reliability of one and symmetry of the other are alike in all clusters.
    """
    criteria: tuple[Criterion, ...] = (*CRITERIA, *more)
    scores = {c: [1.0] * n for c in criteria}
    run = write_run(tmp_path / "runs", {"a": scores, "b": scores, "control:b": scores}, a_cluster=2)
    runs = load_runs([run])
    rng = np.random.default_rng(n)

    def changed(verdicts):
        number = verdicts["case"].str.extract(r"c(\d+)$")[0].astype(int)
        pair = verdicts["criterion"].astype("str") + verdicts["method"].astype("str")
        score = pd.Series(rng.uniform(size=len(verdicts)), verdicts.index)
        score = score.mask(pair == "reliabilitya", 1.0).mask(pair == "symmetryb", 0.0)
        relation = number.mod(4).map(lambda i: "P36" if i == 3 else "P17")
        verdicts = verdicts.assign(relation=relation, verdict_score=score)
        if sequences == 1:
            return verdicts
        return verdicts.assign(protocol=protocol, sequence=number % sequences)

    optional = changed(runs.optional) if more else runs.optional
    return replace(runs, verdicts=changed(runs.verdicts), optional=optional, memo={})


def near(value, low, high):
    """What the ends of an interval are, but for the chance of resampling."""
    return pytest.approx(value, abs=0.1 * (high - low) + 1e-6)


CASES_AND_SEQUENCES = [(4, 1), (8, 1), (16, 1), (40, 1), (12, 3), (30, 5)]
SIZES = pytest.mark.parametrize("size", mostly_slow(CASES_AND_SEQUENCES, fast=[(8, 1), (12, 3)]))


@SIZES
@pytest.mark.parametrize("relation", ["P17", ""])
def test_figures_of_some_cases_are_those_of_a_run_of_these_cases(opened, tmp_path, size, relation):
    n, sequences = size
    runs = made(tmp_path, n, sequences=sequences)
    some = runs.verdicts[runs.verdicts["relation"] == relation] if relation else runs.verdicts
    tab = opened(runs, f"relation={relation}&known=1")
    bars = tab.evaluate(
        "[...document.querySelectorAll('table.board tbody tr:not(.detail)')].map((row) =>"
        " [row.querySelector('button').textContent, [...row.querySelectorAll('.bar')].map((bar) =>"
        " ['mean', 'low', 'high'].map((x) => bar.style.getPropertyValue(`--${x}`) / 100))])"
    )
    lines = {line.name.method: line for line in board(replace(runs, verdicts=some, memo={}))}
    assert {method for method, _ in bars} == {"a", "b"}
    for method, drawn in bars:
        line = lines[method]
        figures = [line.s, line.k, *(line.criteria[c].interval for c in CRITERIA)]
        assert len(drawn) == len(figures)
        for (mean, low, high), figure in zip(drawn, figures, strict=True):
            assert mean == pytest.approx(figure.mean)
            assert [low, high] == [near(x, figure.low, figure.high) for x in figure[1:3]]


@SIZES
@pytest.mark.parametrize("protocol", ["sequence:2", "batch:4"])
def test_a_comparison_is_that_of_the_terminal(opened, tmp_path, size, protocol):
    n, sequences = size
    runs = made(tmp_path, n, sequences=sequences, more=["portability"], protocol=protocol)
    tab = opened(runs, "view=compare&a=0&b=1")
    order = [line.name.method for line in board(runs)]
    ours, theirs = (scores_of(runs, method, "a / b", optional=True) for method in order)
    comparisons = compare(ours, theirs)
    rows = tab.locator("main table").first.locator("tbody tr")
    shown = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in
             rows.all()}  # fmt: skip
    assert len(shown) == len(comparisons) == 7
    for c in comparisons:
        _, _, difference, p, adjusted, *_ = shown[c.group.criterion]
        mean, low, high, cases = map(int, re.findall(r"-?\d+", difference.replace("−", "-")))
        assert mean == round(100 * c.difference.mean)
        assert cases == c.difference.n
        ends = 100 * c.difference.low, 100 * c.difference.high
        for end, expected in zip((low, high), ends, strict=True):
            assert end == pytest.approx(expected, abs=0.1 * (ends[1] - ends[0]) + 1)
        if c.group.criterion != "portability" and n < 30:  # all flips are tried
            assert [float(p), float(adjusted)] == pytest.approx([c.p, c.p_holm], abs=5.1e-4)
    told = [re.findall(r"\d+", text.split(": ")[1]) for text in remarks(comparisons)]
    notes = tab.locator("main p.note").all_inner_texts()
    assert [re.findall(r"\d+", note) for note in notes] == told
    assert bool(told) == (sequences > 1)


def test_halves_are_rounded_as_in_the_terminal(opened, tmp_path):
    parts = {f"m{k}": [float(i < k) for i in range(8)] for k in range(9)}
    runs = load_runs(
        [write_run(tmp_path / "runs", {m: {"reliability": v} for m, v in parts.items()})]
    )
    tab = opened(runs)
    rows = tab.locator("table.board tbody tr:not(.detail)")
    shown = {row.locator("button").inner_text(): row.locator("td b").first.inner_text() for row in
             rows.all()}  # fmt: skip
    lines = board(runs)
    assert lines[8].criteria["reliability"].interval.mean == 1
    assert shown == {
        line.name.method: percent(line.criteria["reliability"].interval).split()[0]
        for line in lines
    }
    for at, line in enumerate(lines):
        tab.evaluate(f"location.hash = '#view=compare&a=8&b={at}'")
        tab.wait_for_function(
            f"document.querySelector('caption')?.textContent.startsWith('{line.name.method} on')"
        )
        change = line.criteria["reliability"].interval.mean - 1
        cell = tab.locator("main table").first.locator("tbody td").nth(2).inner_text()
        assert cell.split()[0].replace("−", "-") == (f"{100 * change:+.0f}" if change else "0")


@pytest.mark.parametrize(
    ("view", "said"),
    [("", "16"), ("relation=P17", "12"), ("relation=P36", "4"), ("known=0", "none")],
)
def test_the_cases_that_are_counted_are_those_of_the_figures(opened, tmp_path, view, said):
    counts = opened(made(tmp_path, 16), view).inner_text(".counts")
    every = ", ".join(f"{criterion} {said}" for criterion in CRITERIA)
    assert counts == f"Cases behind a figure: {every}."


def test_nothing_of_a_log_becomes_markup(page):
    assert page.locator("img").count() == 0
    assert EVIL in page.inner_text("main")


@pytest.mark.parametrize("seed", [0, 3])
def test_each_line_has_its_own_runs_question_and_comparisons_say_what_differs(
    opened, tmp_path, seed
):
    about = {"ours": 0, "theirs": seed}
    runs = load_runs(
        [write_own_texts(tmp_path, run, seed=s, method=f"of-{run}") for run, s in about.items()]
    )
    tab = opened(runs, "view=cases")
    rows = tab.locator("button.row")
    rows.first.wait_for()
    assert rows.count() == 4
    for at in range(4):
        rows.nth(at).click()
        tab.wait_for_selector("table.probes")
        run = tab.locator("#pick-line option:checked").inner_text().split()[0].removeprefix("of-")
        said = tab.inner_text("main")
        assert f"{run} asks {run} subject ▁" in said
        assert f"Edit: {run} true → {run} new" in said
        assert f"{run} reliability/0" in said
        assert tab.locator("#pick-line option").count() == 2
        tab.get_by_role("button", name="All cases").click()
        rows.first.wait_for()
    tab.evaluate("location.hash = '#view=compare&a=0&b=1'")
    tab.wait_for_selector("#pick-b")
    assert tab.inner_text("#status").startswith("14 verdicts that both have")
    notes = tab.locator("main p.note").all_inner_texts()
    told = "The first and the second differ in seed for tiny-gpt2."
    assert notes == ([told] if seed else [])
    assert tab.locator("main table").first.locator("tbody tr").count() == 7


@pytest.mark.parametrize("subject", ["A$$AP", "$&", "$`", "$'", "$1", "{}"])
def test_a_subject_is_shown_as_it_is(opened, tmp_path, subject):
    run = write_run(tmp_path / "runs", {"rome": {"reliability": [1.0]}})
    texts = (run / FILE).read_text()
    (run / FILE).write_text(texts.replace('"subject":"Canada"', f'"subject":"{subject}"'))
    tab = opened(load_runs([run]), "view=cases&at=0.0.0")
    tab.wait_for_selector("table.probes")
    assert tab.inner_text(".request p.prompt").startswith(f"The capital of {subject} is")


def test_what_is_infinite_is_so_on_the_page(opened, tmp_path):
    run = write_run(tmp_path / "runs", {"rome": GOOD})
    log = (run / LOG).read_text()
    for name, value in {"kl": "0.25", "mean_kl": "0.25", "norm": "1.5"}.items():
        assert f'"{name}":{value}' in log
        log = log.replace(f'"{name}":{value}', f'"{name}":1e+30')
    (run / LOG).write_text(log)
    tab = opened(load_runs([run]))
    tab.locator("table.board button.open").click()
    assert "∞ nats" in tab.inner_text("tr.detail")
    tab.evaluate("location.hash = '#view=cases&at=0.0.0'")
    tab.wait_for_selector("table.probes")
    assert "norm ∞;" in tab.inner_text(".request")
    shown = tab.locator("table.probes tbody td:last-child").all_inner_texts()
    assert set(shown) == {"∞"}
    assert "e+" not in tab.inner_text("main")


def test_the_curves_are_those_of_the_figures(opened, runs):
    """A point is the mean over sequences, and one that is infinite is on no axis."""
    values = {0: (5.0, 5.0), 1: (10.0, 1000.0), 10: (20.0, 1e30), 100: (np.inf, np.inf)}
    checkpoints = [
        {"run": "one", "model": "tiny-gpt2", "method": "rome", "protocol": "sequence:100",
         "sequence": sequence, "step": edits, "task": "fact", "checkpoint_edits": edits,
         "checkpoint_retained": 0.5, "checkpoint_known": 0.5, "checkpoint_blimp": None,
         "checkpoint_perplexity": of_each[sequence], "checkpoint_kl": of_each[sequence],
         "checkpoint_norms": [{"relative": of_each[sequence]}]}
        for edits, of_each in values.items() for sequence in (0, 1)
    ]  # fmt: skip
    other = replace(runs, curves=pd.DataFrame(checkpoints), memo={})
    tab = opened(other, "view=curves")
    tab.wait_for_selector("figure")
    rows = curves_of(other, "sequence:100")
    for label, column in {
        "perplexity": "checkpoint_perplexity",
        "mean KL": "checkpoint_kl",
        "|dW|": "growth",
    }.items():
        figure = tab.locator("figure", has=tab.locator("figcaption", has_text=label))
        titles = figure.locator("circle title").all_text_contents()
        edits, means, *_ = _points(rows[rows["checkpoint_edits"] > 0], column)
        expected = {e: m for e, m in zip(edits, means, strict=True) if np.isfinite(m)}
        shown = [re.findall(r"[\d.]+(?= after)|(?<=after )\d+", title) for title in titles]
        assert {float(e): float(m) for m, e in shown} == pytest.approx(expected, rel=1e-3)
        caption = figure.locator("figcaption").inner_text()
        assert caption.endswith("not drawn: 2 points at ∞")
        ticks = figure.locator("text[text-anchor=end]").all_text_contents()
        assert all(float(tick) <= 1001 for tick in ticks)


@pytest.mark.parametrize("finite", [False, True])
def test_a_curve_without_a_finite_point_has_an_axis(opened, runs, finite):
    """The unedited model's own perplexity may be all that can be drawn."""
    rows: list[dict[str, Any]] = [
        {"run": "one", "model": "tiny-gpt2", "method": "rome", "protocol": "sequence:1",
         "sequence": 0, "step": step, "task": "fact", "checkpoint_edits": step,
         "checkpoint_perplexity": 1e30 if step or not finite else 5.0, "checkpoint_norms": []}
        for step in (0, 1)
    ]  # fmt: skip
    tab = opened(replace(runs, curves=pd.DataFrame(rows), memo={}), "view=curves")
    tab.wait_for_selector("figure")
    drawn = tab.locator("figure", has_text="perplexity")
    assert "not drawn: 1 point at ∞" in drawn.inner_text()
    assert drawn.locator("circle").count() == 0
    assert drawn.locator("path[stroke-dasharray]").count() == finite
    assert not any("NaN" in d.get_attribute("d") for d in drawn.locator("path").all())


@pytest.mark.parametrize("view", ["board", "compare", "cases", "left", "curves", "runs"])
def test_a_page_of_nothing_says_so(opened, tmp_path, view):
    with RunStore.create(tmp_path / "runs", manifest()) as store:
        store.finish({})
    tab = opened(load_runs([store.folder]), f"view={view}")
    said = tab.inner_text("main")
    assert "fits the filters" not in said
    if view in ("board", "compare", "cases"):
        assert "Nothing has been measured." in said


COMMA = "/data/my, models/gpt2"


def test_further_tables_have_the_rows_of_the_lines_shown(opened, tmp_path):
    """Whatever a model is called, and under every filter."""
    scores = {"rome": {**GOOD, "portability": [0.5] * 16}}
    models = ("tiny-gpt2", COMMA)
    runs = load_runs(
        [
            write_run(tmp_path / "runs", scores, run=f"r{i}", model=m, models={m: str(i) * 64})
            for i, m in enumerate(models)
        ]
    )
    sequences = {name: getattr(runs, name).assign(protocol="sequence:16") for name in
                 ("verdicts", "optional")}  # fmt: skip
    both = {name: pd.concat([getattr(runs, name), more], ignore_index=True) for name, more in
            sequences.items()}  # fmt: skip
    runs = replace(runs, **both, memo={})
    tab = opened(runs)
    section = tab.locator("section", has=tab.get_by_role("heading", name="Portability"))
    for query, expected in {
        "": {f"rome on {m}{w}" for m in models for w in ("", ", sequence:16 immediate")},
        f"model={quote(COMMA)}": {f"rome on {COMMA}{w}" for w in ("", ", sequence:16 immediate")},
        "protocol=single": {f"rome on {m}" for m in models},
        "protocol=sequence:16": {f"rome on {m}, sequence:16 immediate" for m in models},
        "task=pair": set(),
    }.items():
        tab.evaluate("(query) => { location.hash = `#${query}`; }", query)
        tab.wait_for_function(
            "(n) => document.querySelectorAll('table.board tbody tr:not(.detail)').length === n",
            arg=len(expected),
        )
        assert set(section.locator("tbody td:first-child").all_inner_texts()) == expected


def test_a_table_without_a_line_is_shown(opened, runs):
    """Where only what is in no score was measured, no line of the board has it."""
    only = replace(runs, verdicts=runs.verdicts.iloc[:0], memo={})
    tab = opened(only)
    assert "rome on tiny-gpt2" in tab.inner_text("main")


def test_light_and_dark(page):
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_the_whole_is_served_from_the_log_to_this_machine_only(browser, runs):
    import threading
    import urllib.request
    from urllib.error import HTTPError

    with Server(runs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = browser.new_page()
        tab.goto(f"{server.address}#view=cases")
        tab.wait_for_selector("button.row")
        tab.locator("button.row").first.click()
        tab.wait_for_selector("table.probes")
        assert "Paris" in tab.inner_text("main")
        tab.close()
        foreign = urllib.request.Request(server.address, headers={"Host": "example.org"})
        with pytest.raises(HTTPError, match="403"):
            urllib.request.urlopen(foreign)
        server.shutdown()


def test_a_large_run_is_sampled_and_says_so(runs):
    from kn_bench.results.payload import payload

    data = payload(runs, embedded=300)
    assert data["sample"]["cases"] < data["sample"]["of"] == 16
    assert len(data["cases"]["id"]) == data["sample"]["cases"]
    assert len(data["lines"]) == 3


def test_a_page_can_be_without_answers(opened, runs):
    verdicts = runs.verdicts.assign(protocol="sequence:16")
    other = replace(runs, verdicts=verdicts, optional=runs.optional.iloc[:0], memo={})
    assert opened(other).locator("table.board").count() == 1


@pytest.mark.slow
def test_a_hundred_thousand_measurements_open_in_three_seconds(tmp_path):
    target = tmp_path / "board.html"
    write_page(load_runs([large.made_run(tmp_path)]), target)
    times = large.opened(target)
    assert times.pop("open") < 3
    assert max(times.values()) < 1, times
