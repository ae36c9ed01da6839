"""Reading many records: line numbers in complaints, where downloads are kept, no collecting."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank.

    Raises:
        ValueError: when the file cannot be read as UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None
    # not splitlines: U+2028 may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def records(path: Path, *fields: str) -> Iterator[tuple[str, ...]]:
    """The texts of ``fields`` of each JSON object of a JSONL file.

    A field may be given as ``name|other name``; numbers come as text.

    Raises:
        ValueError: naming the line that is no JSON object or lacks a field.
    """
    names = [field.split("|") for field in fields]
    for number, line in lines_of(path):
        found = parse_object(line, f"{path.name}, line {number}")
        try:
            yield tuple(str(next(found[n] for n in either if n in found)) for either in names)
        except (StopIteration, RuntimeError):
            lacking = [field for field, either in zip(fields, names, strict=True)
                       if not any(n in found for n in either)]  # fmt: skip
            raise ValueError(
                f"{path.name}, line {number}: no {' and no '.join(lacking)}; every line needs "
                + ", ".join(fields)
            ) from None


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        ValueError: beginning with ``where``, for anything else.
    """
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ValueError(f"{where}: not JSON ({what}); one object a line is needed") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{where}: a JSON {type(found).__name__}; one object a line is needed, "
            'such as {"subject": "Canada", …}'
        )
    return found


def list_of_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that holds one JSON list.

    Raises:
        ValueError: one sentence, when it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{path} does not hold a JSON list of objects, one a fact")
    return found


@contextmanager
def without_collecting() -> Iterator[None]:
    """Garbage collection is off while open: a third of the time of building a million values.

    None of them is in a cycle, and every collection would walk them all. So that collections of the
    young do not walk them afterwards either, they leave as old ones.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what somebody else has frozen stays so
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if was_on:
            gc.enable()
