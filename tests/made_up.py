"""Made-up answers, cases and runs for the tests of verdicts and results: no model is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from kn_bench.cases.case import Case, Cloze, Criterion, EditRequest, Exclusion, Probe, Task
from kn_bench.cases.normalise import starts_with_answer
from kn_bench.measure.criteria import judge
from kn_bench.measure.measurement import Answer, CaseResult, EditRecord, Measurement
from kn_bench.results.manifest import Manifest, new_manifest
from kn_bench.results.rows import Key, encode_rows
from kn_bench.results.store import RunStore
from kn_bench.results.texts import write_texts

TRUE, NEW, OTHER = "Ottawa", "Paris", "Rome"
RECORD = EditRecord(0.5, "low rank: layer 2 rank 1", 1.5, {"loss": 0.1, "steps": 20})


def says(
    text: str, expected: str = NEW, rejected: str = TRUE, *, gap: float | None = None
) -> Answer:
    """An answer that generates ``text``; ``gap`` is log p(expected) - log p(rejected)."""
    gives = [starts_with_answer(text, answer) for answer in (expected, rejected)]
    gap = float(gives[0]) - float(gives[1]) if gap is None else gap
    return Answer(
        log_prob_expected=min(0.0, gap) - 0.7,
        log_prob_rejected=min(0.0, -gap) - 0.7,
        prob=gap > 0,
        tf_token=float(gives[0]),
        tf_all=gives[0],
        rank=0 if gives[0] else 3,
        argmax=text.split()[0] if text else "",
        generated=text,
        gives_expected=gives[0],
        gives_rejected=gives[1],
    )


def prefers(gap: float) -> Answer:
    """An answer to a pair: log p(expected) - log p(rejected), in nats."""
    return says("", "walk", "walks", gap=gap)


def measured(
    criterion: Criterion,
    before: Answer,
    after: Answer,
    *,
    number: int = 0,
    kind: str = "",
    task: Task = "fact",
    expected: str = NEW,
    rejected: str = TRUE,
    kl: float = 0.25,
    case: str = "embedded/P36/Canada",
    cluster: str = "Canada",
    model: str = "tiny-gpt2",
    method: str = "rome",
) -> Measurement:
    """A measurement; its probe's id is ``criterion/kind/number``."""
    name = "/".join(part for part in (criterion, kind, str(number)) if part)
    return Measurement(
        model=model,
        method=method,
        case=case,
        criterion=criterion,
        probe=name,
        kind=kind,
        task=task,
        relation=case.split("/")[1],
        source=case.split("/")[0],
        cluster=cluster,
        expected=expected,
        rejected=rejected,
        n_expected=1,
        n_rejected=1,
        before=before,
        after=after,
        kl=kl,
    )


def case_of(
    measurements: Iterable[Measurement],
    *,
    task: Task = "fact",
    id: str = "embedded/P36/Canada",
    cluster: str = "Canada",
    unasked: Iterable[Probe] = (),
    not_applicable: Mapping[Criterion, str] | None = None,
) -> Case:
    """A case with the probes that were measured, and ``unasked`` ones."""
    relation = id.split("/")[1]
    request = EditRequest(id, task, relation, "Canada", "The capital of {} is", TRUE, NEW)
    probes = tuple(
        Probe(m.probe, m.criterion, Cloze(""), m.expected, m.rejected, m.kind) for m in measurements
    )
    return Case(request, (*probes, *unasked), cluster, id.split("/")[0], not_applicable or {})


def result_of(
    measurements: Iterable[Measurement],
    *,
    exclusions: Iterable[Exclusion] = (),
    not_applicable: str = "",
    error: str = "",
    case: str = "embedded/P36/Canada",
) -> CaseResult:
    """What a case gave."""
    edit = None if not_applicable or error else RECORD
    return CaseResult(case, edit, tuple(measurements), tuple(exclusions), not_applicable, error)


def whole_case(
    outcomes: Mapping[Criterion, float],
    *,
    id: str,
    cluster: str,
    task: Task = "fact",
    model: str = "tiny-gpt2",
    method: str = "rome",
    known: bool = True,
) -> tuple[Case, CaseResult]:
    """A case whose criteria have the given scores, in quarters."""
    ask = partial(measured, case=id, cluster=cluster, model=model, method=method, task=task)
    was, new, true = (says(TRUE if known else OTHER), says(NEW), says(TRUE))
    if task == "pair":
        was, new, true = prefers(-1.0 if known else 1.0), prefers(1.0), prefers(-1.0)
    rows: list[Measurement] = []
    for criterion, score in outcomes.items():
        if criterion == "symmetry" and task == "fact":
            rows += _both_sides(ask, bool(score))
        elif criterion != "overturn":
            asked = 1 if criterion == "reliability" else 4
            before = true if criterion in ("generality", "synonym") else was
            good, bad = (before, new) if criterion == "locality" else (new, before)
            kind = "same_relation" if criterion == "locality" else ""
            rows += [
                ask(criterion, before, good if i < score * asked else bad, number=i, kind=kind)
                for i in range(asked)
            ]
    return case_of(rows, task=task, id=id, cluster=cluster), result_of(rows, case=id)


def _both_sides(ask: Callable[..., Measurement], holds: bool) -> list[Measurement]:
    kept, given = (says(text, "Canada", "France") for text in ("France", "Canada"))
    turned = partial(ask, "symmetry", expected="Canada", rejected="France")
    return [
        turned(kept, given if holds else kept, kind="new_inverse"),
        turned(given, kept if holds else given, kind="old_inverse"),
    ]


def manifest(run: str = "one", **changes: object) -> Manifest:
    """A manifest on this machine."""
    about: dict[str, object] = {
        "models": {"tiny-gpt2": "a" * 64},
        "data": {"embedded": "b" * 64},
        "options": {"limit": "20", "dtype": "float32"},
        "seed": 0,
        "code": "c" * 64,
    }
    return new_manifest(run, **{**about, **changes})  # type: ignore[arg-type]


def rows_of(
    case: Case,
    result: CaseResult,
    criteria: Iterable[Criterion],
    *,
    method: str = "rome",
    model: str = "tiny-gpt2",
) -> list[str]:
    """The rows of each criterion's test."""
    return [
        encode_rows(
            Key(model, method, case.id, criterion), case, result, judge(criterion, case, result)
        )
        for criterion in criteria
    ]


def write_run(
    reports: Path,
    scores: Mapping[str, Mapping[Criterion, list[float]]],
    *,
    run: str = "one",
    task: Task = "fact",
    model: str = "tiny-gpt2",
    a_cluster: int = 1,
    **made_of: object,
) -> Path:
    """A finished run: method -> criterion -> the scores of cases 0, 1, ...

    Args:
        a_cluster: cases in each cluster.
        made_of: fields of the manifest.
    """
    with RunStore.create(reports, manifest(run, **made_of)) as store:
        cases: dict[str, Case] = {}
        for method, by_criterion in scores.items():
            n = max(len(values) for values in by_criterion.values())
            for i in range(n):
                outcomes = {c: v[i] for c, v in by_criterion.items() if i < len(v)}
                case, result = whole_case(
                    outcomes,
                    id=f"embedded/P36/c{i}",
                    cluster=f"k{i // a_cluster}",
                    task=task,
                    model=model,
                    method=method,
                )
                cases[case.id] = case
                for text in rows_of(case, result, outcomes, method=method, model=model):
                    store.append(text)
        write_texts(store.folder, cases.values())
        store.finish({"measuring": 1.0})
    return store.folder
