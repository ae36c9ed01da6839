"""Records of a data file, whatever its form on disk: JSON, JSON lines, CSV, TSV or Parquet.

The form is told by what the file holds. Text may be UTF-8 with or without a byte order mark, or
UTF-16 with one, with any line ends. Nothing here knows what the fields mean.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.cases.reading import (
    RepeatedFieldError,
    as_object,
    content_of,
    decoded,
    lines,
    parse_object,
    reason_of,
    without_repeats,
)

PARQUET = b"PAR1"
DELIMITED = (".csv", ".tsv")
_ESCAPE = "\\u"
_LIST = re.compile(r"""\s*(?=\[\s*["'\[{\]]|\{\s*["'])[\[{].*[\]}]\s*""", re.DOTALL)
"""A cell that holds a list or an object, in JSON or as Python writes them; ``[Y] …`` is a text."""
_DECLARED = re.compile(r"\s*sep=([^\w\s\"]|\t)[\r\n]")
"""The line by which spreadsheets say what separates the cells that follow."""


class FileRecord(NamedTuple):
    """One record of a file.

    Attributes:
        where: where it stands, for complaints: ``line 3``, ``record 0``, ``row 2``.
        fields: its fields by name, those that have a value: null and an empty cell are none. Cells
            of CSV and TSV are texts.
        names: the names of all its fields, with a value or without.
        in_table: whether it is a row of a table: CSV, TSV, Parquet.
        escaped: whether its JSON writes a character by its number.
    """

    where: str
    fields: dict[str, Any]
    names: tuple[str, ...]
    in_table: bool = False
    escaped: bool = False


def _record(
    where: str, given: dict[str, Any], *, in_table: bool = False, escaped: bool = False
) -> FileRecord:
    fields = {name: value for name, value in given.items() if value is not None}
    return FileRecord(where, fields, tuple(given), in_table, escaped)


def read_records(
    path: Path,
    *,
    wrong: list[str] | None = None,
    first: int | None = None,
    wanted: str = "a fact or a minimal pair",
) -> list[FileRecord]:
    """Read the records of a file.

    Args:
        path: the file.
        wrong: where to note the lines that are not JSON objects, instead of raising at the first.
        first: how many of them; None for all.
        wanted: what a record holds, for complaints.

    Raises:
        ValueError: one sentence, for a file that cannot be read, holds no records, or repeats a
            field within a record.
    """
    records = list(islice(_records(path, wrong), first))
    if not records and not wrong:
        raise ValueError(f"{path.name}: expected records, it holds none; give {wanted} a record")
    return records


def names_of(records: Iterable[FileRecord]) -> tuple[str, ...]:
    """Return the fields that any of the records has: a file's first record may lack some."""
    return tuple(dict.fromkeys(name for record in records for name in record.names))


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
    if not record.in_table:
        return record.fields
    return {
        name: json_cell(name, value)
        if name in names and isinstance(value, str) and _LIST.fullmatch(value)
        else value
        for name, value in record.fields.items()
    }


def _records(path: Path, wrong: list[str] | None) -> Iterator[FileRecord]:
    if not path.is_file():
        raise ValueError(f"{path}: expected a data file; it is a folder, a device or missing")
    content = content_of(path)
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
        yield _record(f"record {index}", fields, escaped=escaped)


def _json_lines(text: str, path: Path, wrong: list[str] | None) -> Iterator[FileRecord]:
    numbered = list(lines(text))
    for at, (number, line) in enumerate(numbered):
        where = f"line {number}"
        try:
            fields = parse_object(line, where)
            yield _record(where, fields, escaped=_ESCAPE in line)
        except ValueError as error:
            spread = "" if wrong else _over_several_lines(numbered[at:])
            if wrong is None:
                raise ValueError(f"{path.name}, {spread or error}") from None
            wrong.append(spread or str(error))
            if spread:
                return


def _over_several_lines(numbered: Sequence[tuple[int, str]]) -> str:
    """Return what is wrong where JSON goes on beyond the first of the lines; else ""."""
    text = "\n".join(line for _, line in numbered).lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return ""
    (first, _), (last, _) = numbered[0], numbered[text.count("\n", 0, end)]
    if first == last or not isinstance(value, dict | list):
        return ""
    what = "object" if isinstance(value, dict) else "list"
    return (
        f"line {first}: expected one JSON object a line, this {what} goes on to line {last}; write "
        "each object on a line of its own, or all of them as one list in a file named .json"
    )


def _delimited(text: str, path: Path) -> Iterator[FileRecord]:
    declared = _DECLARED.match(text)
    header_line = re.search(r"\S[^\r\n]*", text)
    delimiter = (
        declared[1] if declared else max(",;\t", key=(header_line[0] if header_line else "").count)
    )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        rows = (cells for cells in reader if any(cell.strip() for cell in cells))
        if declared:
            next(rows)
        header = tuple(name.strip() for name in next(rows, []))
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            raise ValueError(
                f"{path.name}: column {sorted(repeated)[0]!r}: expected once; rename one"
            )
        for cells in rows:
            where = f"line {reader.line_num}"
            if len(cells) != len(header):
                raise ValueError(
                    f"{path.name}, {where}: expected {len(header)} cells, not {len(cells)}; quote "
                    "a cell that holds the delimiter"
                )
            filled = (cell if cell.strip() else None for cell in cells)
            yield _record(where, dict(zip(header, filled, strict=True)), in_table=True)
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num}: expected CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[FileRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path.name}: expected Parquet ({reason_of(error)})") from None
    for index, row in enumerate(rows):
        yield _record(f"row {index}", row, in_table=True)
