"""Records of a data file, whatever its form on disk: JSON, JSON lines, CSV, TSV or Parquet.

The form is told by what the file holds. Text may be UTF-8 with or without a byte order mark, or
UTF-16 with one, with any line ends. Nothing here knows what the fields mean.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.cases.reading import as_object, parse_object, reason_of, without_repeats

PARQUET = b"PAR1"
DELIMITED = (".csv", ".tsv")
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
    """

    where: str
    fields: dict[str, Any]


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


def first_record(path: Path) -> FileRecord:
    """Return the first record of a file, which tells what form the others have.

    Raises:
        ValueError: as :func:`read_records`, but of a later record that is wrong only where the
            file's form has to be read as a whole.
    """
    for record in _records(path, None):
        return record
    raise _no_records(path)


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


def has_half_a_character(fields: dict[str, Any]) -> bool:
    """Tell whether a text of the record cannot be written as UTF-8."""
    try:
        json.dumps(fields, ensure_ascii=False, default=str).encode()
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
    if path.suffix in DELIMITED:
        return _delimited(text, path)
    if start == "[" and path.suffix != ".jsonl":
        return _json_list(text, path)
    if start and start != "{" and path.suffix not in (".json", ".jsonl"):
        return _delimited(text, path)
    return _json_lines(text, path, wrong)


def _json_list(text: str, path: Path) -> Iterator[FileRecord]:
    try:
        entries = json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected JSON ({reason_of(error)})") from None
    for index, entry in enumerate(entries):
        yield FileRecord(f"record {index}", as_object(entry, f"{path.name}, record {index}"))


def _json_lines(text: str, path: Path, wrong: list[str] | None) -> Iterator[FileRecord]:
    # not splitlines(): U+2028 may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            yield FileRecord(where, parse_object(line, f"{path.name}, {where}"))
        except ValueError as error:
            if wrong is None:
                raise
            wrong.append(str(error).removeprefix(f"{path.name}, "))


def _delimited(text: str, path: Path) -> Iterator[FileRecord]:
    delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)  # by the header
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
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
            yield FileRecord(where, {name: cell for name, cell in filled if cell.strip()})
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num}: expected CSV ({error})") from None


def _parquet(path: Path) -> Iterator[FileRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path.name}: expected Parquet ({reason_of(error)})") from None
    for index, row in enumerate(rows):
        filled = {name: value for name, value in row.items() if value is not None}
        yield FileRecord(f"row {index}", filled)
