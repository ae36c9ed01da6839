"""Reading many records: the text of a file, line numbers in complaints, no collecting."""

from __future__ import annotations

import codecs
import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LINE_END = re.compile(r"\r\n|\r|\n")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def content_of(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        ValueError: when it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def decoded(content: bytes, path: Path) -> str:
    """Return the text of a file by its byte order mark, UTF-8 where it has none.

    Raises:
        ValueError: naming the first byte that is not text, or the tool that packed the file.
    """
    for magic, packed_by in _PACKED.items():
        if content.startswith(magic):
            raise ValueError(f"{path.name}: expected text, it is packed by {packed_by}; unpack it")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    expected = f"expected {encoding.upper().removesuffix('-SIG')} text"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: {expected}, not so at byte {error.start}; save it as UTF-8"
        ) from None
    if "\0" in text:
        line = 1 + len(_LINE_END.findall(text, 0, text.index("\0")))
        raise ValueError(
            f"{path.name}, line {line}: {expected}, it holds a zero byte, as UTF-16 without a byte "
            "order mark does; save it as UTF-8"
        )
    return text


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is not blank, whatever ends it."""
    # not splitlines: U+2028 may stand inside a JSON string
    for number, line in enumerate(_LINE_END.split(text), 1):
        if line.strip():
            yield number, line


def records(path: Path, *fields: str) -> Iterator[tuple[str, ...]]:
    """Yield the texts of ``fields`` of each JSON object of a JSONL file.

    A field may be given as ``name|other name``; numbers come as text.

    Raises:
        ValueError: for a file that is not text, and naming the line that is no JSON object or lacks
            a field.
    """
    names = [field.split("|") for field in fields]
    for number, line in lines(decoded(content_of(path), path)):
        where = f"{path.name}, line {number}"
        entry = parse_object(line, where)
        try:
            values = [next(entry[n] for n in either if n in entry) for either in names]
        except (StopIteration, RuntimeError):
            lacking = [field for field, either in zip(fields, names, strict=True)
                       if not any(n in entry for n in either)]  # fmt: skip
            raise ValueError(
                f"{where}: expected {', '.join(fields)}; add {' and '.join(lacking)}"
            ) from None
        for field, value in zip(fields, values, strict=True):
            if type(value) is not str and type(value) is not int:
                raise ValueError(
                    f"{where}: {field} is {json.dumps(value)[:40]}; expected a text or a number"
                )
        yield tuple(map(str, values))


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object of one line.

    Raises:
        ValueError: beginning with ``where``, for anything else.
    """
    try:
        entry = json.loads(line, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected one JSON object ({reason_of(error)})") from None
    return as_object(entry, where)


def as_object(entry: object, where: str) -> dict[str, Any]:
    """Return ``entry`` if it is a JSON object.

    Raises:
        ValueError: beginning with ``where``, for anything else.
    """
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: expected one JSON object, such as "
            f'{{"subject": "Canada", …}}, not a {type(entry).__name__}'
        )
    return entry


def reason_of(error: Exception) -> str:
    """Return what a reader complained of, in a line."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class RepeatedFieldError(ValueError):
    """A JSON object has a field twice: no value of the two is to be preferred."""


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its members, for ``object_pairs_hook``.

    Raises:
        RepeatedFieldError: naming the first field that stands there twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedFieldError(f"the field {repeated!r}: expected once, stands there twice")
    return fields


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep garbage collection off while open: a third of the time of building a million values.

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
