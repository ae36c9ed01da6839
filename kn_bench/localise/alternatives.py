"""Score neurons in other ways, as controls of integrated gradients: does the attribution matter?

activation               w
gradient_x_activation    w * dP/dw at g = 1, one step where integrated gradients take many
direct_ablation          P - P(neuron alone set to 0): one run for each neuron
log_prob_increase        log P read from the stream with and without the neuron's value: no run
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kn_bench.localise.queries import Fitted, questions_of
from kn_bench.localise.scaling import CleanBatch, Rows, ask, row_bytes
from kn_bench.localise.selection import Neuron
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.scoring import log_prob_of
from kn_bench.model.stream import adds_to_stream

Scores = Float[Tensor, "n n_layers d_mlp"]


def activation(lm: LanguageModel, queries: Sequence[Fitted]) -> Scores:
    """Return the neurons' values at the answer position; of several answer tokens the mean."""
    return _scored(lm, queries, lambda asked: asked.keys)


def gradient_x_activation(lm: LanguageModel, queries: Sequence[Fitted]) -> Scores:
    """Return the first-order effect of each neuron on P."""

    def score(asked: CleanBatch) -> Tensor:
        n = len(asked.keys) * lm.n_layers
        cell = np.arange(n)
        rows = Rows(cell // lm.n_layers, cell % lm.n_layers, np.ones(n))
        gradient = asked.run(rows, gradient=True).gradient
        gradient = gradient.reshape(-1, lm.n_layers, lm.d_model)
        by_key = [gradient[:, layer] @ lm.weight(layer).T for layer in range(lm.n_layers)]
        return asked.keys * torch.stack(by_key, 1)

    return _scored(lm, queries, score)


def direct_ablation(
    lm: LanguageModel, queries: Sequence[Fitted], neurons: Iterable[Neuron] | None = None
) -> Scores:
    """Return the fall in P when a neuron alone is set to 0 at the answer position.

    Exact but expensive: one forward pass per question and neuron.

    Args:
        neurons: those to ablate, the others score 0; all n_layers * d_mlp when None.
    """
    by_layer: dict[int, list[int]] = {layer: [] for layer in range(lm.n_layers)}
    if neurons is None:
        by_layer = {layer: list(range(lm.d_mlp)) for layer in by_layer}
    for layer, unit in sorted(neurons or ()):
        by_layer[layer].append(unit)

    def score(asked: CleanBatch) -> Tensor:
        a_row = row_bytes(lm, asked.clean.run.ids.shape[1])
        scores = torch.zeros_like(asked.keys)
        for question in range(len(asked.keys)):
            for layer, units in by_layer.items():
                if units:
                    index = torch.tensor(units, device=lm.device)
                    without = functools.partial(_without, asked, question, layer, index)
                    left = torch.cat(lm.batcher.parts(without, len(units), a_row))
                    scores[question, layer, index] = asked.probability[question] - left
        return scores

    return _scored(lm, queries, score)


def _without(asked: CleanBatch, question: int, layer: int, units: Tensor, part: range) -> Tensor:
    return asked.without(question, layer, units[part.start : part.stop])


def log_prob_increase(lm: LanguageModel, queries: Sequence[Fitted]) -> Scores:
    """Return log p(answer | h + v) - log p(answer | h) of each neuron's sub-value v = w_i W_i.

    h is the residual stream to which the layer's MLP adds, at the answer position, read through the
    final norm and the head (Yu and Ananiadou, "Neuron-Level Knowledge Attribution in Large Language
    Models", EMNLP 2024). One forward pass per question and no gradient; the head is applied to
    every neuron, n_layers * d_mlp * vocabulary products.

    Raises:
        ValueError: for a model whose MLPs' outputs do not simply join the residual stream.
    """
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name}: expected a causal model, whose final norm reads the residual stream"
        )
    norm = _final_norm(lm)

    @torch.no_grad()
    def score(asked: CleanBatch) -> Tensor:
        run = asked.clean.run
        last: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0].to(lm.device)))
        try:
            lm.hidden(run.ids, use_cache=False)
        finally:
            handle.remove()
        streams = [*run.layer_inputs[1:], last[0]]
        ids = run.ids[:, :2]
        if lm.n_layers > 1 and not adds_to_stream(lm, ids[:1], 0):
            raise ValueError(
                f"{lm.name}: expected MLPs whose outputs are added to the residual stream"
            )
        rows = torch.arange(len(run.ids), device=lm.device)
        scores = torch.empty_like(asked.keys)
        a_row = 4.0 * 2 * lm.vocabulary
        for layer, stream in enumerate(streams):
            before = stream[rows, run.ids.shape[1] - 1] - asked.clean.values[:, layer]
            for question, h in enumerate(before):
                token = asked.tokens[question]

                def read(hidden: Tensor, token: Tensor = token) -> Tensor:
                    return log_prob_of(lm.logits(norm(hidden)), token.expand(len(hidden)))

                def part(
                    neurons: range, layer: int = layer, question: int = question, h: Tensor = h
                ) -> Tensor:
                    here = slice(neurons.start, neurons.stop)
                    keys = asked.keys[question, layer, here][:, None]
                    return read(h + keys * lm.weight(layer)[here])

                scores[question, layer] = torch.cat(lm.batcher.parts(part, lm.d_mlp, a_row))
                scores[question, layer] -= read(h[None])[0]
        return scores

    return _scored(lm, queries, score)


def _final_norm(lm: LanguageModel) -> nn.Module:
    """Return the norm between the last layer and the head."""
    inside = {id(module) for layer in lm.layers for module in layer.modules()}
    norms = [
        module
        for module in lm.hf.base_model.modules()
        if "norm" in type(module).__name__.lower() and id(module) not in inside
    ]
    if not norms:
        raise ValueError(f"{lm.name}: expected a final norm, which reads the residual stream")
    last: nn.Module = norms[-1]
    return last


def _scored(
    lm: LanguageModel, queries: Sequence[Fitted], score: Callable[[CleanBatch], Tensor]
) -> Scores:
    groups = [questions_of(lm, query) for query in queries]
    singles = list(dict.fromkeys(question for group in groups for question in group))
    rows = lm.batcher.run(
        lambda questions: list(score(ask(lm, questions))),
        singles,
        item_bytes=lambda question: lm.n_layers * row_bytes(lm, len(question.ids)),
        shape=lambda question: len(question.ids),
        what="scoring neurons, prompt",
    )
    by_question = dict(zip(singles, rows, strict=True))
    scores = [torch.stack([by_question[q] for q in group]).mean(0) for group in groups]
    if not scores:
        return torch.zeros(0, lm.n_layers, lm.d_mlp)
    return torch.stack(scores)
