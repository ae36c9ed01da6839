"""What the unedited model said, kept on disk by content, so that no run and no method asks again.

    cache/answers/<content hash>-<behaviour hash>-<device>.sqlite
    ├── readings   prompt ids, answer position, budget -> log-probabilities, greedy continuation
    └── scores     ids, positions, targets             -> log p and argmax of each target

The key is the content itself (SHA-256 of the ids), the file is the model's: nothing is ever stale.
Each entry has a checksum over the model, its key and its values; an entry that does not agree with
it is dropped and asked anew, with a warning. SQLite lets several workers share the file. A cache
that cannot be read or written is ignored, with a warning.
"""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kn_bench.model.scoring import Reading

LIMIT = 4 << 30
"""Bytes of one model's file; beyond it the cache is read and no longer written."""

FORMAT = 4
"""Of the file (SQLite's ``user_version``); older ones do not say how wide their numbers are."""

_COLUMNS = {"readings": "generated", "scores": "argmax"}
"""Table -> its last column of values."""


class CacheEntry(NamedTuple):
    """One row of a table: a key and its two columns of values."""

    key: bytes
    log_probs: bytes
    last: bytes


class TargetScores(NamedTuple):
    """Teacher-forced readings of one row: log p of each target, and whether it is the argmax."""

    log_probs: tuple[float, ...]
    argmax: tuple[bool, ...]


class AnswerCache:
    """The unedited answers of one model in one file.

    Args:
        folder: folder of the cache files; created if it is missing.
        model: what tells the model apart: its hashes and the type of its device.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self._path = folder / f"{model}.sqlite"
        self._model = model.encode()
        self._usable = True
        self._warned = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as connection:
                _make_tables(connection)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    @property
    def usable(self) -> bool:
        """Whether the file could be opened; if not, nothing is read or stored."""
        return self._usable

    def readings(self, keys: Sequence[bytes]) -> dict[bytes, Reading]:
        """Return the readings of those ``keys`` that are stored."""
        return {
            key: Reading(
                torch.from_numpy(_unpacked(log_probs)),
                tuple(np.frombuffer(generated, np.int32).tolist()),
            )
            for key, log_probs, generated in self._get("readings", keys)
        }

    def scores(self, keys: Sequence[bytes]) -> dict[bytes, TargetScores]:
        """Return the scores of those ``keys`` that are stored."""
        return {
            key: TargetScores(
                tuple(np.frombuffer(log_probs, np.float64).tolist()),
                tuple(np.frombuffer(argmax, np.bool_).tolist()),
            )
            for key, log_probs, argmax in self._get("scores", keys)
        }

    def keep_readings(self, readings: Iterable[tuple[bytes, Reading]]) -> None:
        """Store readings by their keys."""
        rows = (
            CacheEntry(
                key, _packed(read.log_probs.numpy()), np.array(read.generated, np.int32).tobytes()
            )
            for key, read in readings
        )
        self._put("readings", rows)

    def keep_scores(self, scores: Iterable[tuple[bytes, TargetScores]]) -> None:
        """Store scores by their keys."""
        rows = (
            CacheEntry(key, np.array(log_probs).tobytes(), np.array(argmax, np.bool_).tobytes())
            for key, (log_probs, argmax) in scores
        )
        self._put("scores", rows)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30)
        # losing the last answers in a power cut costs a second asking, waiting for the disk more
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    def _get(self, table: str, keys: Sequence[bytes]) -> list[CacheEntry]:
        """Return the entries of ``keys`` that have the stored checksum; drop the others."""
        if not self._usable or not keys:
            return []
        rows: list[tuple[bytes, bytes, bytes, bytes]] = []
        query = f"SELECT key, log_probs, {_COLUMNS[table]}, checksum FROM {table} WHERE key IN "
        try:
            with closing(self._open()) as connection:
                for at in range(0, len(keys), 500):
                    some = keys[at : at + 500]
                    marks = ",".join("?" * len(some))
                    rows += connection.execute(f"{query} ({marks})", some).fetchall()
                entries, altered = [], []
                for *entry, checksum in rows:
                    if checksum and checksum == self._checksum(*entry):
                        entries.append(CacheEntry(*entry))
                    else:
                        altered.append(entry[0])
                self._drop(connection, table, altered)
        except sqlite3.Error as error:
            self._give_up(error)
            return []
        return entries

    def _drop(self, connection: sqlite3.Connection, table: str, keys: Sequence[bytes]) -> None:
        """Remove altered entries, so that new answers can be stored; warn once."""
        if not keys:
            return
        with connection:
            connection.executemany(f"DELETE FROM {table} WHERE key = ?", ((key,) for key in keys))
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the cache {self._path} holds answers that were altered since they were stored "
                f"({len(keys)} of {table} so far): they are dropped and asked anew",
                stacklevel=2,
            )

    def _put(self, table: str, entries: Iterable[CacheEntry]) -> None:
        try:
            if self._usable and self._path.stat().st_size < LIMIT:
                rows = ((*entry, self._checksum(*entry)) for entry in entries)
                with closing(self._open()) as connection, connection:
                    connection.executemany(
                        f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?, ?)", rows
                    )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _checksum(self, *entry: object) -> bytes:
        """Return the SHA-256 of an entry of this model; ``b""`` if a part is not bytes."""
        digest = hashlib.sha256(self._model)
        for part in entry:
            if not isinstance(part, bytes):
                return b""
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()

    def _give_up(self, error: Exception) -> None:
        """Continue without a cache, with a warning."""
        self._usable = False
        warnings.warn(
            f"the cache {self._path} cannot be used ({error}): the unedited model is asked anew; "
            "remove the file, or name another folder by KN_BENCH_CACHE",
            stacklevel=2,
        )


def _make_tables(connection: sqlite3.Connection) -> None:
    """Create missing tables; replace those of another format."""
    version = "PRAGMA user_version"
    if connection.execute(version).fetchone() == (FORMAT,):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # another worker may be at it
        if connection.execute(version).fetchone() == (FORMAT,):
            return
        for table, last in _COLUMNS.items():
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(
                f"CREATE TABLE {table} "
                f"(key BLOB PRIMARY KEY, log_probs BLOB, {last} BLOB, checksum BLOB)"
            )
        connection.execute(f"{version} = {FORMAT}")


def _packed(values: np.ndarray) -> bytes:
    """Return the name of an array's dtype, such as ``<f4``, and its bytes."""
    return values.dtype.str.encode() + values.tobytes()


def _unpacked(packed: bytes) -> np.ndarray:
    """Return the array that :func:`_packed` was given, whatever the width of its numbers."""
    return np.frombuffer(packed[3:], packed[:3].decode()).copy()


def content_key(*parts: Sequence[int] | int) -> bytes:
    """Return the SHA-256 of integers and sequences, unambiguous in where each ends."""
    digest = hashlib.sha256()
    for part in parts:
        values = np.array([part] if isinstance(part, int) else part, np.int64)
        digest.update(len(values).to_bytes(8, "little") + values.tobytes())
    return digest.digest()
