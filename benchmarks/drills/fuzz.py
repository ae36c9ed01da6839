"""Spoilt files of every kind: refused in one sentence, or accepted and examined by a second reader.

A refusal is a ValueError of one line; anything else that is raised would be a traceback. What is
accepted wrongly counts as different.
"""

from __future__ import annotations

import itertools
import random
import signal
import traceback
from pathlib import Path

from benchmarks.drills.readers import FileReader, readers
from benchmarks.drills.row import DrillRow
from benchmarks.drills.spoiling import spoilt
from kn_bench.results.files import StoreError

INPUTS = 10_000
PATIENCE = 10
"""Seconds after which a reader counts as hanging."""


class Hang(BaseException):
    """A reader took too long; no reader may catch it."""


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Give ``share`` of :data:`INPUTS` spoilt files to the readers in turn."""
    row, dice = DrillRow("spoilt files"), random.Random(seed)
    before = signal.signal(signal.SIGALRM, _hang)
    try:
        every = list(readers(folder))
        for reader in every:  # the good file is read, or nothing is learnt
            reader.path.write_bytes(reader.good)
            reader.read()
        row.notes["kinds of file"] = len(every)
        for reader in itertools.islice(itertools.cycle(every), round(INPUTS * share)):
            _try(reader, spoilt(reader.good, dice), row)
    finally:
        signal.signal(signal.SIGALRM, before)
    return row


def _hang(*_: object) -> None:
    raise Hang


def _try(reader: FileReader, content: bytes, row: DrillRow) -> None:
    _clear(reader.path)
    reader.path.write_bytes(content)
    row.tried += 1
    signal.alarm(PATIENCE)
    try:
        result = reader.read()
    except Hang:
        row.fault("hangs", f"{reader.name}: {content[:200]!r}")
    except (ValueError, StoreError) as error:
        row.notes["refused"] += 1
        problem = _odd_sentence(error)
        row.fault("tracebacks", f"{reader.name}: {problem} in {str(error)[:200]!r}", bool(problem))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row.fault("tracebacks", f"{reader.name}: {error!r:.200} at {where.name} {where.lineno}")
    else:
        row.notes["accepted"] += 1
        _examine(reader, result, content, row)
    finally:
        signal.alarm(0)


def _odd_sentence(error: Exception) -> str:
    """Return what is wrong with a refusal: it has several lines, or is Python's own."""
    text = str(error)
    if "\n" in text or "\x1b" in text:
        return "several lines or control sequences"
    if type(error).__module__ not in ("builtins",) and not type(error).__module__.startswith("kn_"):
        return f"{type(error).__module__}.{type(error).__name__}"
    return "" if " " in text.strip() else "no sentence"


def _examine(reader: FileReader, result: object, content: bytes, row: DrillRow) -> None:
    try:
        wrong = reader.second(result, content)
    except Exception as error:  # the second reader cannot make sense of it: the first should not
        wrong = f"{type(error).__name__}: {error}"
    row.fault("different", f"{reader.name} accepted: {wrong}", bool(wrong))


def _clear(path: Path) -> None:
    """Remove what a reader leaves beside its file, such as a database's journal."""
    for beside in path.parent.glob(f"{path.name}-*"):
        beside.unlink()
