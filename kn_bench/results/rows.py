"""The rows of a run's log: one JSON object a line, keyed by model, method, case and criterion.

    measurement   one probe, before and after       kn_bench.measure.measurement.Measurement
    exclusion     a probe or case not measured       ExclusionRow
    edit          the record of a case's edit        EditRow
    verdict       a criterion's reading of a case    VerdictRow, always the last of its test
    crash         a test lost with its worker        CrashRow
    curve         a checkpoint of a sequence         CurveRow
    generation    what was written about a subject   GenerationRow

A test sends its rows as one text; its verdict closes them, so that a log cut off anywhere shows
which tests are complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kn_bench.cases.case import Case, Criterion, Exclusion, Task
from kn_bench.measure.criteria import evidence
from kn_bench.measure.measurement import CaseResult, Checkpoint, EditRecord, Measurement, Written
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.measure.ranges import COUNT
from kn_bench.measure.verdict import Verdict
from kn_bench.results.codec import FormatError, build, encode, members, parsed


class Key(NamedTuple):
    """What identifies a verdict, whatever pytest calls its test."""

    model: str
    method: str
    case: str
    criterion: Criterion
    occasion: Occasion = ONCE


@dataclass(frozen=True, slots=True)
class EditRow:
    """The record of one case's edit; written once, with the first of the case's tests.

    Attributes:
        step: in a sequence, the step that made the edit, from 1.
    """

    model: str
    method: str
    case: str
    occasion: Occasion = field(default=ONCE, kw_only=True)
    task: Task
    record: EditRecord
    step: int = field(default=0, metadata=COUNT)


@dataclass(frozen=True, slots=True)
class ExclusionRow:
    """A probe, or a whole case, that could not be put to a model."""

    model: str
    method: str
    criterion: Criterion
    exclusion: Exclusion
    occasion: Occasion = ONCE


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """The outcome of one test, with what is needed to aggregate it without the case files."""

    model: str
    method: str
    case: str
    criterion: Criterion
    occasion: Occasion = field(default=ONCE, kw_only=True)
    task: Task
    relation: str
    source: str
    cluster: str
    verdict: Verdict

    @property
    def key(self) -> Key:
        return Key(self.model, self.method, self.case, self.criterion, self.occasion)


@dataclass(frozen=True, slots=True)
class CrashRow:
    """A test whose worker died; it will be measured again on resume."""

    model: str
    method: str
    case: str
    criterion: Criterion
    explanation: str
    occasion: Occasion = ONCE

    @property
    def key(self) -> Key:
        return Key(self.model, self.method, self.case, self.criterion, self.occasion)


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One checkpoint of a sequence; written once, with the first of the sequence's tests."""

    model: str
    method: str
    protocol: str
    sequence: int = field(metadata=COUNT)
    step: int = field(metadata=COUNT)
    task: Task
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """What the models wrote about a case's subject; written once, with the case's first test."""

    model: str
    method: str
    case: str
    occasion: Occasion = field(default=ONCE, kw_only=True)
    task: Task
    cluster: str
    written: Written


Row = Measurement | ExclusionRow | EditRow | VerdictRow | CrashRow | CurveRow | GenerationRow

KINDS: dict[str, type[Row]] = {
    "measurement": Measurement,
    "exclusion": ExclusionRow,
    "edit": EditRow,
    "verdict": VerdictRow,
    "crash": CrashRow,
    "curve": CurveRow,
    "generation": GenerationRow,
}
"""What the field ``row``, the first of every line, can be."""
NAMES = {cls: name for name, cls in KINDS.items()}
_ROW = frozenset({"row"})
_PREFIXES = {f'{{"row":"{name}'.encode(): name for name in KINDS}


def encode_rows(
    key: Key,
    case: Case,
    result: CaseResult,
    verdict: Verdict,
    *,
    step: int = 0,
    curve: Iterable[Checkpoint] = (),
) -> str:
    """Return all rows of one test, a line each, closed by the verdict.

    The reliability probe that overturn reads is written as a row of its own with criterion
    ``overturn``, so that each test's rows stand alone.

    Args:
        step: in a sequence, the step that edited the case.
        curve: the sequence's checkpoints, with the first of its tests.
    """
    given = evidence(key.criterion, case, result)
    # of a failed test there is nothing to keep, and it is measured again on resume
    measured = () if verdict.status == "error" else given.measurements
    rows: list[Row] = [
        m if m.criterion == key.criterion else replace(m, criterion=key.criterion) for m in measured
    ]
    at = key.occasion
    rows += [ExclusionRow(key.model, key.method, key.criterion, e, at) for e in given.exclusions]
    if result.edit is not None:
        about_edit = (key.model, key.method, key.case, case.task, result.edit, step)
        rows.append(EditRow(*about_edit, occasion=at))
    if result.written is not None:
        about_text = (key.model, key.method, key.case, case.task, case.cluster, result.written)
        rows.append(GenerationRow(*about_text, occasion=at))
    rows += [
        CurveRow(key.model, key.method, at.protocol, at.sequence, c.step, case.task, c)
        for c in curve
    ]
    about = (case.task, case.relation, case.source, case.cluster)
    rows.append(VerdictRow(*key[:4], *about, verdict, occasion=at))
    return encode_lines(rows)


def encode_lines(rows: Iterable[Row]) -> str:
    """Return one line a row, each ended by a newline.

    Raises:
        ValueError: for NaN, naming the field.
    """
    return "".join(encode_row(row) for row in rows)


def encode_row(row: Row) -> str:
    """Return the line of one row."""
    return encode({"row": NAMES[type(row)], **members(row)}) + "\n"


def decode_rows(text: str, source: str = "text") -> list[Row]:
    """Return the rows of ``text``.

    Raises:
        FormatError: for a line that is no row, with its number.
    """
    # not splitlines(): JSON leaves U+2028 and its like unescaped within a line
    lines = [line for line in text.split("\n") if line]
    return [decode_row(line, f"{source}, line {i}") for i, line in enumerate(lines, start=1)]


def decode_row(line: str | bytes, source: str = "text") -> Row:
    """Return the row that ``line`` (as bytes: UTF-8) holds.

    Raises:
        FormatError: when it holds none, in one sentence that begins with ``source``.
    """
    try:
        raw: Any = parsed(line)
        kind = raw.get("row") if isinstance(raw, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise FormatError(f"'row' is {kind!r}, not one of {', '.join(KINDS)}")
        return build(KINDS[kind], raw, _ROW)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source} is no row of a log: {error}") from None


def kind_of(line: bytes) -> str:
    """Return the kind of a line's row without parsing it; "" when it is no complete row."""
    name = _PREFIXES.get(line[: line.find(b'"', 8)], "")
    return name if line.endswith(b"}\n") else ""
