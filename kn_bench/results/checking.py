"""What Arrow does not check of the rows it reads: values that a field cannot have, by column.

The codec checks the same row by row; it is asked for the line once a column here is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from kn_bench.measure.ranges import Range, range_of
from kn_bench.results.codec import INFINITE, FormatError


def check_table(table: pa.Table, cls: type) -> None:
    """Refuse a table of rows of ``cls`` that the codec would not read.

    Raises:
        FormatError: for null where a value belongs, a literal that is none of the field's, or a
            number out of its range.
    """
    if len(table):
        whole = pa.chunked_array(table.to_struct_array())
        _check_members(whole, cls, "")


def _check_members(struct: pa.ChunkedArray, cls: type, path: str) -> None:
    """Check the fields of structs, none of which may be missing."""
    for field, hint, column in _columns(struct, cls):
        name = f"{path}{field.name}"
        args = get_args(hint)
        if get_origin(hint) is not Literal and NoneType in args:
            (hint,) = (arg for arg in args if arg is not NoneType)
            column = column.drop_null()
        elif column.null_count:
            if field.default is MISSING and field.default_factory is MISSING:
                raise FormatError(f"field {name!r} is missing or null")
            column = column.drop_null()  # written before there was this field
        if len(column):
            _check_column(column, hint, range_of(field), name)


def _check_column(column: pa.ChunkedArray, hint: Any, within: Range | None, name: str) -> None:
    """Check the values of one field, none of which may be null."""
    if get_origin(hint) is Literal:
        unknown = pc.invert(pc.is_in(column, pa.array(get_args(hint))))
        if pc.any(unknown).as_py():
            raise FormatError(
                f"field {name!r} holds what is not expected there: {_first(column, unknown)!r}"
            )
    elif get_origin(hint) is tuple:
        items = pc.list_flatten(column)
        if items.null_count:
            raise FormatError(f"field {name!r} has a member that is null")
        if len(items):
            _check_column(items, get_args(hint)[0], within, name)
    elif is_dataclass(hint):
        _check_members(column, hint, f"{name}.")  # type: ignore[arg-type]
    elif hint is float:
        _check_range(column, within or Range(-INFINITE, INFINITE, "a number"), name)
    elif hint is int and within is not None:
        _check_range(column, within, name)


def _check_range(column: pa.ChunkedArray, within: Range, name: str) -> None:
    outside = pc.invert(
        pc.and_(pc.greater_equal(column, within.low), pc.less_equal(column, within.high))
    )  # NaN is neither
    if within.finite:
        outside = pc.or_(outside, pc.greater_equal(pc.abs(column), INFINITE))
    if pc.any(outside).as_py():
        value = _first(column, outside)
        raise FormatError(f"field {name!r} holds {value!r}: expected {within.words}")


def _columns(
    struct: pa.ChunkedArray, cls: type
) -> Iterator[tuple[Field[Any], Any, pa.ChunkedArray]]:
    """Yield the fields of ``cls`` that have a column, with their types."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if struct.type.get_field_index(field.name) >= 0:
            yield field, hints[field.name], pc.struct_field(struct, field.name)


def _first(column: pa.ChunkedArray, mask: pa.ChunkedArray) -> Any:
    return column.filter(mask)[0].as_py()
