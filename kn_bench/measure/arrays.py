"""Columns of Arrow tables as NumPy arrays, and back; of texts, each is looked at only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A column of texts.

    Attributes:
        texts: those that stand in it, and maybe others.
        codes: by row, which of ``texts`` stands there.
    """

    texts: Sequence[str]
    codes: Ints

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> TextColumn:
        """Return a column without nulls, plain or dictionary-encoded."""
        array = column.combine_chunks()
        if pa.types.is_dictionary(array.type) and len(array.dictionary) > len(array):
            array = array.dictionary_decode()  # of a filtered column: most texts are gone
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        return cls(array.dictionary.to_pylist(), array.indices.to_numpy().astype(np.int64))

    def numbers(self, number: Callable[[str], int]) -> Ints:
        """Return the ``number`` of the text of each row; it is called once a text."""
        return np.array([number(text) for text in self.texts], np.int64)[self.codes]

    def where(self, holds: Callable[[str], bool]) -> Bools:
        """Tell in which rows ``holds`` is true of the text; it is called once a text."""
        return np.array([holds(text) for text in self.texts], bool)[self.codes]

    def is_one_of(self, *texts: str) -> Bools:
        """Tell in which rows one of ``texts`` stands."""
        return self.where(texts.__contains__)

    def column(self) -> pa.Array:
        """Return the column as plain texts."""
        return pa.array(self.texts, pa.string()).take(pa.array(self.codes))


def of_pairs(
    judge: Callable[[str, str], bool], first: pa.ChunkedArray, second: pa.ChunkedArray
) -> Bools:
    """Return what ``judge`` says of the two texts of each row; it is asked once a pair of texts."""
    ours, theirs = TextColumn.of(first), TextColumn.of(second)
    n = max(1, len(theirs.texts))
    pairs, place = np.unique(ours.codes * n + theirs.codes, return_inverse=True)
    said = [judge(ours.texts[pair // n], theirs.texts[pair % n]) for pair in pairs.tolist()]
    return np.array(said, bool)[place]


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array that is not dictionary-encoded."""
    array = column.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def spread(values: npt.NDArray[Any], rows: Ints, n_rows: int) -> pa.Array:
    """Return a column of ``n_rows`` that holds ``values`` at ``rows``, and else nulls."""
    column, hidden = np.zeros(n_rows, values.dtype), np.ones(n_rows, bool)
    column[rows], hidden[rows] = values, False
    return pa.array(column, mask=hidden)


def replaced(table: pa.Table, columns: Mapping[str, pa.Array], rows: Bools) -> pa.Table:
    """Return ``table`` with new values in ``rows`` of those of ``columns`` that it has.

    Dictionaries stay ones.
    """
    for name, new in columns.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            continue
        if not rows.all():
            new = pc.if_else(pa.array(rows), new, one_array(table.column(index)))
        if pa.types.is_dictionary(table.schema.field(index).type):
            new = new.dictionary_encode()
        table = table.set_column(index, name, new)
    return table
