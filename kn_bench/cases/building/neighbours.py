"""Neighbours of the other task, for sources that hold facts or pairs alone.

Common knowledge and plain agreement, so that any model has something to keep: a fact must outlive
an edit of grammar, and grammar an edit of a fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from kn_bench.cases.case import Cloze, Probe
from kn_bench.cases.sampling import draw

NEIGHBOURS = 2
"""Probes of each kind of locality."""

_FACTS = """
The capital of France is | Paris | London
The capital of Japan is | Tokyo | Paris
The capital of Italy is | Rome | Madrid
The capital of Egypt is | Cairo | Berlin
The capital of Russia is | Moscow | Rome
The capital of Spain is | Madrid | Tokyo
The official language of Brazil is | Portuguese | Spanish
The official language of Germany is | German | French
The official language of Mexico is | Spanish | German
The official language of Turkey is | Turkish | Italian
The continent of Kenya is | Africa | Asia
The continent of China is | Asia | Europe
The continent of Norway is | Europe | Africa
The continent of India is | Asia | America
"""

_PAIRS = """
The teacher is reading this | book | books
The teacher is reading these | books | book
My neighbor cleaned that | window | windows
My neighbor cleaned those | windows | window
The old woman likes this small | dog | dogs
The old woman likes these small | dogs | dog
The farmer in the garden | sleeps | sleep
The farmers in the garden | sleep | sleeps
The student near the windows | smiles | smile
The students near the window | smile | smiles
Mary helped | herself | himself
John helped | himself | herself
The girls saw | themselves | herself
The boy saw | himself | themselves
"""


def _read(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


FACTS: tuple[Probe, ...] = tuple(
    Probe(f"fact/{i}", "locality", Cloze(left, "."), expected, rejected)
    for i, (left, expected, rejected) in enumerate(_read(_FACTS))
)

PAIRS: tuple[Probe, ...] = tuple(
    Probe(f"pair/{i}", "locality", Cloze(left, "."), expected, rejected, task="pair")
    for i, (left, expected, rejected) in enumerate(_read(_PAIRS))
)


def other_task(probes: Sequence[Probe], *key: str | int) -> list[Probe]:
    """Return probes of the other task's locality, drawn from ``probes`` by ``key``."""
    drawn = draw(probes, NEIGHBOURS, "other_task", *key)
    return [_as_neighbour(probe, i) for i, probe in enumerate(drawn)]


@lru_cache(maxsize=1024)
def _as_neighbour(probe: Probe, i: int) -> Probe:
    return probe._replace(id=f"locality/other_task/{i}", criterion="locality", kind="other_task")
