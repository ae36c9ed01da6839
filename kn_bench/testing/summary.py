"""What the terminal shows at the end of a run: the board, what was left out, where to read on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kn_bench.testing.options import Options

if TYPE_CHECKING:
    from kn_bench.results.loading import Runs
    from kn_bench.testing.gate import GateReport

BOARD = "leaderboard.md"


@dataclass(frozen=True)
class Ending:
    """What a finished run came to.

    Attributes:
        runs: the run, read back.
        gate: how it compares with the baseline; None when none was given.
        failure: why the baseline or the page could not be written; "" when they were.
    """

    runs: Runs
    gate: GateReport | None
    failure: str = ""

    @property
    def missed(self) -> int:
        """How often a criterion was missed."""
        return int((self.runs.verdicts["verdict_status"] == "missed").sum())


def end_run(folder: Path, options: Options) -> Ending:
    """Write the board, the baseline and the page for continuous integration; open the gate.

    Raises:
        StoreError: when the run or its baseline cannot be read, or the board not be written.
    """
    from kn_bench.results.files import StoreError
    from kn_bench.results.html import write_page
    from kn_bench.results.leaderboard import PAGE, write_leaderboard

    runs = write_leaderboard([folder], options.reports / BOARD)
    write_page(runs, options.reports / PAGE)
    gate = None
    if options.baseline is not None:
        from kn_bench.testing.gate import gate_run

        gate = gate_run(options.baseline, runs, options.gate)
    ending = Ending(runs, gate)
    try:
        if options.save_baseline is not None and (gate is None or gate.passed):
            from kn_bench.results.baseline import save_baseline

            save_baseline(runs, options.save_baseline)
        _write_page(ending)
    except StoreError as error:
        return replace(ending, failure=str(error))
    return ending


def _write_page(ending: Ending) -> None:
    """Write the page where continuous integration asks for it."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        from kn_bench.results.leaderboard import leaderboard
        from kn_bench.results.summary import append_summary, summary

        gate = ending.gate.markdown() if ending.gate else ""
        append_summary(Path(page), summary(leaderboard(ending.runs), gate))


def show(
    terminal: pytest.TerminalReporter, ending: Ending, options: Options, counted: str = "tests"
) -> None:
    """Print the board, what it leaves out, and the gate.

    Args:
        counted: what a row of the log is to the reader: a test, or one of the verdicts of a test.
    """
    from kn_bench.results.leaderboard import PAGE, terminal_table

    terminal.section("leaderboard")
    terminal.write_line("")
    for line in terminal_table(ending.runs).splitlines():
        terminal.write_line(line)
    for line in left_out(ending.runs, counted):
        terminal.write_line(line)
    run = ending.runs.manifests[-1].run
    terminal.write_line(f"\nrun {run}; open {options.reports / PAGE} for every answer")
    if ending.failure:
        terminal.write_line(f"kn_bench: {ending.failure}", red=True)
    elif options.save_baseline is not None and ending.gate and not ending.gate.passed:
        terminal.write_line(f"baseline not written to {options.save_baseline}: the gate failed")
    elif options.save_baseline is not None:
        terminal.write_line(f"baseline written to {options.save_baseline}")
    if ending.gate is not None:
        terminal.section("gate", red=not ending.gate.passed)
        terminal.write_line(ending.gate.text())


def left_out(runs: Runs, counted: str = "tests") -> Iterator[str]:
    """Yield why tests or verdicts have no figure, a line a reason, with counts."""
    from kn_bench.results import escaping

    verdicts = runs.verdicts
    for status, title in (
        ("excluded", "excluded"),
        ("not_applicable", "not applicable"),
        ("error", "errors"),
    ):
        reasons = verdicts.loc[verdicts["verdict_status"] == status, "verdict_reason"].astype("str")
        if len(reasons):
            yield f"{title}: {len(reasons)} {counted}"
            for reason, count in reasons.value_counts().items():
                yield f"{count:8d}  {escaping.terminal(str(reason))}"
    if runs.left_out:
        yield f"not offered by the sources: {len(runs.left_out)} cases or probes"
