"""How long a page with 100,000 measurements takes to open, and to answer, in headless Chromium.

python benchmarks/page.py            # needs playwright and a Chromium of the machine
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kn_bench.cases.case import CRITERIA, Criterion
from kn_bench.results.html import write_page
from kn_bench.results.loading import load_runs
from tests.made_up import write_run

METHODS, CASES = 20, 334
"""15 measurements a case: 100,200 in all, of which the page carries those of 333 cases."""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def made_run(folder: Path) -> Path:
    """Write a run of 20 methods on 334 cases, their scores unlike."""
    scores: dict[str, dict[Criterion, list[float]]] = {
        f"method-{m}": {
            c: [float((i * 7 + m) % 10 < m / 2) for i in range(CASES)] for c in CRITERIA
        }
        for m in range(METHODS)
    }
    return write_run(folder, scores)


def chromium() -> str | None:
    """Return the path of the machine's Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def seconds(what: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def opened(page: Path) -> dict[str, float]:
    """Return the seconds of opening ``page``, and of what a reader does then."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        tab = browser.new_page()
        tab.goto("about:blank")
        times = {"open": seconds(lambda: _ready(tab, page))}
        steps: dict[str, tuple[Callable[[], Any], str]] = {
            "filter the board by a method": (
                lambda: tab.select_option("#filter-method", "method-7"),
                "document.querySelectorAll('table.board tbody th').length === 1",
            ),
            "list all cases": (
                lambda: tab.evaluate("location.hash = '#view=cases'"),
                "document.querySelectorAll('button.row').length > 0",
            ),
            "scroll to the last case": (
                lambda: tab.evaluate("document.querySelector('.scroller').scrollTop = 1e9"),
                "[...document.querySelectorAll('button.row')].some((row) => row.dataset.at > 6000)",
            ),
            "open a case": (
                lambda: tab.evaluate("document.querySelector('button.row').click()"),
                "document.querySelectorAll('table.probes').length > 0",
            ),
            "compare two methods": (
                lambda: tab.evaluate("location.hash = '#view=compare&a=0&b=1'"),
                "document.querySelector('caption')?.textContent.includes('minus')",
            ),
        }
        for name, (act, shown) in steps.items():
            started = time.perf_counter()
            act()
            tab.wait_for_function(shown)
            times[name] = time.perf_counter() - started
        browser.close()
    return times


def _ready(tab: Any, page: Path) -> None:
    tab.goto(f"file://{page}")
    tab.wait_for_selector("html[data-ready=yes]")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = load_runs([made_run(Path(folder))])
        page = Path(folder) / "board.html"
        drawn = seconds(lambda: write_page(runs, page))
        sys.stdout.write(f"written in {drawn:.1f} s, {page.stat().st_size / 1e6:.1f} MB\n")
        for name, time_taken in opened(page).items():
            sys.stdout.write(f"{name}: {time_taken:.2f} s\n")


if __name__ == "__main__":
    main()
