"""Compare two runs row by row: what a change of the code left equal, and what it moved.

    python benchmarks/same_rows.py reports/runs/BEFORE reports/runs/AFTER

Rows are matched by model, method, case, criterion and probe. A number counts as equal to the bit,
within rounding (``--tolerance``), or as different; sentences (``explanation``, ``reason``) are
counted apart, since their wording may change; times are not compared. Exit status 1 when a row is
missing on one side or any number or category differs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IDENTITY = ("row", "model", "method", "case", "criterion", "probe", "protocol")
TIMES = {"seconds"}
SENTENCES = {"explanation", "reason", "detail", "description"}


def rows(run: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the rows of a run by their identity."""
    by_identity = {}
    with (run / "measurements.jsonl").open(encoding="utf-8") as log:
        for line in log:
            row = json.loads(line)
            exclusion = row.get("exclusion") or {}
            named = [row.get(name, "") for name in IDENTITY]
            named += [exclusion.get("case", ""), exclusion.get("probe", "")]
            by_identity[tuple(map(str, named))] = row
    return by_identity


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a row with their dotted paths."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from fields(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from fields(part, f"{path}[{index}]")
    else:
        yield path, value


def compare(before: Any, after: Any, tolerance: float) -> str:
    """Say how two leaves differ: ``equal``, ``rounding`` or ``different``."""
    if before == after:
        return "equal"
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (before, after))
    if numbers and math.isclose(before, after, rel_tol=tolerance, abs_tol=tolerance):
        return "rounding"
    return "different"


def main() -> int:
    """Compare the two runs and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    before, after = rows(options.before), rows(options.after)
    counts: Counter[str] = Counter()
    different: Counter[str] = Counter()
    largest = 0.0
    for identity in before.keys() & after.keys():
        ours, theirs = (dict(fields(side[identity])) for side in (before, after))
        verdicts = set()
        for path in ours.keys() & theirs.keys():
            name = path.rpartition(".")[2]
            if name in TIMES or name.endswith("seconds"):
                continue
            verdict = compare(ours[path], theirs[path], options.tolerance)
            if name in SENTENCES:
                counts["sentences worded differently"] += verdict != "equal"
                continue
            verdicts.add(verdict)
            if verdict == "rounding":
                largest = max(largest, abs(ours[path] - theirs[path]))
            if verdict == "different":
                different[path] += 1
        worst = next(v for v in ("different", "rounding", "equal") if v in verdicts)
        counts[f"{identity[0]} rows {worst}"] += 1
    only_before, only_after = before.keys() - after.keys(), after.keys() - before.keys()
    print(f"rows: {len(before)} before, {len(after)} after")
    print(f"only before: {len(only_before)}   only after: {len(only_after)}")
    for name, count in sorted(counts.items()):
        print(f"{count:8,}  {name}")
    print(f"largest difference within rounding: {largest:.1e}")
    for path, count in different.most_common(10):
        print(f"{count:8,}  differ in {path}")
    for identity in sorted(only_before)[:5] + sorted(only_after)[:5]:
        print("unmatched:", *filter(None, identity))
    return int(bool(only_before or only_after or different))


if __name__ == "__main__":
    sys.exit(main())
