"""Erasing neurons: is the fact gone, or the model?

A value may be replaced by 0, by the mean, by the embedding of the unknown token or of a random one.
Whether the model still works shows in the perplexity of whole texts; whether the fact is gone, in
that of the answer at its gap alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kn_bench.editing.edit import Edit, NoEdit
from kn_bench.localise.interventions import crossed
from kn_bench.localise.queries import Fitted
from kn_bench.measure.sentences import perplexity, token_log_probs
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Erased:
    """What one edit left.

    Attributes:
        name: of the edit; ``none`` for the model as it is.
        at_answer: exp of minus the mean log P(answer) at the gap.
        own_texts: (pseudo-)perplexity of all tokens of the prompts, answers filled in.
        other_texts: the same of unrelated texts.
        accuracy: share of prompts whose answer is still the argmax.
    """

    name: str
    at_answer: float
    own_texts: float
    other_texts: float
    accuracy: float


def erased(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    own_texts: Sequence[str],
    other_texts: Sequence[str],
    edits: Sequence[tuple[str, Edit]],
) -> list[Erased]:
    """Perplexities under each edit, and first those of the model as it is.

    Args:
        queries: prompts whose answers are to be lost.
        own_texts: the same with their answers filled in.
        other_texts: texts that nothing should happen to.
        edits: (name, edit).
    """
    names, applied = zip(*[("none", NoEdit()), *edits], strict=True)
    log_probs, ranks = crossed(lm, queries, applied)
    own = perplexity(token_log_probs(lm, own_texts, applied))
    other = perplexity(token_log_probs(lm, other_texts, applied))
    return [
        Erased(
            name,
            float(np.exp(-log_probs[i].mean())),
            float(own[i]),
            float(other[i]),
            float((ranks[i] == 0).mean()),
        )
        for i, name in enumerate(names)
    ]
