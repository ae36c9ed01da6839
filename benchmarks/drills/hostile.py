"""The table of hostile methods, each row with what must happen (``tests/test_hostile_methods.py``).

Its tests hold the model, the process and the next method's numbers to what they were.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.drills.row import DrillRow

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("tests/test_hostile_methods.py", "tests/test_lethal_methods.py")


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Run the table: all of it, or the rows whose number is a multiple of ``1 / share``."""
    row, report = DrillRow("hostile methods"), folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *TABLES[: 1 + (share == 1)],
    ]
    subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, capture_output=True, check=False)
    for case in ElementTree.parse(report).iter("testcase"):
        row.tried += 1
        broken = case.find("failure") is not None or case.find("error") is not None
        row.fault("different", case.get("name", ""), int(broken))
    return row
