"""Verdicts drawn by column, for logs of millions of rows.

:func:`kn_bench.measure.criteria.judge_evidence` defines them; this module draws the same ones in a
fiftieth of the time, and ``tests/test_judging.py`` holds it to the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kn_bench.cases.building.rows import CONDITION, UNCONDITIONED
from kn_bench.cases.normalise import same_answer
from kn_bench.measure.arrays import Bools, Floats, Ints, TextColumn, of_pairs, replaced, spread
from kn_bench.measure.criteria import NOT_A_NUMBER, NOT_MEASURED, UNKNOWN, conditioned, is_start_of

SHARED = ("reliability", "generality", "locality", "synonym", "portability")
"""The criteria whose score is the share of all counted probes."""
_exp = np.frompyfunc(math.exp, 1, 1)
"""The exponential of the definition, for numpy's own differs from it in the last bit."""


def judged(measurements: pa.Table, exclusions: pa.Table, verdicts: pa.Table) -> pa.Table:
    """Return ``verdicts`` as today's definitions have them, without explanations.

    Verdicts that are not applicable or errors stay as they are; in all others the explanation
    becomes "". Text columns may be dictionary-encoded, and stay so. Every number equals the
    definition's to the last bit up to Python 3.11. From 3.12 on the built-in ``sum``, by which the
    definition adds, makes up for what rounding loses; sums here are plain ones in order of the
    rows, so ``mean_kl`` and ``readings_tf_token`` may then differ by 1e-12 of their value.

    Args:
        measurements: flat columns; ``test`` is the row in ``verdicts`` of the verdict that closes
            the row's test, and never falls.
        exclusions: the same.
        verdicts: flat columns.
    """
    block = _block(measurements, exclusions, verdicts)
    broken = block.count(_is_nan(block.measurements)) > 0
    counts = _counting(block) & ~broken[block.test]
    holds = _holding(block) & counts
    n_counted = block.count(counts)
    kinds, lowest_share = _by_kind(block, counts, holds)
    share = block.count(holds) / np.maximum(n_counted, 1)
    score = np.where(block.tests_of("symmetry"), lowest_share, share)
    scored = n_counted > 0
    reason, is_error = _reasons(block, broken, scored)
    status = np.select([scored & (score == 1.0), scored, ~is_error], [0, 1, 2], 3)
    columns = {
        "status": TextColumn(("holds", "missed", "excluded", "error"), status).column(),
        "score": pa.array(score, mask=~scored),
        "explanation": pa.repeat("", len(verdicts)),
        "reason": reason,
        "counted": pa.array(n_counted),
        "left_out": pa.array(_left_out(block, broken, n_counted)),
        "known_before": _known_before(block, verdicts["verdict_known_before"]),
        "kinds": kinds,
        **_means(block, counts, n_counted),
        **_symmetry(block, scored),
        **_overturn(block, broken),
    }
    again = ~TextColumn.of(verdicts["verdict_status"]).is_one_of("not_applicable", "error")
    return replaced(verdicts, {f"verdict_{name}": of for name, of in columns.items()}, again)


# --- tables as arrays --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    """The tables of one call, and as arrays what most criteria read of them.

    There are two index spaces: a *row* is a measurement, a *test* is a row of ``verdicts``. The
    rows of a test stand together, and a test may have none::

        test            0      1      2
        n_rows          2      0      3
        row             0  1          2  3  4
        test of a row   0  0          2  2  2

    Attributes:
        measurements, exclusions: as given.
        criterion, pair_case, n_rows, n_excluded: by test; whether its case is a pair.
        test, kind: by row.
        pair: by row, whether it is judged as a pair: the task of its case, but for neighbours of
            the other task.
        condition: by row, whether it is no question of portability, but what one builds on.
        expected_before, expected_after, rejected_before, rejected_after: by row, whether the
            unedited and the edited model give the expected and the rejected answer.
    """

    measurements: pa.Table
    exclusions: pa.Table
    criterion: TextColumn
    pair_case: Bools
    n_rows: Ints
    n_excluded: Ints
    test: Ints
    kind: TextColumn
    pair: Bools
    condition: Bools
    expected_before: Bools
    expected_after: Bools
    rejected_before: Bools
    rejected_after: Bools

    def tests_of(self, *criteria: str) -> Bools:
        """Tell which tests are of one of ``criteria``."""
        return self.criterion.is_one_of(*criteria)

    def rows_of(self, *criteria: str) -> Bools:
        """Tell which rows are of tests of ``criteria``."""
        return self.tests_of(*criteria)[self.test]

    def first_rows(self, tests: Bools) -> Ints:
        """Return the first row of each of ``tests`` that has one."""
        first: Ints = np.cumsum(self.n_rows) - self.n_rows
        return first[tests & (self.n_rows > 0)]

    def count(self, rows: Bools) -> Ints:
        """Return how many of ``rows`` each test has."""
        return np.bincount(self.test[rows], minlength=len(self.n_rows))


def _block(measurements: pa.Table, exclusions: pa.Table, verdicts: pa.Table) -> _Block:
    test, n = measurements["test"].to_numpy(), len(verdicts)
    criterion, kind = TextColumn.of(verdicts["criterion"]), TextColumn.of(measurements["kind"])
    pair_case = TextColumn.of(verdicts["task"]).is_one_of("pair")
    pair = pair_case[test] ^ (kind.is_one_of("other_task") & criterion.is_one_of(*SHARED)[test])
    return _Block(
        measurements,
        exclusions,
        criterion=criterion,
        pair_case=pair_case,
        n_rows=np.bincount(test, minlength=n),
        n_excluded=np.bincount(exclusions["test"].to_numpy(), minlength=n),
        test=test,
        kind=kind,
        pair=pair,
        condition=kind.is_one_of(CONDITION) & criterion.is_one_of("portability")[test],
        expected_before=_gives("expected", measurements, "before", pair),
        expected_after=_gives("expected", measurements, "after", pair),
        rejected_before=_gives("rejected", measurements, "before", pair),
        rejected_after=_gives("rejected", measurements, "after", pair),
    )


def _log_probs(measurements: pa.Table, when: str) -> tuple[Floats, Floats]:
    """Return those of the expected and the rejected answer."""
    expected, rejected = (f"{when}_log_prob_{answer}" for answer in ("expected", "rejected"))
    return measurements[expected].to_numpy(), measurements[rejected].to_numpy()


def _gives(answer: str, measurements: pa.Table, when: str, pair: Bools) -> Bools:
    """Tell where ``answer`` is generated, or preferred within a pair: neither is in a tie."""
    expected, rejected = _log_probs(measurements, when)
    preferred = expected > rejected if answer == "expected" else rejected > expected
    return np.where(pair, preferred, measurements[f"{when}_gives_{answer}"].to_numpy())


def _is_nan(measurements: pa.Table) -> Bools:
    """Tell in which rows a number is NaN."""
    numbers = (*_log_probs(measurements, "before"), *_log_probs(measurements, "after"))
    nan: Bools = np.logical_or.reduce([*map(np.isnan, (measurements["kl"].to_numpy(), *numbers))])
    return nan


# --- which probes count, and which hold --------------------------------------------------------


def _counting(block: _Block) -> Bools:
    """Tell which rows count for the score of their test."""
    counts = ~block.condition & ~_unmet(block)
    if_known = block.rows_of("generality", "synonym") & ~block.kind.is_one_of(UNCONDITIONED)
    counts &= ~if_known | block.rejected_before
    new, old = (block.count(block.kind.is_one_of(f"{side}_inverse")) for side in ("new", "old"))
    counts &= ~(block.tests_of("symmetry") & ((new > 0) != (old > 0)))[block.test]
    overturn = block.tests_of("overturn")
    counts &= ~overturn[block.test]  # but for the edited prompt, where it was answered right
    first = block.first_rows(overturn)
    counts[first] = block.rejected_before[first]
    return counts


def _unmet(block: _Block) -> Bools:
    """Tell which questions build on what the unedited model does not know.

    The id of a condition, be it measured or excluded, begins with that of its question. Test and id
    of a question become one number, by which the questions of unmet conditions are looked up.
    """
    unmet = np.zeros(len(block.test), bool)
    rows = np.flatnonzero(block.rows_of("portability"))
    of_portability = block.tests_of("portability")[block.exclusions["test"].to_numpy()]
    of_probe = pc.is_valid(block.exclusions["exclusion_probe"])
    left_out = block.exclusions.filter(pc.and_(of_probe, pa.array(of_portability)))
    missing = TextColumn.of(left_out["exclusion_probe"])
    asked = TextColumn.of(block.measurements["probe"].take(pa.array(rows)))
    ids = {*asked.texts, *map(conditioned, [*asked.texts, *missing.texts])}
    numbers = {id: number for number, id in enumerate(ids)}

    def question(tests: Ints, conditions: TextColumn) -> Ints:
        return tests * len(ids) + conditions.numbers(lambda id: numbers[conditioned(id)])

    tests = block.test[rows]
    not_known = (block.condition & ~block.expected_before)[rows]
    cannot_be_put = missing.where(lambda id: CONDITION in id)
    of_unknown = question(tests, asked)[not_known]
    of_missing = question(left_out["test"].to_numpy(), missing)[cannot_be_put]
    itself = tests * len(ids) + asked.numbers(numbers.__getitem__)
    unmet[rows] = np.isin(itself, np.append(of_unknown, of_missing))
    return unmet


def _holding(block: _Block) -> Bools:
    """Tell which rows meet their criterion."""
    holds = block.expected_after ^ block.kind.is_one_of("old_inverse")
    holds = np.where(block.rows_of("locality"), _unchanged(block), holds)
    return np.where(block.rows_of("overturn"), ~block.rejected_after, holds)


def _unchanged(block: _Block) -> Bools:
    """Tell in which rows of locality the edited model answers as the unedited one did."""
    either_expected = block.expected_before | block.expected_after
    either_rejected = block.rejected_before | block.rejected_after
    both_expected = block.expected_before & block.expected_after
    both_rejected = block.rejected_before & block.rejected_after
    same = np.where(either_rejected, both_rejected, block.pair)
    same = np.where(either_expected, both_expected, same)
    neither = block.rows_of("locality") & ~either_expected & ~either_rejected & ~block.pair
    said = block.measurements.select(["before_generated", "after_generated"])
    said = said.filter(pa.array(neither))
    same[neither] = of_pairs(lambda a, b: a == b or same_answer(a, b), *said.columns)
    return same


# --- what that makes of a test -----------------------------------------------------------------


def _by_kind(block: _Block, counts: Bools, holds: Bools) -> tuple[pa.Array, Floats]:
    """Return the counted probes of each test by kind, and the lowest share that holds of a kind."""
    rows = np.flatnonzero(counts & ~block.rows_of("overturn"))
    names = sorted({*block.kind.texts, ""})
    keys = block.test[rows] * len(names) + block.kind.numbers(names.index)[rows]
    groups, place = np.unique(keys, return_inverse=True)  # in order of test, and then of kind
    tests, kind = np.divmod(groups, len(names))
    counted = np.bincount(place, minlength=len(groups))
    held = np.bincount(place[holds[rows]], minlength=len(groups))
    lowest = np.ones(len(block.n_rows))
    np.minimum.at(lowest, tests, held / counted)
    columns = [TextColumn(names, kind).column(), pa.array(held), pa.array(counted)]
    items = pa.StructArray.from_arrays(columns, ["kind", "held", "counted"])
    ends = np.cumsum(np.bincount(tests, minlength=len(lowest)))
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), items), lowest


def _reasons(block: _Block, broken: Bools, scored: Bools) -> tuple[pa.Array, Bools]:
    """Return why a test has no score, "" where it has one, and where that is an error."""
    asked = block.count(~block.condition) > 0
    reason = np.zeros(len(scored), np.int64)
    texts = ["", NOT_A_NUMBER, NOT_MEASURED]
    for criterion, why in UNKNOWN.items():
        reason[block.tests_of(criterion) & ~scored] = len(texts)
        texts.append(why)
    reason[~asked] = texts.index(NOT_MEASURED)
    tests, excluded = _most_common(block, ~asked)
    reason[tests] = len(texts) + excluded.codes
    reason[broken] = texts.index(NOT_A_NUMBER)
    return TextColumn([*texts, *excluded.texts], reason).column(), (reason == 1) | (reason == 2)


def _most_common(block: _Block, wanted: Bools) -> tuple[Ints, TextColumn]:
    """Return those of ``wanted`` with exclusions, and the commonest reason: of a tie the first."""
    reasons = TextColumn.of(block.exclusions["exclusion_reason"])
    test, n = block.exclusions["test"].to_numpy(), max(1, len(reasons.texts))
    keys = (test * n + reasons.codes)[wanted[test]]
    groups, first, counts = np.unique(keys, return_index=True, return_counts=True)
    tests, codes = np.divmod(groups[np.lexsort((first, -counts, groups // n))], n)
    tests, leading = np.unique(tests, return_index=True)
    return tests, TextColumn(reasons.texts, codes[leading])


def _left_out(block: _Block, broken: Bools, n_counted: Ints) -> Ints:
    """Count the probes of a test that do not count; conditions only if no question is scored."""
    n_asked = block.count(~block.condition)
    left = np.where(n_counted > 0, n_asked - n_counted, block.n_rows)
    left[(n_asked == 0) & ~broken] = 0
    left += block.n_excluded
    left[block.tests_of("overturn") & (n_counted > 0)] = 0  # it has one probe
    return left


def _known_before(block: _Block, recorded: pa.ChunkedArray) -> pa.ChunkedArray:
    """Read it from the edited prompt where a test asked it, else as the verdict records it."""
    rows = block.first_rows(block.tests_of("reliability", "overturn"))
    gave = _gives("rejected", block.measurements, "before", block.pair_case[block.test])[rows]
    return pc.coalesce(spread(gave, block.test[rows], len(block.n_rows)), recorded)


def _means(block: _Block, counts: Bools, n_counted: Ints) -> dict[str, pa.Array]:
    """Return the means over the counted rows, each summed in order of the rows."""

    def mean(name: str, *criteria: str) -> pa.Array:
        rows = counts & block.rows_of(*criteria)
        values = block.measurements[name].to_numpy()[rows]
        sums = np.bincount(block.test[rows], values, minlength=len(n_counted))
        scored = block.tests_of(*criteria) & (n_counted > 0)
        return pa.array(sums / np.maximum(n_counted, 1), mask=~scored)

    return {
        "mean_kl": mean("kl", "locality"),
        "readings_prob": mean("after_prob", *SHARED),
        "readings_tf_token": mean("after_tf_token", *SHARED),
        "readings_tf_all": mean("after_tf_all", *SHARED),
        "readings_generated": mean("after_gives_expected", *SHARED),
    }


def _symmetry(block: _Block, scored: Bools) -> dict[str, pa.Array]:
    """Return the outcomes of symmetry, and whether the inverse was known before."""
    rows = block.rows_of("symmetry")
    old = rows & block.kind.is_one_of("old_inverse")
    new = rows & ~old

    def none(which: Bools) -> Bools:
        return block.count(which) < 1

    learned, kept = none(new & ~block.expected_after), none(new & ~block.rejected_after)
    revoked = none(old & block.expected_after)
    by_old, by_new = none(old & ~block.expected_before), none(new & ~block.rejected_before)
    hidden = ~(block.tests_of("symmetry") & scored)
    return {
        "inverse_known": pa.array(np.where(none(old), by_new, by_old), mask=hidden),
        "symmetry_new_learned": pa.array(learned, mask=hidden),
        "symmetry_old_revoked": pa.array(revoked, mask=hidden | none(old)),
        "symmetry_displaced_kept": pa.array(kept, mask=hidden),
        "symmetry_other": pa.array(~(learned | kept), mask=hidden),
    }


def _overturn(block: _Block, broken: Bools) -> dict[str, pa.Array]:
    """Return what became of the categorical answer, read from the first row of each test."""
    rows = block.first_rows(block.tests_of("overturn") & ~broken)
    tests, pair = block.test[rows], block.pair[rows]
    first = block.measurements.take(pa.array(rows))

    def overturned(before: Bools, after: Bools) -> pa.Array:
        return spread(~after[before], tests[before], len(broken))

    said, preferred, token = zip(
        *(_readings(first, when) for when in ("before", "after")), strict=True
    )
    reverse = ~block.rejected_before[rows] & block.rejected_after[rows]
    shift = _preference(first, "after") - _preference(first, "before")
    return {
        "overturn_generated": overturned(said[0] & ~pair, said[1]),
        "overturn_within_pair": overturned(*preferred),
        "overturn_argmax": overturned(*token),
        "overturn_reverse": spread(reverse, tests, len(broken)),
        "overturn_shift": spread(shift, tests, len(broken)),
    }


def _readings(first: pa.Table, when: str) -> tuple[Bools, Bools, Bools]:
    """Tell where the rejected answer is generated, preferred within the pair, and the argmax."""
    said = first[f"{when}_gives_rejected"].to_numpy()
    preferred = _gives("rejected", first, when, np.ones(len(first), bool))
    return said, preferred, of_pairs(is_start_of, first[f"{when}_argmax"], first["rejected"])


def _preference(measurements: pa.Table, when: str) -> Floats:
    """Return p(expected) within the pair; 1/2 where both are impossible or equal."""
    expected, rejected = _log_probs(measurements, when)
    with np.errstate(invalid="ignore"):  # of two impossible answers, which are equal
        gap = rejected - expected
    preference = np.zeros(len(gap))
    finite = gap < 700
    preference[finite] = 1.0 / (1.0 + np.asarray(_exp(gap[finite]), np.float64))
    preference[expected == rejected] = 0.5
    return preference
