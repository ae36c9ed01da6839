"""Measure a method on cases outside of pytest: the same engine, criteria and board."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from kn_bench.api.arguments import listed_cases
from kn_bench.api.methods import BoundMethod, MethodName, method
from kn_bench.cases import sources
from kn_bench.cases.case import CRITERIA, OPTIONAL_CRITERIA, Case, Criterion
from kn_bench.measure.criteria import judge
from kn_bench.measure.engine import Engine
from kn_bench.measure.measurement import CaseResult
from kn_bench.measure.writing import Writer, check_references, read_references
from kn_bench.model.given import PATH, check_type, listed, whole
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loaded import check_model
from kn_bench.results.escaping import terminal
from kn_bench.results.files import check_writable, together, write_text
from kn_bench.results.frames import uncoded
from kn_bench.results.leaderboard import leaderboard, terminal_table
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.log import CLOSING, LOG
from kn_bench.results.manifest import FILE as MANIFEST
from kn_bench.results.manifest import new_manifest, write_manifest
from kn_bench.results.rows import Key, encode_rows, kind_of

ABILITY = "lm_eval.json"
"""The figures of lm-evaluation-harness, in the folder of a run."""


def load_cases(
    source: str | Path,
    *,
    relation: str | Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Case]:
    """Load edit requests with their probes.

    Args:
        source: what ``--cases`` takes: ``embedded``, ``pararel``, ``blimp``, ``NAME=FOLDER``, or a
            path to JSONL of your own.
        relation: relations or BLiMP paradigms to keep, such as ``P36``; all by default.
        limit: cases of each relation, drawn by ``seed``; all by default.
        seed: of the sampling.

    Raises:
        TypeError: for a source, relation, limit or seed of another type.
        ValueError: for an unknown source or relation, no relation, a limit below 1, or data that
            cannot be read.

    Examples:
        >>> import kn_bench as kn
        >>> cases = kn.load_cases("embedded", relation="P36", limit=2)
        >>> [case.relation for case in cases]
        ['P36', 'P36']
    """
    check_type("source", source, PATH, "what --cases takes, or a path")
    relations = None if relation is None else _relations(relation)
    if limit is not None:
        limit = whole("limit", limit, of=" of cases, or None for all")
        if limit < 1:
            raise ValueError(f"limit {limit}: expected a positive number of cases, or None for all")
    seed = whole("seed", seed)
    return list(sources.load(str(source), limit=limit, relations=relations, seed=seed).cases)


def _relations(relation: str | Iterable[str]) -> list[str]:
    wanted = "a relation's id such as P36, several, or None for all"
    relations = listed("relation", [relation] if isinstance(relation, str) else relation, wanted)
    for name in relations:
        check_type("relation", name, str, wanted)
    if not relations:
        raise ValueError("relation: expected at least one, or None for all; got an empty list")
    return relations


def evaluate(
    model: LanguageModel,
    how: MethodName | BoundMethod,
    cases: Iterable[Case],
    *,
    generations: int = 0,
    references: str | Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """Edit every case by a method, and judge the edited model by the six criteria.

    There are no controls: no figure is compared with that of a random edit of equal size.

    Args:
        model: the model; it is as it was afterwards.
        how: a method's name, a function decorated by ``@edit_method``, or what
            :func:`kn_bench.method` returned.
        cases: what to edit and ask.
        generations: texts a case that the models write freely, for fluency and reference score.
        references: a file of texts about new targets, such as ROME's ``attribute_snippets.json``.
        seed: of those texts.

    Raises:
        TypeError: for a model that is not loaded, for anything but cases, or for a number of texts
            or a seed that is not whole.
        ValueError: for no cases, two cases of one id, an unknown method, a method that is bound to
            another model, a model that holds an edit or that another thread uses, fewer than no
            texts, texts of a masked model, or references without texts to compare with them.
        NotApplicable: for a method that is not defined for this kind of model.

    Examples:
        >>> import kn_bench as kn
        >>> cases = kn.load_cases("embedded", relation="P36", limit=2)
        >>> evaluation = kn.evaluate(kn.load_model("tiny-gpt2"), "none", cases)
        >>> evaluation.score("reliability"), evaluation.score("locality")
        (0.0, 1.0)
    """
    check_model(model)
    if model.held_edits or model.prompt_prefix:
        raise ValueError(
            f"evaluate: expected {model.name} without an edit, and one is in force "
            "(kn_bench.edited); evaluate outside of that block"
        )
    writer = _writer(generations, references, whole("seed", seed))
    cases = listed_cases(cases)
    if not cases:
        raise ValueError("evaluate: expected at least one case, and there is none; load some")
    shared = [id for id, times in Counter(case.id for case in cases).items() if times > 1]
    if shared:
        raise ValueError(
            f"evaluate: expected cases with ids of their own, and two are called {shared[0]}; give "
            "each case once, and rename one of two that differ"
        )
    if writer:
        writer.covered(cases, causal=model.is_causal)
    bound = how if isinstance(how, BoundMethod) else method(how, model)
    if bound.model is not model:
        raise ValueError(
            f"evaluate: expected {bound.name} bound to the model that is evaluated, and it is "
            f"bound to another one ({bound.model.name}); bind it by kn_bench.method"
        )
    with model.held.block():
        unit = Engine(model).measure(bound.name, bound.inner, cases, writer=writer, whole=True)
    results = tuple(unit.results[case.id] for case in cases)
    rows = "".join(_rows(model.name, bound.name, case, unit.results[case.id]) for case in cases)
    made_of = {
        "models": {model.name: model.content_hash},
        "data": {"cases": sources.content_hash(cases)},
        "options": {"method": bound.name, **(writer.described if writer else {})},
        "seed": seed,
    }
    return Evaluation(model.name, bound.name, results, rows, made_of)


def _writer(generations: int, references: str | Path | None, seed: int) -> Writer | None:
    """Return what lets the models write, if they are to; before anything is measured."""
    generations = whole("generations", generations, least=0, of=" of texts a case")
    if references is not None:
        check_type("references", references, PATH, "the path of a file, or None")
    path = None if references is None else Path(references)
    check_references(path, generations)
    if not generations:
        return None
    return Writer(generations, None if path is None else read_references(path), seed)


def _rows(model: str, method: str, case: Case, result: CaseResult) -> str:
    """Return the rows of all criteria of a case; its edit's record goes with the first."""
    rows = []
    for criterion in (*CRITERIA, *_optional(case)):
        key = Key(model, method, case.id, criterion)
        rows.append(encode_rows(key, case, result, judge(criterion, case, result)))
        result = replace(result, edit=None, written=None)
    return "".join(rows)


def _optional(case: Case) -> list[Criterion]:
    asked = {probe.criterion for probe in case.probes}
    return [criterion for criterion in OPTIONAL_CRITERIA if criterion in asked]


@dataclass(frozen=True)
class Evaluation:
    """What a method did to the cases it was measured on.

    Attributes:
        model, method: names.
        results: of each case: the edit's record, every probe before and after, what was left out.

    Examples:
        >>> import kn_bench as kn
        >>> cases = kn.load_cases("embedded", relation="P36", limit=2)
        >>> evaluation = kn.evaluate(kn.load_model("tiny-gpt2"), "none", cases)
        >>> print(evaluation.board())  # doctest: +ELLIPSIS
        Facts...
    """

    model: str
    method: str
    results: tuple[CaseResult, ...] = field(repr=False)
    _rows: str = field(repr=False)
    _made_of: Mapping[str, Any] = field(repr=False)

    @property
    def runs(self) -> Runs:
        """Return the rows as the results package aggregates them."""
        with TemporaryDirectory() as folder:
            self.save(folder)
            return load_runs([Path(folder)])

    @property
    def verdicts(self) -> pd.DataFrame:
        """Return one row a case and criterion: status, score, explanation, readings."""
        return uncoded(self.runs.verdicts)

    def score(self, criterion: str) -> float:
        """Return the mean score of a criterion over the cases that count for it; NaN if none."""
        known = (*CRITERIA, *OPTIONAL_CRITERIA)
        if criterion not in known:
            raise ValueError(f"{criterion!r}: expected one of {', '.join(known)}")
        runs = self.runs
        verdicts = runs.optional if criterion in OPTIONAL_CRITERIA else runs.verdicts
        return float(verdicts.loc[verdicts["criterion"] == criterion, "verdict_score"].mean())

    @property
    def errors(self) -> dict[str, int]:
        """Return each error of the method, and how many cases have it."""
        return dict(Counter(result.error for result in self.results if result.error))

    def board(self, *, markdown: bool = False) -> str:
        """Return the board as text: compact, below it the errors; or a document in Markdown."""
        if markdown:
            return leaderboard(self.runs)
        errors = (
            f"{n} of {len(self.results)} cases not measured: {terminal(text)}"
            for text, n in self.errors.items()
        )
        return "\n".join([terminal_table(self.runs), *errors])

    def save(self, folder: str | Path) -> None:
        """Write a run's folder, which ``kn-bench leaderboard`` and ``kn-bench compare`` read.

        Its files are all written, or none of them is.

        Raises:
            TypeError: for a folder that is no path.
            StoreError: when the folder cannot be written.
            ValueError: when it holds anything already, or for an empty path.
        """
        check_type("folder", folder, PATH, "the path of a folder")
        if folder == "":
            raise ValueError("folder '': expected the path of a folder; name one")
        folder = Path(folder)
        check_no_run(folder)
        manifest = new_manifest(folder.name, **self._made_of)
        tests = sum(kind_of(line) in CLOSING for line in self._rows.encode().splitlines(True))
        with together():
            write_manifest(folder, manifest.ended({}, tests))
            write_text(folder / LOG, self._rows)  # goes last, for it is what takes the folder


def check_no_run(folder: Path) -> None:
    """Make ``folder`` where it is missing, and check that a run can be written there.

    Raises:
        StoreError: when it cannot be written.
        ValueError: when it holds anything but what an evaluation that was ended while it was
            written may have left.
    """
    check_writable(folder)
    if (folder / LOG).exists():
        raise ValueError(f"{folder}: expected a folder without a run; name another one")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names - {MANIFEST, ABILITY}:
        raise ValueError(f"{folder}: expected a new or an empty folder; name another one")
