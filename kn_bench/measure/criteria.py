"""The six criteria: when a probe counts, when it holds, and what that makes of a case.

    criterion     counts                          holds
    reliability   always                          the edited model gives target_new
    generality    where target_true was given     the edited model gives target_new
    locality      always                          the edited model answers as the unedited one
    symmetry      always                          new inverse given, old inverse not
    synonym       where target_true was given     the edited model gives target_new
    overturn      where target_true was given     the edited model does not give it

Facts are judged by what the model generates, free running; minimal pairs by the preference within
the pair, BLiMP's own metric. A case's score is the mean over its counted probes (symmetry: both
sides at once), and the case passes when all of them hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kn_bench.cases.building.rows import CONDITION, UNCONDITIONED
from kn_bench.cases.case import Case, Criterion, Exclusion, Task
from kn_bench.cases.normalise import same_answer, words
from kn_bench.measure.measurement import Answer, CaseResult, Measurement
from kn_bench.measure.verdict import (
    KindCount,
    OverturnOutcome,
    Readings,
    Status,
    SymmetryOutcome,
    Verdict,
)

__all__ = ["Evidence", "Verdict", "evidence", "judge", "judge_evidence"]

UNKNOWN: dict[Criterion, str] = {
    "generality": "the unedited model did not know the fact on any other pattern",
    "symmetry": "only one of the two inverse questions can be put",
    "synonym": "the unedited model did not answer any synonym probe correctly",
    "overturn": "the unedited model was not right",
    "portability": "the unedited model does not know what the questions build on",
}
"""Why no probe counts, by criterion."""
NOT_A_NUMBER = "a log-probability is NaN"
NOT_MEASURED = "nothing was measured, and no exclusion says why"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict is drawn from, be it a case just measured or the rows of a log.

    Attributes:
        task: task of the case.
        measurements: those of the criterion's probes (``overturn``: of the reliability probe).
        exclusions: those of the criterion's probes, or of the whole case.
        known_before: whether the unedited model gave ``target_true``; None when it was
            not asked.
        not_applicable: why the criterion or the method is not defined here.
        error: why an attempted edit or its measurement failed.
    """

    task: Task
    measurements: tuple[Measurement, ...]
    exclusions: tuple[Exclusion, ...] = ()
    known_before: bool | None = None
    not_applicable: str = ""
    error: str = ""


def judge(criterion: Criterion, case: Case, result: CaseResult) -> Verdict:
    """Judge ``case`` by ``criterion`` from what was measured."""
    return judge_evidence(criterion, evidence(criterion, case, result))


def evidence(criterion: Criterion, case: Case, result: CaseResult) -> Evidence:
    """Collect from ``result`` what ``criterion`` is judged by."""
    asked = asked_as(criterion)
    ids = {probe.id for probe in case.probes if probe.criterion == asked}
    reason = case.not_applicable.get(criterion, "") or result.not_applicable
    return Evidence(
        task=case.task,
        measurements=tuple(m for m in result.measurements if m.criterion == asked),
        exclusions=tuple(e for e in result.exclusions if e.probe is None or e.probe in ids),
        known_before=known_before(case.task, result.measurements),
        not_applicable=reason or ("" if ids else f"the case has no {asked} probe"),
        error=result.error,
    )


def asked_as(criterion: Criterion) -> Criterion:
    """Return the criterion whose probes ``criterion`` uses: overturn uses reliability's."""
    return "reliability" if criterion == "overturn" else criterion


def known_before(task: Task, measurements: Sequence[Measurement]) -> bool | None:
    """Return whether the unedited model gave ``target_true``; None when it was not asked."""
    asked = next((m for m in measurements if m.criterion == "reliability"), None)
    return None if asked is None else gives_rejected(asked.before, task)


def judge_evidence(criterion: Criterion, given: Evidence) -> Verdict:
    """Judge ``given`` by ``criterion``; all verdicts are made here."""
    if given.not_applicable:
        return _unscored("not_applicable", given.not_applicable, given)
    if given.error:
        return _unscored("error", given.error, given)
    if broken := next((m for m in given.measurements if _is_nan(m)), None):
        return _unscored("error", NOT_A_NUMBER, given, f"{broken.probe}: ")
    if not given.measurements:
        return _without_measurement(given)
    if criterion == "symmetry":
        return _symmetry(given)
    if criterion == "overturn":
        return _overturn(given)
    if criterion == "portability":
        return _portability(given)
    return _share(criterion, given)


# --- what one answer says ----------------------------------------------------------------------


def gives_expected(answer: Answer, task: Task) -> bool:
    """Return whether ``answer`` is the expected one: generated, or preferred within the pair."""
    return answer.gives_expected if task == "fact" else answer.prefers_expected


def gives_rejected(answer: Answer, task: Task) -> bool:
    """Return whether ``answer`` is the rejected one; in a tied pair neither is preferred."""
    if task == "fact":
        return answer.gives_rejected
    return answer.log_prob_rejected > answer.log_prob_expected


def _is_nan(m: Measurement) -> bool:
    """Return whether a probability is NaN: the edit broke the model, or overflowed."""
    answers = (m.before, m.after)
    return math.isnan(m.kl) or any(
        math.isnan(a.log_prob_expected) or math.isnan(a.log_prob_rejected) for a in answers
    )


def unchanged(before: Answer, after: Answer, task: Task) -> bool:
    """Return whether the edited model answers as the unedited one did.

    The answers are equal when both are the expected one, both the rejected one, or, both being
    neither, the same words up to the first sentence's end (a pair: both tied).
    """
    for gives in (gives_expected, gives_rejected):
        if gives(before, task) != gives(after, task):
            return False
        if gives(before, task):
            return True
    return task == "pair" or same_answer(before.generated, after.generated)


def probe_task(measurement: Measurement, case_task: Task) -> Task:
    """Return the probe's task: that of the case, except for neighbours of the other task."""
    if measurement.kind != "other_task":
        return case_task
    return "pair" if case_task == "fact" else "fact"


# --- scores ------------------------------------------------------------------------------------


def counts(criterion: Criterion, measurement: Measurement, task: Task) -> bool:
    """Return whether the probe counts.

    Probes of generality and synonym count only if the unedited model gave ``target_true``; if the
    data has no true answer, every probe counts.
    """
    if criterion not in ("generality", "synonym") or measurement.kind == UNCONDITIONED:
        return True
    return gives_rejected(measurement.before, task)


def probe_holds(criterion: Criterion, measurement: Measurement, task: Task) -> bool:
    """Return whether the probe meets its criterion."""
    if criterion == "locality":
        return unchanged(measurement.before, measurement.after, task)
    expected = gives_expected(measurement.after, task)
    return not expected if measurement.kind == "old_inverse" else expected


def _share(criterion: Criterion, given: Evidence) -> Verdict:
    """Judge by the share of counted probes that hold (most criteria are judged like this)."""
    asked = [(m, probe_task(m, given.task)) for m in given.measurements]
    counted = [(m, task) for m, task in asked if counts(criterion, m, task)]
    if not counted:
        return _unscored("excluded", UNKNOWN[criterion], given)
    held = [probe_holds(criterion, m, task) for m, task in counted]
    probes = [m for m, _ in counted]
    verdict = _scored(sum(held) / len(held), _explain(criterion, probes, held), given)
    return replace(
        verdict,
        counted=len(held),
        left_out=len(asked) - len(held) + len(given.exclusions),
        mean_kl=sum(m.kl for m in probes) / len(probes) if criterion == "locality" else None,
        kinds=_by_kind(probes, held),
        readings=_readings(probes),
    )


def _portability(given: Evidence) -> Verdict:
    """Judge by the share of consequences that hold, where the unedited model knew the rest.

    A question counts if the unedited model gives the answer to each of its conditions; it does not
    count if a condition cannot be encoded.
    """
    unmet = {
        conditioned(m.probe)
        for m in given.measurements
        if m.kind == CONDITION and not gives_expected(m.before, given.task)
    }
    unmet |= {conditioned(e.probe) for e in given.exclusions if e.probe and CONDITION in e.probe}
    questions = [m for m in given.measurements if m.kind != CONDITION]
    counted = tuple(m for m in questions if m.probe not in unmet)
    if not questions:
        return _without_measurement(replace(given, measurements=()))
    if not counted:
        return _unscored("excluded", UNKNOWN["portability"], given)
    verdict = _share("portability", replace(given, measurements=counted))
    return replace(verdict, left_out=verdict.left_out + len(questions) - len(counted))


def conditioned(probe: str) -> str:
    """Return the id of the question that a condition belongs to."""
    return probe.partition(f"/{CONDITION}/")[0]


def _symmetry(given: Evidence) -> Verdict:
    """Judge both directions at once: the score is the lower of their two shares."""
    sides: dict[str, list[Measurement]] = {}
    for m in given.measurements:
        sides.setdefault(m.kind, []).append(m)
    if ("new_inverse" in sides) != ("old_inverse" in sides):
        return _unscored("excluded", UNKNOWN["symmetry"], given)
    held = [probe_holds("symmetry", m, given.task) for m in given.measurements]
    kinds = _by_kind(given.measurements, held)
    outcome = _symmetry_outcome(given)
    score = min(kind.held / kind.counted for kind in kinds)
    return replace(
        _scored(score, _explain_symmetry(outcome, given), given),
        counted=len(held),
        left_out=len(given.exclusions),
        kinds=kinds,
        inverse_known=_inverse_known(given),
        symmetry=outcome,
    )


def _symmetry_outcome(given: Evidence) -> SymmetryOutcome:
    new = [m.after for m in given.measurements if m.kind != "old_inverse"]
    old = [m.after for m in given.measurements if m.kind == "old_inverse"]
    learned = all(gives_expected(answer, given.task) for answer in new)
    kept = all(gives_rejected(answer, given.task) for answer in new)
    return SymmetryOutcome(
        new_learned=learned,
        old_revoked=not any(gives_expected(a, given.task) for a in old) if old else None,
        displaced_kept=kept,
        other=not (learned or kept),
    )


def _inverse_known(given: Evidence) -> bool:
    """Return whether the unedited model gave the subject for the true object.

    For a pair, return whether it preferred the grammatical converse.
    """
    old = [m.before for m in given.measurements if m.kind == "old_inverse"]
    if old:
        return all(gives_expected(answer, given.task) for answer in old)
    return all(gives_rejected(m.before, given.task) for m in given.measurements)


def _overturn(given: Evidence) -> Verdict:
    """Judge whether an answer that was right before is another one after."""
    (measurement, *_) = given.measurements
    right_before = gives_rejected(measurement.before, given.task)
    right_after = gives_rejected(measurement.after, given.task)
    outcome = overturn_outcome(measurement, given.task)
    if not right_before:
        return replace(_unscored("excluded", UNKNOWN["overturn"], given), overturn=outcome)
    shift = f"{100 * outcome.shift:+.1f} points of probability within the pair"
    said = "is overturned" if not right_after else "still stands"
    verdict = _scored(float(not right_after), f"{measurement.rejected!r} {said} ({shift})", given)
    return replace(verdict, counted=1, overturn=outcome)


def overturn_outcome(measurement: Measurement, task: Task) -> OverturnOutcome:
    """Say whether ``target_true`` is overturned by each reading, and how far P shifts."""
    before, after, true = measurement.before, measurement.after, measurement.rejected
    right = [gives_rejected(answer, task) for answer in (before, after)]
    pair = [answer.log_prob_rejected > answer.log_prob_expected for answer in (before, after)]
    token = [is_start_of(answer.argmax, true) for answer in (before, after)]
    return OverturnOutcome(
        generated=_overturned(before.gives_rejected, after.gives_rejected, task == "fact"),
        within_pair=_overturned(*pair),
        argmax=_overturned(*token),
        reverse=not right[0] and right[1],
        shift=_preference(after) - _preference(before),
    )


def _overturned(before: bool, after: bool, defined: bool = True) -> bool | None:
    """Return whether the answer is no longer right; None if it was not right before."""
    return not after if defined and before else None


def is_start_of(token: str, answer: str) -> bool:
    """Return whether the argmax token begins ``answer``, or is all of it."""
    piece = token.strip().casefold()
    return bool(piece) and answer.casefold().startswith(piece)


def _preference(answer: Answer) -> float:
    """Return p(expected) within the pair, in [0, 1]; 1/2 if both are impossible or equal."""
    if answer.log_prob_expected == answer.log_prob_rejected:
        return 0.5
    gap = answer.log_prob_rejected - answer.log_prob_expected
    return 1.0 / (1.0 + math.exp(gap)) if gap < 700 else 0.0


# --- building verdicts -------------------------------------------------------------------------


def _scored(score: float, explanation: str, given: Evidence) -> Verdict:
    return Verdict(
        status="holds" if score == 1.0 else "missed",
        score=score,
        explanation=explanation,
        known_before=given.known_before,
    )


def _unscored(status: Status, reason: str, given: Evidence, where: str = "") -> Verdict:
    return Verdict(
        status=status,
        score=None,
        explanation=where + reason,
        reason=reason,
        left_out=len(given.measurements) + len(given.exclusions),
        known_before=given.known_before,
    )


def _without_measurement(given: Evidence) -> Verdict:
    """Return the reason of the exclusion; an error if there is neither measurement nor reason."""
    if not given.exclusions:
        return _unscored("error", NOT_MEASURED, given)
    (reason, _), *_ = Counter(e.reason for e in given.exclusions).most_common(1)
    return _unscored("excluded", reason, given)


def _by_kind(probes: Sequence[Measurement], held: Sequence[bool]) -> tuple[KindCount, ...]:
    counted = Counter(m.kind for m in probes)
    holding = Counter(m.kind for m, holds in zip(probes, held, strict=True) if holds)
    return tuple(KindCount(kind, holding[kind], counted[kind]) for kind in sorted(counted))


def _readings(probes: Sequence[Measurement]) -> Readings:
    after = [m.after for m in probes]
    n = len(after)
    return Readings(
        prob=sum(a.prob for a in after) / n,
        tf_token=sum(a.tf_token for a in after) / n,
        tf_all=sum(a.tf_all for a in after) / n,
        generated=sum(a.gives_expected for a in after) / n,
    )


def _explain(criterion: Criterion, probes: Sequence[Measurement], held: Sequence[bool]) -> str:
    noun = {"locality": "neighbours keep their answer"}.get(criterion, "probes give the new answer")
    counted = f"{sum(held)} of {len(held)} {noun}"
    missed = next((m for m, holds in zip(probes, held, strict=True) if not holds), None)
    return counted if missed is None else f"{counted}; {_first_missed(missed)}"


def _first_missed(m: Measurement) -> str:
    """Describe a probe that does not hold: the answers, if they have words, and the gap in nats."""
    gap = m.after.log_prob_expected - m.after.log_prob_rejected
    after, before = (answer.generated for answer in (m.after, m.before))
    said = f"the edited model says {after.strip()[:40]!r}, " if words(after) else ""
    said += f"the unedited one {before.strip()[:40]!r}, " if words(before) else ""
    return f"{m.probe}: {said}{m.expected!r} over {m.rejected!r} by {gap:+.2f} nats"


def _explain_symmetry(outcome: SymmetryOutcome, given: Evidence) -> str:
    first = next(m for m in given.measurements if m.kind != "old_inverse")
    new = "given" if outcome.new_learned else "still" if outcome.displaced_kept else "neither"
    text = {
        "given": f"the inverse question gives {first.expected!r}",
        "still": f"the inverse question still gives {first.rejected!r}",
        "neither": f"the inverse question gives neither {first.expected!r} nor {first.rejected!r}",
    }[new]
    if outcome.old_revoked is None:
        return text
    return f"{text}; the old inverse is {'revoked' if outcome.old_revoked else 'kept'}"
