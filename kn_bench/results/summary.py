"""What a continuous integration shows: a page in Markdown, and a test's properties in JUnit XML."""

from __future__ import annotations

from pathlib import Path

from kn_bench.measure.verdict import Verdict
from kn_bench.results.files import unwritable


def summary(text: str, gate: str = "") -> str:
    """Return a page for ``$GITHUB_STEP_SUMMARY``: what the gate found, then the board.

    Args:
        text: the leaderboard, see :func:`kn_bench.results.leaderboard.leaderboard`.
        gate: see :meth:`kn_bench.testing.gate.GateReport.markdown`.
    """
    return "# kn_bench\n\n" + (f"## Gate\n\n{gate}\n" if gate else "") + text.partition("\n\n")[2]


def append_summary(path: Path, page: str) -> None:
    """Add ``page`` to the file that ``$GITHUB_STEP_SUMMARY`` names; other steps write there too.

    Raises:
        StoreError: when it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise unwritable(path, error) from None


def junit_properties(verdict: Verdict) -> tuple[tuple[str, str], ...]:
    """Return name and value of what a JUnit report says of a test, beside its outcome."""
    properties = {
        "kn_bench.status": verdict.status,
        "kn_bench.score": "" if verdict.score is None else f"{verdict.score:.6g}",
        "kn_bench.counted": str(verdict.counted),
        "kn_bench.explanation": verdict.explanation,
    }
    return tuple((name, value) for name, value in properties.items() if value)
