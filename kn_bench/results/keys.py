"""Rows told apart by several columns at once, as numbers.

A log of 20 million rows has its texts as categories: a number a row, and each text once. Keys of
several columns are made of these numbers, in a fraction of the memory that pandas takes for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

ROOM = 2**62
"""Numbers of keys below this fit into 64 bits."""


def numbered(column: pd.Series[Any]) -> tuple[Int[np.ndarray, " row"], pd.Index[Any]]:
    """Return a column as numbers, -1 where a value is missing, and the values by number, sorted."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(), column.cat.categories
    codes, values = pd.factorize(column, sort=True)
    return codes, pd.Index(values)


def keys(frame: pd.DataFrame, columns: Sequence[str]) -> Int[np.ndarray, " row"]:
    """Return a number for each row, equal where ``columns`` are, in the order of their values."""
    parts = (numbered(frame[name]) for name in columns)
    return _as_one(((codes, len(values)) for codes, values in parts), len(frame))


def are_unique(frame: pd.DataFrame, columns: Sequence[str]) -> bool:
    """Tell whether no two rows have the same ``columns``."""
    sorted_keys = keys(frame, columns)
    sorted_keys.sort()  # in place, where a table of hashes would be gigabytes
    return not (sorted_keys[1:] == sorted_keys[:-1]).any()


def groups(
    frame: pd.DataFrame, columns: Sequence[str]
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " group"]]:
    """Return the group of each row, which are equal in ``columns``, and the first row of each.

    Groups are numbered as they come.
    """
    own = pd.Series(keys(frame, columns))
    number, _ = pd.factorize(own)
    return number, np.flatnonzero(~own.duplicated().to_numpy())


def repeated(
    frame: pd.DataFrame, columns: Sequence[str], keep: Literal["first", "last"] = "first"
) -> Bool[np.ndarray, " row"]:
    """Tell of each row whether another one has the same ``columns``, but for the one kept."""
    return pd.Series(keys(frame, columns)).duplicated(keep=keep).to_numpy()


def split(numbers: Int[np.ndarray, " row"]) -> list[Int[np.ndarray, " group"]]:
    """Return the rows of each of the numbers from 0 on, in their order."""
    sizes = np.bincount(numbers)
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(sizes)[:-1]) if len(sizes) else []


def several(frame: pd.DataFrame, columns: Sequence[str], value: str) -> Bool[np.ndarray, " row"]:
    """Tell of each row whether its ``columns`` go with more than one ``value`` in the frame."""
    if frame[value].nunique() < 2:
        return np.zeros(len(frame), dtype=bool)
    own = keys(frame, columns)
    each, counts = np.unique(own[~repeated(frame, [*columns, value])], return_counts=True)
    return np.isin(own, each[counts > 1])


def distinct(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return ``columns`` of the rows that are the first with theirs."""
    return frame.loc[~repeated(frame, columns), list(columns)]


def places(
    wanted: pd.DataFrame, among: pd.DataFrame, columns: Sequence[str]
) -> Int[np.ndarray, " row"]:
    """Return where each row of ``wanted`` stands in ``among`` by ``columns``; -1 where it does not.

    Of several equal rows it is the first.
    """
    if not len(among) or not len(wanted):
        return np.full(len(wanted), -1)
    has_values = np.ones(len(wanted), dtype=bool)  # whether ``among`` has each value of a row

    def both() -> Iterator[tuple[np.ndarray, int]]:
        """Yield each column of both, by the numbers of ``among``: keys are made of them at once."""
        for name in columns:
            theirs, values = numbered(among[name])
            ours, named = numbered(wanted[name])
            if named is not values:
                ours = np.append(values.get_indexer(named), -1).astype(np.int32)[ours]
            np.logical_and(has_values, ours >= 0, out=has_values)
            yield np.concatenate([ours, theirs.astype(np.int32)], dtype=np.int32), len(values)

    own, others = np.split(_as_one(both(), len(wanted) + len(among)), [len(wanted)])
    order = np.argsort(others, kind="stable")
    after = np.searchsorted(others, own, sorter=order).clip(max=len(among) - 1)
    at: np.ndarray = order[after]
    at[~has_values | (others[at] != own)] = -1
    return at


def _as_one(
    parts: Iterable[tuple[Int[np.ndarray, " row"], int]], n: int
) -> Int[np.ndarray, " row"]:
    """Return numbers of several columns as one, given how many values each column has."""
    result, size = np.zeros(n, dtype=np.int64), 1
    for codes, values in parts:
        if size * (values + 1) >= ROOM:
            kept, result = np.unique(result, return_inverse=True)
            size = len(kept)
        result *= values + 1
        result += codes
        result += 1
        size *= values + 1
    return result
