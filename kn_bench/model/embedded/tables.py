"""Read the data tables that lie beside this module; nothing here knows what they mean."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

TABLES = Path(__file__).parent / "tables"


@lru_cache(maxsize=64)
def rows(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a tab-separated table; ``-`` stands for an empty cell.

    Raises:
        ValueError: for a row with another number of cells than the head.
    """
    lines = (TABLES / name).read_text(encoding="utf-8").splitlines()
    head = lines[0].split("\t")
    table = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(head):
            raise ValueError(f"{name}, line {number}: expected {len(head)} cells, got {len(cells)}")
        table.append(
            {key: "" if cell == "-" else cell for key, cell in zip(head, cells, strict=True)}
        )
    return tuple(table)


@lru_cache(maxsize=64)
def words(name: str, folder: Path = TABLES) -> tuple[str, ...]:
    """Return the words of a text file, in order."""
    return tuple((folder / name).read_text(encoding="utf-8").split())


def lines(name: str, folder: Path = TABLES) -> Iterator[str]:
    """Return the lines of a text file that are neither empty nor comments."""
    for line in (folder / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line


def share(*parts: str) -> float:
    """Return a number in [0, 1) from the text itself (CRC-32), the same in every process."""
    return zlib.crc32("|".join(parts).encode()) % 10_000 / 10_000
