"""The table of the drills: what was tried, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tabulate import tabulate

Fault = Literal["lost", "doubled", "torn", "different", "unended", "tracebacks", "hangs"]
FAULTS: tuple[Fault, ...] = (
    "lost", "doubled", "torn", "different", "unended", "tracebacks", "hangs",
)  # fmt: skip
EXAMPLES = 5
"""Faults that are told in words, of each drill."""


@dataclass
class DrillRow:
    """One drill's outcome.

    Attributes:
        drill: its name.
        tried: how many kills, cuts, inputs or edits.
        faults: how many of each kind.
        notes: what else was counted, by name.
        examples: the first faults in words.
        seconds: wall time.
    """

    drill: str
    tried: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether something was tried, and nothing went wrong."""
        return self.tried > 0 and not self.faults.total()

    def fault(self, kind: Fault, example: str = "", n: int = 1) -> None:
        """Count a fault, and keep the first of them in words."""
        if n > 0:
            self.faults[kind] += n
            if example and len(self.examples) < EXAMPLES:
                self.examples.append(f"{kind}: {example}")

    def compare(self, ours: Iterable[str], whole: Iterable[str], example: str = "") -> None:
        """Count the rows of a run that are not those of the run that nobody touched."""
        mine, theirs = Counter(ours), Counter(whole)
        self.fault("lost", example, (theirs - mine).total())
        self.fault("doubled", example, sum(n - 1 for n in mine.values() if n > 1))
        self.fault("different", example, sum(1 for row in mine if row not in theirs))


def table(rows: Iterable[DrillRow]) -> str:
    """Return all drills as one table, with the faults in words below."""
    listed = list(rows)
    body = [
        (row.drill, row.tried, *(row.faults[kind] for kind in FAULTS), f"{row.seconds:.0f}",
         ", ".join(f"{n} {name}" for name, n in row.notes.items()))
        for row in listed
    ]  # fmt: skip
    text = tabulate(body, ("drill", "tried", *FAULTS, "s", "of which"))
    examples = [f"{row.drill}: {example}" for row in listed for example in row.examples]
    return "\n".join([text, *examples])
