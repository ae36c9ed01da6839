"""Rows in which the neurons of one layer, at the answer position, are scaled by g.

One clean pass over some questions serves any number of rows (question, layer, g): the probability P
of the answer there, and the gradient of P by the site's value. Rows start after their own site, and
for causal models at the answer position; rows of all layers run together.

Rows pass through three orders, each of which the results are taken back from:

    caller's      any                as attribution asks: cell by cell, node by node
    by question   cut into batches   rows of a question read the same attention keys and values
    by layer      within a batch     in CleanSites.changed, rows join layer after layer

The site is linear, value = b + g * (W^T w), so the change is made, and the gradient taken, at the
value: dP/dw = W dP/dvalue needs one product a question and layer, however many steps there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.localise.queries import TokenQuestion
from kn_bench.model.after_site import CleanSites, clean_sites
from kn_bench.model.costs import graph_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.scoring import log_prob_of, probability_and_gradient
from kn_bench.model.transfer import to_device


class Rows(NamedTuple):
    """Perturbed rows: question, layer and scale of each, on the host."""

    question: Int[np.ndarray, " n"]
    layer: Int[np.ndarray, " n"]
    g: Float[np.ndarray, " n"]

    def take(self, index: Int[np.ndarray, " m"]) -> Rows:
        return Rows(self.question[index], self.layer[index], self.g[index])


class Along(NamedTuple):
    """Results of rows: P of the answer, and dP/dvalue of the site at the answer position."""

    probability: Float[Tensor, " n"]
    gradient: Float[Tensor, "n d_model"]


@dataclass(frozen=True)
class CleanBatch:
    """Questions of equal length after one clean pass.

    Attributes:
        clean: the pass, at the answer positions.
        tokens: the answer's token.
        grown: what each layer's neurons add to its site's value: W^T w.
        probability: P of the answer, unperturbed.
    """

    lm: LanguageModel
    clean: CleanSites
    tokens: Int[Tensor, " B"]
    grown: Float[Tensor, "B n_layers d_model"]
    probability: Float[Tensor, " B"]

    @property
    def keys(self) -> Float[Tensor, "B n_layers d_mlp"]:
        """The neurons w at the answer position."""
        return self.clean.keys

    def run(
        self, rows: Rows, *, gradient: bool, done: Callable[[float], object] = lambda _: None
    ) -> Along:
        """Return P, and with ``gradient`` dP/dvalue, of rows in any order.

        Args:
            done: told after each pass what share of the rows it was.
        """
        # stable: the caller's order within a question; argsort of a permutation is its inverse
        order = np.argsort(rows.question, kind="stable")
        a_row = row_bytes(self.lm, self.clean.run.ids.shape[1])

        def run(part: range) -> Along:
            along = self._run(rows.take(order[part.start : part.stop]), gradient)
            done(len(part) / len(order))
            return along

        pieces = self.lm.batcher.parts(
            run,
            len(order),
            a_row if gradient else a_row / 2,
        )
        back = to_device(np.argsort(order), self.lm.device)
        return Along(*(torch.cat(column)[back] for column in zip(*pieces, strict=True)))

    @torch.no_grad()
    def without(self, question: int, layer: int, neurons: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return P of one question with each of ``neurons`` of ``layer``, alone, set to 0."""
        asked = torch.full_like(neurons, question)
        lost = self.keys[question, layer, neurons][:, None] * self.lm.weight(layer)[neurons]
        values = self.clean.values[question, layer] - lost
        hidden = self.clean.changed({layer: asked}, {layer: values})
        return log_prob_of(self.lm.logits(hidden), self.tokens[asked]).exp()

    def _run(self, rows: Rows, gradient: bool) -> Along:
        order = np.argsort(rows.layer, kind="stable")
        rows = rows.take(order)
        layers, counts = (array.tolist() for array in np.unique(rows.layer, return_counts=True))
        questions = to_device(rows.question, self.lm.device)
        # value + (g - 1) W^T w: the clean value already holds g = 1
        more = to_device(rows.g - 1, self.lm.device, self.grown.dtype)[:, None]
        asked = dict(zip(layers, torch.split(questions, counts), strict=True))
        values = {
            layer: (
                self.clean.values[asked[layer], layer] + part * self.grown[asked[layer], layer]
            ).requires_grad_(gradient)
            for layer, part in zip(layers, torch.split(more, counts), strict=True)
        }
        with torch.set_grad_enabled(gradient):
            logits = self.lm.logits(self.clean.changed(asked, values))
        tokens, back = self.tokens[questions], to_device(np.argsort(order), self.lm.device)
        if not gradient:
            probability = log_prob_of(logits, tokens).exp()[back]
            return Along(probability, probability[:, None])
        probability, by_logits = probability_and_gradient(logits.detach(), tokens)
        grown = torch.autograd.grad(logits, list(values.values()), by_logits)
        return Along(probability[back], torch.cat(grown)[back])


@torch.no_grad()
def ask(lm: LanguageModel, questions: Sequence[TokenQuestion]) -> CleanBatch:
    """Run questions of equal length once, unperturbed."""
    ids = lm.tensor([question.ids for question in questions])
    positions = torch.tensor([q.position for q in questions], device=ids.device)
    tokens = torch.tensor([q.token for q in questions], device=ids.device)
    clean = clean_sites(lm, ids, positions)
    grown = [clean.keys[:, layer] @ lm.weight(layer) for layer in range(lm.n_layers)]
    probability = log_prob_of(lm.logits(clean.last_hidden), tokens).exp()
    return CleanBatch(lm, clean, tokens, torch.stack(grown, 1), probability)


def row_bytes(lm: LanguageModel, length: int) -> int:
    """Return the bytes of a perturbed row of ``length`` tokens, with its gradient.

    A causal model's row runs at its last position alone and reads the others' attention keys and
    values; rows of all layers run together, so that each runs in half of them on average.
    """
    positions = 1 if lm.is_causal else length
    cached = length if lm.is_causal else 0
    return graph_bytes(lm, positions, lm.n_layers / 2, cached=cached)
