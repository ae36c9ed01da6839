"""What the page shows, in columns: figures, verdicts, cases and answers, each text once.

A run of 100,000 measurements is 20 MB of JSON row by row. Here the unedited model's answers stand
once for all methods, texts are numbers into one list, and truth values share one number; gzip then
leaves about a tenth of it.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd

from kn_bench.cases.case import ALL_CRITERIA, CRITERIA
from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.measurement import CONTROL
from kn_bench.measure.statistics import Interval, widened_tail
from kn_bench.results.accounting import Account, accounts
from kn_bench.results.beside import KEY
from kn_bench.results.board import (
    GROUP,
    OVERTURN,
    STRATA,
    SYMMETRY,
    Line,
    board,
    has_control,
    in_sequences,
)
from kn_bench.results.codec import plain
from kn_bench.results.columns import read_parts
from kn_bench.results.curves import curve_rows
from kn_bench.results.frames import READINGS, uncoded
from kn_bench.results.further import cells, further_tables, title_of
from kn_bench.results.keys import distinct
from kn_bench.results.loading import Runs, control_scores, explained
from kn_bench.results.log import LOG, lines_of
from kn_bench.results.shown import Cases, TextPool, runs_behind, unlike

EMBEDDED = 100_000
"""Measurements that a page carries; of larger runs it has a sample of cases."""
TAILS = 400
"""Numbers of clusters whose intervals the page widens; the widening of more cannot be seen."""
FLAGS = ("prob", "tf_all", "gives_expected", "gives_rejected")
STATUSES = ("holds", "missed", "not_applicable", "excluded", "error")
PLAIN = frozenset((int, str, bool, NoneType))
"""Types of values that JSON has as they are."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which cases a page shows one by one, of how many."""

    cases: int
    of: int
    measurements: int


def payload(runs: Runs, *, embedded: int | None = EMBEDDED) -> dict[str, Any]:
    """Return all that the page shows.

    Args:
        runs: what is shown.
        embedded: measurements that may be part of it, chosen case by case; None leaves all answers
            out: :mod:`kn_bench.results.serving` hands them on when they are asked for.
    """
    texts = TextPool()
    figures = board(runs)
    index = {tuple(line.name): i for i, line in enumerate(figures)}
    whole = distinct(runs.verdicts[in_sequences(runs.verdicts)], GROUP)
    several = set(whole.itertuples(index=False, name=None))
    chosen, sample = (None, None) if embedded is None else _sampled(runs, embedded)
    verdicts = every_verdict(runs, chosen)
    cases = Cases(runs, verdicts, texts)
    behind, places = runs_behind(runs), list(runs.folders)
    data: dict[str, Any] = {
        "criteria": CRITERIA,
        "asked": ALL_CRITERIA,
        "statuses": STATUSES,
        "strata": [f"{c}, {what.replace('_', ' ')}: {known}" for c, what, known in STRATA],
        "parts": {"symmetry": SYMMETRY, "overturn": OVERTURN, "readings": READINGS},
        "lines": [
            {
                **_line(line),
                "in_sequences": name in several,
                "run": places.index(behind[name]),
            }
            for name, line in zip(index, figures, strict=True)
        ],
        "unlike": unlike(runs, behind),
        "controlled": has_control(figures),
        "tails": [round(widened_tail(n), 6) for n in range(1, TAILS + 1)],
        "cases": cases.columns,
        "verdicts": _verdicts(verdicts, runs.controls, index, cases, texts),
        "edits": _edits(runs, verdicts, index, cases, texts),
        "accounts": [_account(account) for account in accounts(runs)],
        "runs": [plain(manifest) for manifest in runs.manifests],
        "further": _further(runs, index),
        "notes": [*runs.cut, *runs.apart],
        "repeated": runs.doubled,
        "curves": curve_rows(runs),
        "sample": asdict(sample) if sample else None,
        "served": embedded is None,
    }
    if embedded is not None:
        data["answers"] = answers(measurements(runs, chosen), verdicts, index, cases, texts)
    data["texts"] = texts.all
    return _finite(data)  # type: ignore[no-any-return]


def every_verdict(runs: Runs, chosen: frozenset[str] | None = None) -> pd.DataFrame:
    """Return the verdicts on ``chosen`` cases (None: on all) of all criteria, in plain columns.

    Those that are in no score are among them.
    """
    parts = [runs.verdicts, runs.optional] if len(runs.optional) else [runs.verdicts]
    if chosen is not None:
        parts = [part[part["case"].isin(chosen)] for part in parts]
    return explained(runs, pd.concat(parts))


def packed(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` as gzipped JSON; the same bytes for the same data."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def as_text(data: Mapping[str, Any]) -> str:
    """Return ``data`` as it stands inside a page: letters, digits, + / and = only."""
    return base64.b64encode(packed(data)).decode("ascii")


# --- choosing ----------------------------------------------------------------------------------


def _sampled(runs: Runs, most: int) -> tuple[frozenset[str] | None, Sample | None]:
    """Return cases with about ``most`` measurements, drawn by their ids; None for all."""
    logs = [folder / LOG for folder in runs.folders.values()]
    total = sum(1 for log in logs for _ in lines_of(log, "measurement"))
    if total <= most:
        return None, None
    cases = runs.verdicts["case"].unique().tolist()
    ids = sorted(cases, key=lambda case: stable_hash("page", case))
    kept = ids[: max(1, math.floor(len(ids) * most / total))]
    return frozenset(kept), Sample(len(kept), len(ids), total)


def measurements(runs: Runs, chosen: frozenset[str] | None = None) -> Iterator[pd.DataFrame]:
    """Yield the measurements of ``chosen`` cases (None: of all), a part of a log at a time."""
    for label, folder in runs.folders.items():
        for part in read_parts(folder / LOG, "measurement", cases=chosen):
            frame = part.assign(run=label)
            frame = frame[frame["criterion"] != "overturn"]  # its rows are reliability's once more
            yield frame if chosen is None else frame[frame["case"].isin(chosen)]


# --- the parts ---------------------------------------------------------------------------------


def _interval(value: Interval) -> list[float]:
    # so many digits that rounding to percent is not rounding a second time
    return [round(float(x), 9) for x in value[:3]] + [value.n]


def _line(line: Line) -> dict[str, Any]:
    return {
        **line.name._asdict(),
        "rank": line.rank,
        "beating": line.beating,
        "s": _interval(line.s),
        "k": _interval(line.k),
        "figures": [
            [*_interval(f.interval), f.out, f.not_applicable, *_interval(f.control), f.p]
            for f in (line.criteria[criterion] for criterion in CRITERIA)
        ],
        "shift": _interval(line.shift),
        "seconds": line.seconds,
        "kl": _interval(line.kl),
        "strata": list(map(_interval, line.strata)),
        "symmetry": list(map(_interval, line.symmetry)),
        "overturn": list(map(_interval, line.overturn)),
        "neighbours": {kind: _interval(value) for kind, value in line.neighbours.items()},
        "readings": {c: list(map(_interval, values)) for c, values in line.readings.items()},
    }


def _line_of(frame: pd.DataFrame, index: Mapping[tuple[Any, ...], int]) -> list[int]:
    """Return the number of each row's line; -1 where it has none."""
    keys = zip(*(frame[name].tolist() for name in GROUP), strict=True)
    return [index.get(key, -1) for key in keys]


def _verdicts(
    verdicts: pd.DataFrame,
    controls: pd.DataFrame,
    index: Mapping[tuple[Any, ...], int],
    cases: Cases,
    texts: TextPool,
) -> dict[str, list[Any]]:
    return {
        "line": _line_of(verdicts, index),
        "case": cases.of(verdicts),
        "criterion": verdicts["criterion"].map(ALL_CRITERIA.index).tolist(),
        "sequence": verdicts["sequence"].tolist(),
        "status": verdicts["verdict_status"].map(STATUSES.index).tolist(),
        # thirds must still add up to a whole, for the tests count sums that are equal
        "score": _rounded(verdicts["verdict_score"], 12),
        "control": _rounded(control_scores(verdicts, controls), 12),
        "known": _truth(verdicts["verdict_known_before"]),
        "inverse": _truth(verdicts["verdict_inverse_known"]),
        "explanation": texts.column(verdicts["verdict_explanation"]),
    }


def _edits(
    runs: Runs,
    verdicts: pd.DataFrame,
    index: Mapping[tuple[Any, ...], int],
    cases: Cases,
    texts: TextPool,
) -> dict[str, list[Any]]:
    named = verdicts.drop_duplicates(["run", "model", "method", "case", "protocol", "sequence"])
    by = ["run", "model", "method", "case", "protocol", "sequence"]
    columns = ["record_seconds", "record_norm", "record_description"]
    own = runs.edits.loc[runs.edits["case"].isin(set(named["case"])), [*by, *columns]]
    edits = named[[*by, "task", "asked", "variant"]].merge(uncoded(own), on=by)
    return {
        "line": _line_of(edits, index),
        "case": cases.of(edits),
        "sequence": edits["sequence"].tolist(),
        "seconds": _rounded(edits["record_seconds"]),
        "norm": _rounded(edits["record_norm"]),
        "description": texts.column(edits["record_description"]),
    }


def answers(
    frames: Iterable[pd.DataFrame],
    verdicts: pd.DataFrame,
    index: Mapping[tuple[Any, ...], int],
    cases: Cases,
    texts: TextPool,
) -> dict[str, Any]:
    """Return the probes with the unedited model's answers, and the edited models' answers.

    Args:
        frames: measurements, see :func:`measurements`.
        verdicts: of the board: which run stands behind which line.
        index: name of a line -> its number.
        cases: that are shown, with what was asked.
        texts: takes in what is said.
    """
    by = ["run", *KEY]
    shown = verdicts[[*by, "task", "variant"]].drop_duplicates(by)
    probes: dict[tuple[Any, ...], int] = {}
    asked: dict[str, list[Any]] = {name: [] for name in PROBE}
    after: dict[str, list[Any]] = {name: [] for name in AFTER}
    for frame in frames:
        is_control = frame["method"].str.startswith(CONTROL)
        frame = frame.assign(
            control=is_control.astype(int),
            method=frame["method"].str.removeprefix(CONTROL),
        )
        # a neighbour may be of the other task: the line is that of the verdict
        frame = frame.drop(columns="task").merge(shown, on=by)
        key = ["run", "model", "case", "probe"]
        before = frame.drop_duplicates(key)
        keys = before[key].itertuples(index=False, name=None)
        new = before[np.array([k not in probes for k in keys], dtype=bool)]
        for k in new[key].itertuples(index=False, name=None):
            probes[k] = len(probes)
        _extend(asked, _probe_columns(new, cases, texts))
        after_columns = _answer_columns(frame, "after", texts) | {
            "line": _line_of(frame, index),
            "probe": [probes[k] for k in frame[key].itertuples(index=False, name=None)],
            "control": frame["control"].tolist(),
            "sequence": frame["sequence"].tolist(),
            "kl": _rounded(frame["kl"]),
        }
        _extend(after, after_columns)
    return {"probes": asked, "after": after}


ANSWER = ("expected_log_prob", "rejected_log_prob", "rank", "flags", "argmax", "generated")
PROBE = (
    "model", "case", "criterion", "id", "kind", "left", "right", "expected", "rejected", *ANSWER,
)  # fmt: skip
AFTER = ("line", "probe", "control", "sequence", "kl", *ANSWER)


def _extend(columns: Mapping[str, list[Any]], more: Mapping[str, Sequence[Any]]) -> None:
    for name, column in columns.items():
        column.extend(more[name])


def _probe_columns(frame: pd.DataFrame, cases: Cases, texts: TextPool) -> dict[str, list[Any]]:
    nothing = ("", "")
    keys = frame[["run", "case", "probe"]].itertuples(index=False, name=None)
    around = [cases.prompts.get(key, nothing) for key in keys]
    return _answer_columns(frame, "before", texts) | {
        "model": texts.column(frame["model"]),
        "case": cases.of(frame),
        "criterion": [ALL_CRITERIA.index(criterion) for criterion in frame["criterion"]],
        "id": texts.column(frame["probe"]),
        "kind": texts.column(frame["kind"]),
        "left": texts.column(left for left, _ in around),
        "right": texts.column(right for _, right in around),
        "expected": texts.column(frame["expected"]),
        "rejected": texts.column(frame["rejected"]),
    }


def _answer_columns(frame: pd.DataFrame, when: str, texts: TextPool) -> dict[str, list[Any]]:
    flags = np.zeros(len(frame), dtype=int)
    for bit, name in enumerate(FLAGS):
        flags += frame[f"{when}_{name}"].fillna(0).to_numpy().astype(int) << bit
    return {
        "expected_log_prob": _rounded(frame[f"{when}_log_prob_expected"], 2),
        "rejected_log_prob": _rounded(frame[f"{when}_log_prob_rejected"], 2),
        "rank": frame[f"{when}_rank"].tolist(),
        "flags": flags.tolist(),
        "argmax": texts.column(frame[f"{when}_argmax"]),
        "generated": texts.column(frame[f"{when}_generated"]),
    }


def _further(runs: Runs, index: Mapping[tuple[Any, ...], int]) -> list[dict[str, Any]]:
    """Return the tables of what is in no score: every cell a text, and the line of each row."""
    return [
        {
            "title": table.title,
            "note": table.note,
            "headers": ["method", *table.parts, "n"],
            "rows": [[title_of(row.name), *cells(row, table.digits)] for row in table.rows],
            "lines": [index.get(tuple(row.name), -1) for row in table.rows],
        }
        for table in further_tables(runs)
    ]


def _account(account: Account) -> dict[str, Any]:
    return {"title": account.title, "headers": account.headers, "rows": account.rows}


# --- numbers -----------------------------------------------------------------------------------


def _rounded(column: pd.Series[Any], digits: int = 4) -> list[float | None]:
    values = np.round(column.to_numpy(float), digits)
    return [None if math.isnan(value) else value for value in values.tolist()]


def _truth(column: pd.Series[Any]) -> list[int]:
    """Return 1, 0, and -1 where nothing was asked."""
    values: list[int] = column.fillna(-1).astype(int).tolist()
    return values


def _finite(value: Any) -> Any:
    """Return ``value`` in JSON's own types: no NaN, infinity as a number beyond every result."""
    if isinstance(value, float):
        return None if math.isnan(value) else max(-1e30, min(1e30, value))
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if PLAIN.issuperset(map(type, value)):  # most columns, and they are long
            return value
        return [_finite(item) for item in value]
    return value
