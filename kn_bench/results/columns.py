"""A run's rows as columns: checked tables and data frames, and Parquet for everyone else.

Imported only at the end of a run and by the command line: pandas and pyarrow are slow to import.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet

from kn_bench.results.checking import check_table
from kn_bench.results.codec import INFINITE
from kn_bench.results.files import StoreError, atomically
from kn_bench.results.log import about, lines, lines_of, rows
from kn_bench.results.rows import KINDS, kind_of

CHUNK = 100_000
"""Rows converted at once: about 100 MB."""
OCCASION = {"protocol": "single", "sequence": 0, "asked": "immediate"}
"""When a probe was asked, and what that is in a log from before there were protocols."""
SCALARS = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}


def write_parquet(log: Path, target: Path) -> None:
    """Write the measurements of ``log`` as Parquet, infinities as such, in chunks of rows."""
    schema = schema_of("measurement")
    with atomically(target) as file:
        writer = pa.parquet.ParquetWriter(file, _flat(schema.empty_table()).schema)
        with writer:
            measurements = (line for _, line in lines(log) if kind_of(line) == "measurement")
            with reading(log):
                for chunk in chunks(measurements):
                    table = _parsed(chunk, schema)
                    check_table(table, KINDS["measurement"])
                    writer.write_table(_flat(table))


@contextmanager
def reading(log: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with a log whose lines do not become columns.

    Raises:
        StoreError: naming the line.
    """
    try:
        yield
    except (pa.ArrowException, ValueError) as error:  # FormatError, no UTF-8, no JSON
        raise _unreadable(log, error) from None


def _unreadable(log: Path, error: Exception) -> StoreError:
    """Return what is wrong with a log: Arrow reads many lines at once and cannot name the line."""
    try:
        for _ in rows(log):
            pass
    except StoreError as precise:
        return precise
    return StoreError(f"{log} cannot be read: {str(error).splitlines()[0]}")


def read_parts(
    log: Path, kind: str, *, cases: Collection[str] | None = None
) -> Iterator[pd.DataFrame]:
    """Yield the rows of one kind of a log that was read before, a part at a time.

    Args:
        log: of a run.
        kind: of the rows.
        cases: whose rows are read; None for all. Where a case's id is written in escapes, rows of
            others may be among them.

    Raises:
        StoreError: when a row is not as it should be.
    """
    lines = lines_of(log, kind)
    if cases is not None:
        lines = filter(about(cases), lines)
    with reading(log):
        for chunk in chunks(lines):
            yield frame_of(chunk, kind)


def frame_of(rows_as_json: Iterable[bytes], kind: str) -> pd.DataFrame:
    """Return the lines of rows of one kind as columns, see :func:`table_of`.

    Truth values are 1.0 and 0.0, and NaN where there is none.

    Raises:
        FormatError: for a field without its value, or with one that it cannot have.
    """
    return _frame([table_of(chunk, kind) for chunk in chunks(rows_as_json)], kind)


def table_of(chunk: Iterable[bytes], kind: str, *, leave_out: Collection[str] = ()) -> pa.Table:
    """Return lines of one kind as columns, each of them checked.

    A column a field; nested fields are named ``verdict_score``, and those of when a row was asked
    ``protocol``, ``sequence`` and ``asked``, filled in where an old log does not say.

    Args:
        leave_out: columns that are not needed.

    Raises:
        FormatError: for a field without its value, or with one that it cannot have.
    """
    table = _parsed(chunk, schema_of(kind, leave_out))
    check_table(table, KINDS[kind])
    return _with_occasion(_flat(table))


def _with_occasion(table: pa.Table) -> pa.Table:
    for name, default in OCCASION.items():
        at = table.schema.get_field_index(f"occasion_{name}")
        if at >= 0:
            table = table.set_column(at, name, pc.fill_null(table.column(at), default))
    return table


def _frame(tables: list[pa.Table], kind: str) -> pd.DataFrame:
    table = pa.concat_tables(tables) if tables else table_of((), kind)
    tables.clear()
    truths = [f.name for f in table.schema if pa.types.is_boolean(f.type)]
    # columns go over one by one, and only one of them is there twice
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    del table
    for name in truths:
        frame[name] = frame[name].astype(float)
    for name in frame.select_dtypes("number"):
        # what Arrow lends is read-only, and whoever asks for a frame may write into it
        if not frame[name].to_numpy().flags.writeable:
            frame[name] = frame[name].to_numpy(copy=True)
    return frame


def schema_of(kind: str, leave_out: Collection[str] = ()) -> pa.Schema:
    """Return the Arrow schema of a kind of row; free-form notes have no column."""
    return pa.schema(_members(KINDS[kind], "", leave_out))


def _members(
    cls: type, path: str = "", leave_out: Collection[str] = ()
) -> list[tuple[str, pa.DataType]]:
    hints = get_type_hints(cls)
    names = (f.name for f in fields(cls) if path + f.name not in leave_out)
    typed = ((name, _arrow(hints[name], f"{path}{name}_", leave_out)) for name in names)
    return [(name, arrow) for name, arrow in typed if arrow is not None]


def _arrow(hint: Any, path: str, leave_out: Collection[str]) -> pa.DataType | None:
    """Return the Arrow type of a field."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_arrow(args[0], path, leave_out))
    if origin is UnionType:
        (only,) = (arg for arg in args if arg is not NoneType)
        return _arrow(only, path, leave_out)
    if is_dataclass(hint):
        return pa.struct(_members(hint, path, leave_out))  # type: ignore[arg-type]
    return SCALARS.get(hint)


def chunks(rows_as_json: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield lines, as many at a time as are converted at once."""
    iterator = iter(rows_as_json)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _parsed(chunk: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    text = b"".join(chunk)
    if not text:
        return schema.empty_table()
    if not text.isascii():
        text.decode()  # Arrow takes other bytes than UTF-8 for text, and stumbles later
    return pa.json.read_json(io.BytesIO(text), parse_options=options)


def _flat(table: pa.Table) -> pa.Table:
    """Return structs as columns such as ``before_rank``, infinities as such."""
    while any(pa.types.is_struct(column.type) for column in table.columns):
        table = table.flatten()
    names = [name.replace(".", "_") for name in table.column_names]
    columns = [_unclamped(c) if pa.types.is_float64(c.type) else c for c in table.columns]
    return pa.table(columns, names=names)


def _unclamped(column: pa.ChunkedArray) -> pa.Array:
    """Return infinity where the log has its stand-in; null stays null."""
    values = column.to_numpy()  # null becomes NaN, which no row holds
    values = np.where(np.abs(values) >= INFINITE, np.copysign(np.inf, values), values)
    return pa.array(values, from_pandas=True)
