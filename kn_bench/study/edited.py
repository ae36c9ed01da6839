"""Edits for the sections that ask what edits do: methods by name, and whether an edit succeeded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kn_bench.cases.case import EditRequest, Query, Task
from kn_bench.editing.closed_form import SingularError
from kn_bench.editing.edit import Edit, LowRank, LowRankEdit, Method, NoEdit, NotApplicable
from kn_bench.editing.rome.remembered import corpus_for
from kn_bench.editing.settings import settings_for
from kn_bench.edits.kn import Erased, EraseKN, RewriteKN, answer_embeddings
from kn_bench.edits.rome import Rome, RomeSettings
from kn_bench.localise.groups import NOTHING_BEFORE
from kn_bench.localise.interventions import answers
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neurons
from kn_bench.measure.encoding import encode_query
from kn_bench.measure.measurement import CaseResult
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel
from kn_bench.study.page import NothingToShow


def knowledge_neurons(lm: LanguageModel) -> RewriteKN:
    """Return the method kn-edit (Dai et al. 2022) for ``lm``."""
    return RewriteKN(lm)


def erasing(lm: LanguageModel, by: Erased) -> EraseKN:
    """Return the method kn-erase for ``lm``; ``by`` is zero, mean, unk or random."""
    return EraseKN(lm, by=by)


def rome(lm: LanguageModel, layer: int | None = None) -> Rome:
    """Return ROME for ``lm``, without the second moment C where no corpus is known.

    Args:
        layer: the layer to edit instead of the published or default one.
    """
    chosen = settings_for("rome", RomeSettings, lm)
    if layer is not None:
        chosen = replace(chosen, layer=layer)
    try:
        corpus_for(lm)
    except ValueError:
        chosen = replace(chosen, mom2_adjustment=False)
    return Rome(lm, chosen)


def methods(lm: LanguageModel) -> list[tuple[str, Method]]:
    """Return the paper's two editing methods by name: kn-edit, and for causal models ROME."""
    named: list[tuple[str, Method]] = [("kn-edit", knowledge_neurons(lm))]
    if lm.is_causal:
        method = rome(lm)
        name = "rome" if method.settings.mom2_adjustment else "rome-no-c"
        named.append((name, method))
    return named


def edits_by(method: Method, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
    """Return each request's edit, or why it has none: also what the method refuses them all for."""
    try:
        return list(method.edit(requests))
    except (NotApplicable, SingularError) as reason:
        return [NotApplicable(str(reason))] * len(requests)


@dataclass(frozen=True)
class EditOutcome:
    """Whether an edit succeeded.

    Attributes:
        prior: P(target_new) before the edit.
        preferred: whether target_new is more probable than target_true after the edit.
        argmax: whether the edited model answers with target_new.
        before: whether target_new was preferred before the edit.
    """

    prior: float
    preferred: bool
    argmax: bool
    before: bool


def took(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    edits: Sequence[Edit | NotApplicable],
) -> list[EditOutcome | NotApplicable]:
    """Measure each request under its edit; return why not where that is impossible."""
    encoded = [both_targets(lm, request) for request in requests]
    outcomes: list[EditOutcome | NotApplicable] = [
        edit if isinstance(edit, NotApplicable) else UNFIT for edit in edits
    ]
    usable = [
        i
        for i, (pair, edit) in enumerate(zip(encoded, edits, strict=True))
        if pair is not None and not isinstance(edit, NotApplicable)
    ]
    queries = [query for i in usable for query in (encoded[i] or ())]
    applied = [edit for i in usable if isinstance(edit := edits[i], Edit)]
    before = answers(lm, queries, [NoEdit()])
    after = answers(lm, queries, applied or [NoEdit()], np.arange(len(usable)).repeat(2).tolist())
    for place, i in enumerate(usable):
        true, new = 2 * place, 2 * place + 1
        outcomes[i] = EditOutcome(
            prior=float(before.probability[new]),
            preferred=bool(after.log_prob[new] > after.log_prob[true]),
            argmax=bool(after.right[new]),
            before=bool(before.log_prob[new] > before.log_prob[true]),
        )
    return outcomes


UNFIT = NotApplicable("the model cannot take the prompt with both answers")


@dataclass(frozen=True)
class EditTrial:
    """One edit that was measured.

    Attributes:
        method: its method.
        kind: the place or the direction of the edit.
        task: of its case.
        cluster: of its case.
        outcome: whether it succeeded.
    """

    method: str
    kind: str
    task: Task
    cluster: str
    outcome: EditOutcome


def trials_of(
    outcomes: Sequence[tuple[str, str, EditRequest, EditOutcome | NotApplicable]],
    cluster_of: Mapping[str, str],
    notes: Sequence[str] = (),
) -> tuple[list[EditTrial], tuple[str, ...]]:
    """Return the edits that are measured, and how many of each method are not, which, and why.

    Args:
        outcomes: of every edit, with its method, its kind and its request.
        cluster_of: the cluster of every case by its id.
        notes: what was left out before; it comes first.

    Raises:
        NothingToShow: with the reasons, if none is measured.
    """
    trials: list[EditTrial] = []
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for method, kind, request, outcome in outcomes:
        if isinstance(outcome, NotApplicable):
            kinds[method, str(outcome)].append(kind)
        else:
            cluster = cluster_of[request.id]
            trials.append(EditTrial(method, kind, request.task, cluster, outcome))
    left_out = tuple(
        f"Left out of {method}: {len(each)} ({'; '.join(dict.fromkeys(each))}), as {reason}."
        for (method, reason), each in kinds.items()
    )
    if not trials:
        reasons = ("No request could be edited on this model.", *notes, *left_out)
        raise NothingToShow(" ".join(reasons))
    return trials, (*notes, *left_out)


def unmeasured(method: str, results: Collection[CaseResult]) -> tuple[str, ...]:
    """Say how many facts of ``method`` gave no measurement, a note for each reason."""
    reasons = Counter(
        result.error or result.not_applicable or result.exclusions[0].reason
        for result in results
        if not measured(result)
    )
    return tuple(
        f"Left out of {method}: {n} of {len(results)} facts, as {reason}."
        for reason, n in reasons.items()
    )


def measured(result: CaseResult) -> bool:
    """Return whether the case was edited and asked anything."""
    return bool(result.measurements) and not result.error and not result.not_applicable


def rate(trials: Sequence[EditTrial], name: str = "argmax") -> Interval:
    """Return the share of trials with what ``name`` is in :class:`EditOutcome`, over clusters."""
    values = [getattr(trial.outcome, name) for trial in trials]
    return mean_interval(values, [trial.cluster for trial in trials])


def both_targets(lm: LanguageModel, request: EditRequest) -> tuple[Fitted, Fitted] | None:
    """Encode the edited prompt with target_true and with target_new; None if either fails."""
    true, new = (
        encode_query(Query(request.cloze, answer), lm.tokens, request.task)
        for answer in (request.target_true, request.target_new)
    )
    return None if true is None or new is None else (true, new)


def editable(
    lm: LanguageModel, requests: Sequence[EditRequest]
) -> tuple[dict[tuple[Fitted, Fitted], EditRequest], Counter[str]]:
    """Return the requests that ask the model something, each once; count the others by reason.

    Their keys are what :func:`both_targets` encodes. To a causal model requests that differ
    after the gap alone are one.
    """
    asked: dict[tuple[Fitted, Fitted], EditRequest] = {}
    left_out: Counter[str] = Counter()
    for request in requests:
        pair = both_targets(lm, request)
        if lm.is_causal and not request.cloze.left:
            left_out[NOTHING_BEFORE] += 1
        elif pair is None:
            left_out["not fitting the model with both answers"] += 1
        elif pair in asked:
            left_out["the same to the model as another one"] += 1
        else:
            asked[pair] = request
    return asked, left_out


def rewritten(
    lm: LanguageModel, request: EditRequest, neurons: Neurons
) -> LowRankEdit | NotApplicable:
    """Return kn-edit's change, -e(old) + e(new), as an edit of the values of ``neurons``."""
    pair = both_targets(lm, request)
    if pair is None:
        return UNFIT
    try:
        embeddings = answer_embeddings(lm)
    except NotApplicable as reason:
        return reason
    old, new = (embeddings[list(query.answer_ids)].float().sum(0) for query in pair)
    updates: tuple[LowRank, ...] = knowledge_neurons(lm).updates(neurons, old, new)
    return LowRankEdit(updates)
