"""The gate: does a run fall behind a baseline? Pure functions; the plug-in prints and exits.

A criterion of a method falls when it is lower than in the baseline on the same cases, by more than
is tolerated and by more than chance: paired permutation test by cluster, one-sided, Holm over all
criteria of the method, at 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from kn_bench.cases.case import CRITERIA, Criterion
from kn_bench.results import escaping, tables
from kn_bench.results.baseline import Baseline, read_baseline, settings_of
from kn_bench.results.comparison import (
    HEADERS,
    Comparison,
    FigureKey,
    compare,
    missing,
    remarks,
    scores_of,
    table_rows,
)
from kn_bench.results.files import StoreError
from kn_bench.results.loading import Runs
from kn_bench.results.manifest import PRESET, TEMPLATE

EXIT_FELL = 10
"""Exit status of a run that fell behind its baseline; pytest takes 0 to 6 for itself."""
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found.

    Attributes:
        compared: every criterion that both have.
        fallen: those of them that fell.
        missing: what the baseline has and the run has not.
        notes: further sentences: models, data or settings that changed, cases that are not
            compared.
    """

    compared: tuple[Comparison, ...]
    fallen: tuple[Comparison, ...]
    missing: tuple[FigureKey, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and none of it fell."""
        return bool(self.compared) and not self.fallen

    @property
    def status(self) -> int:
        """Exit status: 0, or 10 when the gate fails."""
        return 0 if self.passed else EXIT_FELL

    @property
    def headline(self) -> str:
        """One sentence."""
        n = len(self.compared)
        if not n:
            return "The gate fails: the run and the baseline have no criterion in common."
        if not self.fallen:
            return f"The gate passes: none of {n} figures fell significantly."
        return f"The gate fails: {len(self.fallen)} of {n} figures fell significantly."

    def text(self) -> str:
        """Return the report for the terminal."""
        return self._written(tables.plain, escaping.terminal)

    def markdown(self) -> str:
        """Return the report for a summary page."""
        return self._written(tables.markdown, escaping.markdown)

    def _written(self, table: tables.Table, escape: Callable[[str], str]) -> str:
        parts = [self.headline]
        if self.fallen:
            headers = tuple({"first": "baseline", "second": "this run"}.get(h, h) for h in HEADERS)
            parts.append(table(headers, table_rows(self.fallen), left=3))
        if self.missing:
            names = "\n".join(f"- {escape(text)}" for text in _named(self.missing))
            parts.append(f"In the baseline, but not measured here:\n{names}")
        parts += map(escape, self.notes)
        return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def gate(
    baseline: Baseline, runs: Runs, tolerances: Mapping[Criterion, float] | None = None
) -> GateReport:
    """Hold ``runs`` against ``baseline``.

    Args:
        baseline: see :func:`kn_bench.results.baseline.read_baseline`.
        runs: the run, read back by :func:`kn_bench.results.loading.load_runs`.
        tolerances: criterion -> fall that is accepted; 0 when not named.
    """
    before, after = baseline.frame(), scores_of(runs)
    compared = compare(before, after, alternative="less")
    accepted = tolerances or {}
    fallen = tuple(c for c in compared if _fell(c, accepted.get(c.group.criterion, 0.0)))
    lacking = missing(before, after)
    others = set(before["case"]) != set(after["case"])
    methods, models = ({getattr(c.group, what) for c in compared} for what in ("method", "model"))
    changed = (*_changed(baseline, runs, others), *_otherwise_set(baseline, runs, methods, models))
    notes = (*changed, *remarks(compared, "less"))
    return GateReport(compared, fallen, lacking, notes)


def _fell(comparison: Comparison, tolerance: float) -> bool:
    # equal in the last bit is no fall beyond the tolerance
    return comparison.p_holm < ALPHA and -comparison.difference.mean > tolerance + 1e-12


def _named(groups: Iterable[FigureKey]) -> Iterator[str]:
    """Yield a line a method, model and task, with its criteria."""

    def name(group: FigureKey) -> tuple[str, str, str]:
        return group.about(f"{group.task}s"), group.model, group.method

    for (about, model, method), same in groupby(groups, key=name):
        yield f"{method} on {model} ({about}): {', '.join(g.criterion for g in same)}"


def _changed(baseline: Baseline, runs: Runs, others: bool) -> Iterable[str]:
    """Yield models and data that are not those of the baseline.

    Args:
        baseline: what is held against.
        runs: the run.
        others: whether it has other cases. The hash of the data is one of all cases together, so
            whether those in common have changed too cannot be told.
    """
    for what in ("models", "data"):
        then = getattr(baseline, what)
        now = {k: v for m in runs.manifests for k, v in getattr(m, what).items()}
        for name in sorted(then.keys() & now.keys()):
            if then[name] == now[name]:
                continue
            if what == "data" and others:
                yield (
                    f"{name}: the cases are not those of the baseline: others were chosen, or "
                    "their data differ."
                )
            else:
                yield f"{name} is not what the baseline was measured on ({what} differ)."


def _otherwise_set(
    baseline: Baseline, runs: Runs, methods: Collection[str], models: Collection[str]
) -> Iterator[str]:
    """Yield what was set otherwise for the baseline: ``--set``, ``--preset``, ``--chat-template``.

    Args:
        baseline: what is held against; one from before this was written down yields nothing.
        runs: the run.
        methods, models: those that are compared; settings of others are not.
    """
    if baseline.settings is None:
        return
    then, now = baseline.settings, settings_of(runs.manifests)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name) and _concerns(name, methods, models):
            yield (
                f"{name}: {then.get(name, 'not set')} in the baseline, "
                f"{now.get(name, 'not set')} now."
            )


def _concerns(name: str, methods: Collection[str], models: Collection[str]) -> bool:
    """Tell whether a setting, a preset's values or a chat template bear on what is compared."""
    if name.startswith(TEMPLATE):
        return name.removeprefix(TEMPLATE) in models
    if name.startswith(PRESET):
        _, method, model = name.split(" ", 2)
        return method in methods and model in models
    return name.rpartition(".")[0] in methods


def tolerances(texts: Iterable[str]) -> dict[Criterion, float]:
    """Return ``["symmetry:0.05,locality:0.01"]`` as criterion -> tolerated fall.

    Raises:
        StoreError: for anything else, in one sentence.
    """
    falls: dict[Criterion, float] = {}
    for item in (item.strip() for text in texts for item in text.split(",")):
        name, _, fall = item.partition(":")
        criterion = next((c for c in CRITERIA if c == name.strip()), None)
        try:
            value = float(fall)
        except ValueError:
            value = float("nan")
        if criterion is None or not 0 <= value <= 1:
            raise StoreError(
                f"--gate {item!r}: expected CRITERION:FALL, such as symmetry:0.05, "
                f"with a fall from 0 to 1 and a criterion of {', '.join(CRITERIA)}"
            )
        falls[criterion] = value
    return falls


def gate_run(path: Path, runs: Runs, texts: Sequence[str] = ()) -> GateReport:
    """Return the gate as the command line asks for it: ``--baseline FILE --gate ...``.

    Raises:
        StoreError: for a baseline that cannot be read, or a tolerance that is none.
    """
    return gate(read_baseline(path), runs, tolerances(texts))
