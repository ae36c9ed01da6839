"""The page in a real browser: filters, sorting, a case; no error, request or markup of a log."""

import shutil

import pytest

from benchmarks import page as large
from kn_bench.cases.case import CRITERIA
from kn_bench.results.html import write_page
from kn_bench.results.loading import load_runs
from kn_bench.results.serving import Server
from tests.made_up import write_run
from tests.test_leaderboard import CHANCE, GOOD, WEAK

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
def page(browser, runs, tmp_path):
    """The page, opened; whatever it asks of a network or complains of fails the test."""
    target = tmp_path / "board.html"
    write_page(runs, target)
    seen: list[str] = []
    tab = browser.new_page()
    tab.on("console", lambda message: seen.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: seen.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: seen.append("dialog"))
    tab.on("request", lambda request: seen.append(request.url))
    tab.goto(f"file://{target}")
    tab.wait_for_selector("html[data-ready=yes]")
    yield tab
    tab.close()
    assert not [text for text in seen if not text.startswith(("file:", "data:"))]


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


def test_nothing_of_a_log_becomes_markup(page):
    assert page.locator("img").count() == 0
    assert EVIL in page.inner_text("main")


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


@pytest.mark.slow
def test_a_hundred_thousand_measurements_open_in_three_seconds(tmp_path):
    target = tmp_path / "board.html"
    write_page(load_runs([large.made_run(tmp_path)]), target)
    times = large.opened(target)
    assert times.pop("open") < 3
    assert max(times.values()) < 1, times
