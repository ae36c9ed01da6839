"""Other ways to score neurons, as controls of integrated gradients: does the attribution matter?

activation               w
gradient_x_activation    w * dP/dw at g = 1, one step where integrated gradients take many
direct_ablation          P - P(neuron alone set to 0): one run for each neuron
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kn_bench.localise.attribution import MEMORY
from kn_bench.localise.queries import Fitted, Question, by_length, questions_of
from kn_bench.localise.scaling import Asked, Rows, ask, rows_within
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

    Scores = Float[Tensor, "n n_layers d_mlp"]


def activation(lm: LanguageModel, queries: Sequence[Fitted], *, memory: int = MEMORY) -> Scores:
    """The neurons' values at the answer position; of several answer tokens the mean."""
    return _scored(lm, queries, memory, lambda asked, _: asked.keys)


def gradient_x_activation(
    lm: LanguageModel, queries: Sequence[Fitted], *, memory: int = MEMORY
) -> Scores:
    """First-order effect of each neuron on P."""

    def score(asked: Asked, most: int) -> Tensor:
        n = len(asked.keys) * lm.n_layers
        cell = np.arange(n)
        rows = Rows(cell // lm.n_layers, cell % lm.n_layers, np.ones(n))
        gradient = asked.run(rows, gradient=True, most=most).gradient
        gradient = gradient.reshape(-1, lm.n_layers, lm.d_model)
        by_key = [gradient[:, layer] @ lm.weight(layer).T for layer in range(lm.n_layers)]
        return asked.keys * torch.stack(by_key, 1)

    return _scored(lm, queries, memory, score)


def direct_ablation(
    lm: LanguageModel, queries: Sequence[Fitted], *, memory: int = MEMORY
) -> Scores:
    """The fall in P when a neuron alone is set to 0 at the answer position.

    Exact, and dear: n_layers * d_mlp runs a question.
    """

    def score(asked: Asked, most: int) -> Tensor:
        scores = torch.empty_like(asked.keys)
        for question in range(len(asked.keys)):
            for layer in range(lm.n_layers):
                without = [
                    asked.without(question, layer, part)
                    for part in torch.split(torch.arange(lm.d_mlp, device=lm.device), most)
                ]
                scores[question, layer] = asked.probability[question] - torch.cat(without)
        return scores

    return _scored(lm, queries, memory, score)


def _scored(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    memory: int,
    score: Callable[[Asked, int], Tensor],
) -> Scores:
    groups = [questions_of(lm, query) for query in queries]
    singles = list(dict.fromkeys(question for group in groups for question in group))
    longest = max((len(question.ids) for question in singles), default=1)
    most = rows_within(lm, longest, memory)
    found: dict[Question, Tensor] = {}
    for batch in by_length(singles, max(1, most // lm.n_layers)):
        questions = [singles[index] for index in batch]
        found.update(zip(questions, score(ask(lm, questions), most), strict=True))
    scores = [torch.stack([found[q] for q in group]).mean(0) for group in groups]
    if not scores:
        return torch.zeros(0, lm.n_layers, lm.d_mlp)
    return torch.stack(scores)
