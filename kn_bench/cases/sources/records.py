"""Records of a data file, whatever its form on disk: JSON, JSON lines, CSV, TSV or Parquet.

The form is told by what the file holds. Text may be UTF-8 with or without a byte order mark, or
UTF-16 with one, with any line ends. Nothing here knows what the fields mean.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.cases.reading import (
    RepeatedFieldError,
    as_object,
    parse_object,
    reason_of,
    without_repeats,
)

PARQUET = b"PAR1"
DELIMITED = (".csv", ".tsv")
_ESCAPE = "\\u"
_LINE_END = re.compile(r"\r\n|\r|\n")
_LIST = re.compile(r"""\s*(?=\[\s*["'\[{\]]|\{\s*["'])[\[{].*[\]}]\s*""", re.DOTALL)
"""A cell that holds a list or an object, in JSON or as Python writes them; ``[Y] …`` is a text."""
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


class FileRecord(NamedTuple):
    """One record of a file.

    Attributes:
        where: where it stands, for complaints: ``line 3``, ``record 0``, ``row 2``.
        fields: its fields by name. Cells of CSV and TSV are texts; empty cells are left out.
        columns: the names of all columns, for a row of a table (CSV, TSV, Parquet).
        escaped: whether its JSON writes a character by its number.
    """

    where: str
    fields: dict[str, Any]
    columns: tuple[str, ...] = ()
    escaped: bool = False


def read_records(path: Path, *, wrong: list[str] | None = None) -> list[FileRecord]:
    """Read all records of a file.

    Args:
        path: the file.
        wrong: where to note the lines that are not JSON objects, instead of raising at the first.

    Raises:
        ValueError: one sentence, for a file that cannot be read, holds no records, or repeats a
            field within a record.
    """
    records = list(_records(path, wrong))
    if not records and not wrong:
        raise _no_records(path)
    return records


def names_of(records: Iterable[FileRecord]) -> tuple[str, ...]:
    """Return the fields that any of the records has: a file's first record may lack some."""
    named = (name for record in records for name in (*record.columns, *record.fields))
    return tuple(dict.fromkeys(named))


def json_cell(name: str, cell: str) -> Any:
    """Return what the JSON in a cell of a table holds.

    Raises:
        ValueError: naming the column, for a cell that is not JSON.
    """
    try:
        return json.loads(cell, object_pairs_hook=without_repeats)
    except RepeatedFieldError as error:
        raise ValueError(f"{name}: {error}") from None
    except (ValueError, RecursionError):
        raise ValueError(f'{name} is {cell!r}; expected JSON, such as ["…"]') from None


def with_lists_read(record: FileRecord, names: Collection[str]) -> dict[str, Any]:
    """Return the fields of a record, with the lists and objects read that a table has as text.

    Args:
        record: of any file; what is not from a table stays as it is.
        names: the fields that are read.

    Raises:
        ValueError: for a cell that looks like a list and is not JSON.
    """
    if not record.columns:
        return record.fields
    return {
        name: json_cell(name, value)
        if name in names and isinstance(value, str) and _LIST.fullmatch(value)
        else value
        for name, value in record.fields.items()
    }


def _no_records(path: Path) -> ValueError:
    return ValueError(
        f"{path.name}: expected records, it holds none; give a fact or a minimal pair a record"
    )


def _records(path: Path, wrong: list[str] | None) -> Iterator[FileRecord]:
    if not path.is_file():
        raise ValueError(f"{path}: expected a data file; it is a folder, a device or missing")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if content[:4] == PARQUET:
        return _parquet(path)
    return _textual(decoded(content, path), path, wrong)


def has_half_a_character(record: FileRecord) -> bool:
    """Tell whether a text of the record cannot be written as UTF-8."""
    if not record.escaped:  # the file was decoded: only an escape of JSON can hold one
        return False
    try:
        json.dumps(record.fields, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False


def decoded(content: bytes, path: Path) -> str:
    """Return the text of a file by its byte order mark, UTF-8 where it has none.

    Raises:
        ValueError: naming the first byte that is not text, or the tool that packed the file.
    """
    for magic, packed_by in _PACKED.items():
        if content.startswith(magic):
            raise ValueError(f"{path.name}: expected text, it is packed by {packed_by}; unpack it")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: expected {encoding.upper().removesuffix('-SIG')} text, not so at byte "
            f"{error.start}; save it as UTF-8"
        ) from None


def _textual(text: str, path: Path, wrong: list[str] | None) -> Iterator[FileRecord]:
    start = text.lstrip()[:1]
    suffix = path.suffix.lower()
    if suffix in DELIMITED:
        return _delimited(text, path)
    if start == "[" and suffix != ".jsonl":
        return _json_list(text, path)
    if start and start != "{" and suffix not in (".json", ".jsonl"):
        return _delimited(text, path)
    return _json_lines(text, path, wrong)


def _json_list(text: str, path: Path) -> Iterator[FileRecord]:
    try:
        entries = json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected JSON ({reason_of(error)})") from None
    escaped = _ESCAPE in text
    for index, entry in enumerate(entries):
        fields = as_object(entry, f"{path.name}, record {index}")
        yield FileRecord(f"record {index}", fields, escaped=escaped)


def _json_lines(text: str, path: Path, wrong: list[str] | None) -> Iterator[FileRecord]:
    # not splitlines(): U+2028 may stand inside a JSON string
    for number, line in enumerate(_LINE_END.split(text), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            fields = parse_object(line, f"{path.name}, {where}")
            yield FileRecord(where, fields, escaped=_ESCAPE in line)
        except ValueError as error:
            if wrong is None:
                raise
            wrong.append(str(error).removeprefix(f"{path.name}, "))


def _delimited(text: str, path: Path) -> Iterator[FileRecord]:
    delimiter = max(",;\t", key=_LINE_END.split(text.lstrip(), 1)[0].count)  # by the header
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = tuple(name.strip() for name in next(reader, []))
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            raise ValueError(
                f"{path.name}: column {sorted(repeated)[0]!r}: expected once; rename one"
            )
        for cells in reader:
            where = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path.name}, {where}: expected {len(header)} cells, not {len(cells)}; quote "
                    "a cell that holds the delimiter"
                )
            filled = zip(header, cells, strict=True)
            yield FileRecord(where, {name: cell for name, cell in filled if cell.strip()}, header)
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num}: expected CSV ({error})") from None


def _parquet(path: Path) -> Iterator[FileRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows, columns = table.to_pylist(), tuple(table.column_names)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path.name}: expected Parquet ({reason_of(error)})") from None
    for index, row in enumerate(rows):
        filled = {name: value for name, value in row.items() if value is not None}
        yield FileRecord(f"row {index}", filled, columns)
