"""Edits for the sections that ask what edits do: methods by name, and whether an edit succeeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kn_bench.cases.case import EditRequest, Query
from kn_bench.editing.edit import Edit, LowRank, LowRankEdit, Method, NoEdit, NotApplicable
from kn_bench.editing.rome.remembered import corpus_for
from kn_bench.editing.settings import settings_for
from kn_bench.edits.kn import Erased, EraseKN, RewriteKN
from kn_bench.edits.rome import Rome, RomeSettings
from kn_bench.localise.interventions import answers
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neurons
from kn_bench.measure.encoding import encode_query
from kn_bench.model.language_model import LanguageModel


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
    edits: Sequence[Edit | NotApplicable | None],
) -> list[EditOutcome | None]:
    """Measure each request under its edit; None where it has no edit or cannot be encoded."""
    encoded = [both_targets(lm, request) for request in requests]
    usable = [
        i
        for i, (pair, edit) in enumerate(zip(encoded, edits, strict=True))
        if pair is not None and edit is not None and not isinstance(edit, NotApplicable)
    ]
    queries = [query for i in usable for query in (encoded[i] or ())]
    applied = [edit for i in usable if isinstance(edit := edits[i], Edit)]
    before = answers(lm, queries, [NoEdit()])
    after = answers(lm, queries, applied or [NoEdit()], np.arange(len(usable)).repeat(2).tolist())
    outcomes: list[EditOutcome | None] = [None] * len(requests)
    for place, i in enumerate(usable):
        true, new = 2 * place, 2 * place + 1
        outcomes[i] = EditOutcome(
            prior=float(before.probability[new]),
            preferred=bool(after.log_prob[new] > after.log_prob[true]),
            argmax=bool(after.right[new]),
            before=bool(before.log_prob[new] > before.log_prob[true]),
        )
    return outcomes


def both_targets(lm: LanguageModel, request: EditRequest) -> tuple[Fitted, Fitted] | None:
    """Encode the edited prompt with target_true and with target_new; None if either fails."""
    true, new = (
        encode_query(Query(request.cloze, answer), lm.tokens, request.task)
        for answer in (request.target_true, request.target_new)
    )
    return None if true is None or new is None else (true, new)


def rewritten(lm: LanguageModel, request: EditRequest, neurons: Neurons) -> Edit | None:
    """Return kn-edit's change, -e(old) + e(new), as an edit of the values of ``neurons``."""
    pair = both_targets(lm, request)
    # an embedding narrower or wider than the layers can be no neuron's value
    if pair is None or not neurons or lm.output_embeddings.shape[1] != lm.d_model:
        return None
    old, new = (lm.output_embeddings[list(query.answer_ids)].float().sum(0) for query in pair)
    updates: tuple[LowRank, ...] = knowledge_neurons(lm).updates(neurons, old, new)
    return LowRankEdit(updates)
