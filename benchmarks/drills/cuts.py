"""Power cuts: a small log truncated at every byte, and continued.

What a cut leaves must be continued: no complete test before the cut is lost, nothing after it is
kept in part, and once the rest is measured again the log has the rows of the whole one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.drills.row import DrillRow
from kn_bench.results.files import StoreError
from kn_bench.results.log import LOG, rows
from kn_bench.results.manifest import FILE
from kn_bench.results.rows import CrashRow, VerdictRow, encode_row
from kn_bench.results.store import RunStore
from tests.made_up import manifest, write_run


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Cut a log at ``share`` of its bytes, from ``seed`` on."""
    row = DrillRow("power cuts")
    run = write_run(folder / "whole", {"rome": {"reliability": [1.0, 0.0], "locality": [0.5]}})
    whole = (run / LOG).read_bytes()
    tests = _tests(whole)
    step = max(1, round(1 / share))
    for at in range(seed % step, len(whole) + 1, step):
        row.tried += 1
        reports = folder / "cut"
        cut = reports / "runs" / run.name
        cut.mkdir(parents=True)
        shutil.copy(run / FILE, cut / FILE)
        (cut / LOG).write_bytes(whole[:at])
        _continue(reports, cut, at, whole, tests, row)
        shutil.rmtree(reports)
    return row


def _tests(whole: bytes) -> list[str]:
    """Return the rows of each test as one text, in order: a test ends with its verdict."""
    tests, lines = [], []
    for line in whole.decode().splitlines(keepends=True):
        lines.append(line)
        if line.startswith('{"row":"verdict"'):
            tests.append("".join(lines))
            lines = []
    return tests


def _continue(
    reports: Path, cut: Path, at: int, whole: bytes, tests: list[str], row: DrillRow
) -> None:
    complete = whole[:at].count(b'{"row":"verdict"') - (0 if whole[:at].endswith(b"\n") else 1)
    try:
        with RunStore.resume(reports, cut.name, manifest(cut.name)) as store:
            kept = len(store.done)
            for test in tests:
                store.append(test)
    except (StoreError, ValueError) as error:
        row.fault("unended", f"cut at byte {at}: {error}")
        return
    text = (cut / LOG).read_bytes()
    row.fault("torn", f"at byte {at}", int(not text.endswith(b"\n")))
    row.fault("lost", f"at byte {at}: {kept} tests of {complete}", max(0, complete - kept))
    entries = list(rows(cut / LOG))
    row.fault("different", "a crash row", sum(isinstance(entry, CrashRow) for entry in entries))
    row.compare(map(encode_row, entries), whole.decode().splitlines(keepends=True), f"at byte {at}")
    row.notes["verdicts"] = sum(isinstance(entry, VerdictRow) for entry in entries)
