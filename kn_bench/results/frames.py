"""The rows of runs as frames that memory can hold: of 20 million rows, in half a gigabyte.

    a run's log ──lines──> tables of 100,000 rows ──one column after the other──> a frame
                 parsed by threads

A text, such as a case's id, stands once in a frame, and a number in each row (a category). So do
numbers that are one of a few, as shares are. :func:`uncoded` makes ordinary columns of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from kn_bench.results.columns import reading, table_of
from kn_bench.results.log import parts

PARSERS = 2
"""Threads that parse; one more reads."""
CHUNK = 20_000
"""Rows parsed at once: about 15 MB."""
EXPLANATION = "verdict_explanation"
COUNTED = "verdict_kinds"
"""The column of how many probes of each kind held, which is a text here: see :func:`kinds_in`."""
WITHIN, BETWEEN = "\x1f", "\x1e"
"""What stands between kind, held and counted, and between kinds: ASCII's own signs for it."""
READINGS = ("prob", "tf_token", "tf_all", "generated")
NUMBERS = {"verdict_mean_kl", "verdict_overturn_shift"}
NUMBERS |= {f"verdict_readings_{name}" for name in READINGS}
"""Columns of numbers that are categories too: most rows have none, or one of a few."""
SMALL = 30_000
"""So many categories are numbered in two bytes."""


def read_tables(
    log: Path, kinds: Sequence[str], *, leave_out: Collection[str] = ()
) -> dict[str, list[pa.Table]]:
    """Return the rows of each of ``kinds`` as tables in the order of ``log``, from one reading.

    Texts, and the columns in ``NUMBERS``, are numbers into a dictionary of each table:
    :func:`frame_from` makes one of them.

    Args:
        log: of a run.
        kinds: of rows.
        leave_out: columns that are not needed.

    Raises:
        StoreError: when the log cannot be read.
    """
    with reading(log), ThreadPoolExecutor(PARSERS) as pool:
        tables = Parsing(pool, kinds, leave_out)
        for lines, names in parts(log):
            tables.add(lines, names)
        read = tables.done()
    pa.default_memory_pool().release_unused()  # what was parsed is a multiple of what is kept
    return read


class Parsing:
    """Lines by kind that become tables in other threads, some thousand at a time.

    Args:
        pool: the threads.
        kinds: of rows; lines of others are passed over.
        leave_out: columns that are not needed.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, kinds: Iterable[str], leave_out: Collection[str]
    ) -> None:
        self._pool, self._leave_out = pool, leave_out
        self._waiting: dict[str, list[bytes]] = {kind: [] for kind in kinds}
        self._tables: dict[str, list[Future[pa.Table]]] = {kind: [] for kind in self._waiting}

    def add(self, lines: Sequence[bytes], names: Sequence[str]) -> None:
        """Take lines and the kinds of their rows."""
        for kind in self._waiting.keys() & set(names):
            self._waiting[kind] += compress(lines, map(kind.__eq__, names))
            if len(self._waiting[kind]) >= CHUNK:
                self._parse(kind)
                wait_for_all_but(PARSERS, self._tables[kind])

    def done(self) -> dict[str, list[pa.Table]]:
        """Return the tables of each kind, in the order of their lines."""
        for kind, waiting in self._waiting.items():
            if waiting:
                self._parse(kind)
        return {kind: [each.result() for each in tables] for kind, tables in self._tables.items()}

    def _parse(self, kind: str) -> None:
        chunk, self._waiting[kind] = self._waiting[kind], []
        self._tables[kind].append(self._pool.submit(coded, chunk, kind, self._leave_out))


def wait_for_all_but(last: int, tables: Sequence[Future[pa.Table]]) -> None:
    """Wait for earlier work, so that no more lines are held than are being parsed."""
    if len(tables) > last:
        tables[-last - 1].result()


def coded(chunk: Iterable[bytes], kind: str, leave_out: Collection[str] = ()) -> pa.Table:
    """Return lines of one kind as columns, with numbers for what is one of a few values.

    Raises:
        FormatError: see :func:`kn_bench.results.columns.table_of`.
    """
    return with_codes(table_of(chunk, kind, leave_out=leave_out))


def with_codes(table: pa.Table) -> pa.Table:
    """Return a table of :func:`kn_bench.results.columns.table_of` with its texts as numbers."""
    return pa.table({name: _coded(name, table[name]) for name in table.column_names})


def _coded(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Return a column as numbers into a dictionary, of two bytes where they suffice."""
    if name == COUNTED:
        column = pa.chunked_array([_as_texts(column.combine_chunks())])
    elif pa.types.is_int64(column.type):
        small = pc.max(pc.abs(column)).as_py() or 0
        return column.cast(pa.int32()) if small < 2**31 else column
    elif name not in NUMBERS and not pa.types.is_string(column.type):
        return column
    codes = column.combine_chunks().dictionary_encode()
    if len(codes.dictionary) > SMALL:
        return codes
    return codes.cast(pa.dictionary(pa.int16(), codes.type.value_type))


def _as_texts(counts: pa.ListArray) -> pa.Array:
    """Return lists of :class:`kn_bench.measure.verdict.KindCount`, each as one text."""
    counted = counts.flatten()
    fields = (counted.field(name).cast(pa.string()) for name in ("kind", "held", "counted"))
    texts = pc.binary_join_element_wise(*fields, WITHIN)
    lengths = pc.fill_null(pc.list_value_length(counts), 0).to_numpy()
    begins = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(begins, texts), BETWEEN)


def kinds_in(text: str) -> list[tuple[str, int, int]]:
    """Return kind, held and counted of each kind that a text of the column ``COUNTED`` holds."""
    counted = (part.split(WITHIN) for part in text.split(BETWEEN) if part)
    return [(kind, int(held), int(n)) for kind, held, n in counted]


def frame_from(tables: Mapping[str, list[pa.Table]], kind: str) -> pd.DataFrame:
    """Return the rows of several runs as one frame, in their order, with a column ``run``.

    Texts are categories in the order of the alphabet; truth values 1.0 and 0.0 in two bytes, and
    NaN where there is none.

    Args:
        tables: run -> its rows, see :func:`read_tables`; the lists are emptied.
        kind: of the rows.
    """
    lengths = [sum(map(len, of_run)) for of_run in tables.values()]
    whole = [table for of_run in tables.values() for table in of_run] or [coded((), kind)]
    for of_run in tables.values():
        of_run.clear()
    columns: dict[str, Any] = {}
    for name in whole[0].column_names:
        chunks = [chunk for table in whole for chunk in table[name].chunks]
        chunks = chunks or [pa.nulls(0, whole[0].schema.field(name).type)]
        # a column leaves its tables as it comes here, so that it is in memory once
        whole = [table.drop_columns([name]) for table in whole]
        columns[name] = _column(chunks)
    runs = sorted(tables)
    places = np.repeat([runs.index(run) for run in tables], lengths)
    columns["run"] = pd.Categorical.from_codes(places, categories=pd.Index(runs, dtype="str"))
    return pd.DataFrame(columns, copy=False)


def _column(chunks: Sequence[pa.Array]) -> Any:
    """Return one column from the chunks of its tables."""
    type_ = chunks[0].type
    if pa.types.is_dictionary(type_):
        return _category(chunks)
    if pa.types.is_boolean(type_):
        truths = (chunk.cast(pa.uint8()).to_numpy(zero_copy_only=False) for chunk in chunks)
        return np.concatenate([part.astype(np.float16) for part in truths])
    if pa.types.is_nested(type_):
        return pa.chunked_array(chunks).to_pandas()
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])


def _category(chunks: Sequence[pa.DictionaryArray]) -> pd.Categorical:
    """Return numbers into dictionaries as a category in the order of its values."""
    every = pa.concat_arrays([chunk.dictionary for chunk in chunks])
    values = every.unique().drop_null()
    values = values.take(pc.sort_indices(values))
    places = pc.fill_null(pc.index_in(every, value_set=values), -1).to_numpy()
    small = np.int8 if len(values) < 128 else np.int16 if len(values) < SMALL else np.int32
    ends = np.cumsum([len(chunk.dictionary) for chunk in chunks])[:-1]
    codes: Any = np.concatenate(
        [
            np.append(own, -1)[pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False)]
            for chunk, own in zip(chunks, np.split(places.astype(small), ends), strict=True)
        ],
        dtype=small,
    )
    return pd.Categorical.from_codes(codes, categories=pd.Index(values.to_pandas()), validate=False)


def numbers(column: pd.Series[Any]) -> Float[np.ndarray, " row"]:
    """Return a column of numbers, NaN where there is none."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        values: np.ndarray = np.append(column.cat.categories.to_numpy(float), np.nan)
        return values[column.cat.codes.to_numpy()]
    return column.to_numpy(float)


def uncoded(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with ordinary columns: texts, numbers, lists of kinds as the log has them."""
    return pd.DataFrame({name: _uncoded(str(name), frame[name]) for name in frame}, frame.index)


def _uncoded(name: str, column: pd.Series[Any]) -> Any:
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = column.cat.categories
        if name == COUNTED:
            names = ("kind", "held", "counted")
            lists = [[dict(zip(names, k, strict=True)) for k in kinds_in(v)] for v in values]
            return [lists[code] if code >= 0 else None for code in column.cat.codes]
        return column.astype(values.dtype)
    if column.dtype == np.float16:
        return column.astype(float)
    return column.astype(np.int64) if column.dtype == np.int32 else column
