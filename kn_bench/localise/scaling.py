"""Rows in which the neurons of one layer, at the answer position, are scaled by g.

One clean pass over some questions, and from it any number of rows (question, layer, g): the
probability P of the answer there, and the gradient of P by the site's value. Rows start behind
their own site, and for causal models at the answer position; rows of all layers travel together.

The site is linear, value = b + g * (W^T w), so the change is made, and the gradient taken, at the
value: dP/dw = W dP/dvalue needs one product a question and layer, however many steps there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kn_bench.localise.queries import Question
from kn_bench.model.after_site import CleanSites, clean_sites
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.transfer import to_device

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Rows(NamedTuple):
    """Perturbed rows: question, layer and scale of each, on the host."""

    question: Int[np.ndarray, " n"]
    layer: Int[np.ndarray, " n"]
    g: Float[np.ndarray, " n"]

    def take(self, index: Int[np.ndarray, " m"]) -> Rows:
        return Rows(self.question[index], self.layer[index], self.g[index])


class Along(NamedTuple):
    """What rows gave: P of the answer, and dP by the site's value at the answer position."""

    probability: Float[Tensor, " n"]
    gradient: Float[Tensor, "n d_model"]


@dataclass(frozen=True)
class Asked:
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

    def run(self, rows: Rows, *, gradient: bool, most: int) -> Along:
        """P, and with ``gradient`` dP/dvalue, of rows in any order, at most ``most`` at once.

        Where the device's memory does not suffice, half as many at once.
        """
        order = np.argsort(rows.question, kind="stable")
        parts = np.split(order, range(most, len(order), most))
        try:
            pieces = [self._run(rows.take(part), gradient) for part in parts]
        except torch.OutOfMemoryError:
            fewer = min(most, len(order)) // 2
            if not fewer:
                raise
            return self.run(rows, gradient=gradient, most=fewer)
        back = to_device(np.argsort(order), self.lm.device)
        return Along(*(torch.cat(found)[back] for found in zip(*pieces, strict=True)))

    @torch.no_grad()
    def without(self, question: int, layer: int, neurons: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """P of one question with each of ``neurons`` of ``layer``, alone, set to 0."""
        asked = torch.full_like(neurons, question)
        lost = self.keys[question, layer, neurons][:, None] * self.lm.weight(layer)[neurons]
        values = self.clean.values[question, layer] - lost
        hidden = self.clean.changed({layer: asked}, {layer: values})
        return answered(self.lm.logits(hidden), self.tokens[asked])

    def _run(self, rows: Rows, gradient: bool) -> Along:
        order = np.argsort(rows.layer, kind="stable")
        rows = rows.take(order)
        layers, counts = (found.tolist() for found in np.unique(rows.layer, return_counts=True))
        questions = to_device(rows.question, self.lm.device)
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
            found = answered(logits, tokens)[back]
            return Along(found, found[:, None])
        probability, by_logits = _differentiated(logits.detach(), tokens)
        grown = torch.autograd.grad(logits, list(values.values()), by_logits)
        return Along(probability[back], torch.cat(grown)[back])


@torch.no_grad()
def ask(lm: LanguageModel, questions: Sequence[Question]) -> Asked:
    """One clean pass over questions of equal length."""
    ids = lm.tensor([question.ids for question in questions])
    positions = torch.tensor([q.position for q in questions], device=ids.device)
    tokens = torch.tensor([q.token for q in questions], device=ids.device)
    clean = clean_sites(lm, ids, positions)
    grown = [clean.keys[:, layer] @ lm.weight(layer) for layer in range(lm.n_layers)]
    return Asked(
        lm, clean, tokens, torch.stack(grown, 1), answered(lm.logits(clean.last_hidden), tokens)
    )


def rows_within(lm: LanguageModel, length: int, memory: int) -> int:
    """How many perturbed rows of questions of ``length`` tokens fit into ``memory`` bytes.

    Counts what autograd keeps: some 14 vectors of d_model and 3 of d_mlp a layer and position, half
    of the layers on average, and 3 of the vocabulary's.
    """
    positions = 1 if lm.is_causal else length
    a_layer = 14 * lm.d_model + 3 * lm.d_mlp
    elements = positions * lm.n_layers * a_layer / 2 + 3 * lm.vocabulary
    if lm.is_causal:
        elements += length * lm.n_layers * lm.d_model  # the earlier positions' keys and values
    return max(1, int(memory / (elements * lm.dtype.itemsize)))


def answered(
    logits: Float[Tensor, "n vocabulary"], tokens: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """P of the tokens, in at least float32."""
    logits = _wide(logits)
    return (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)).exp()


def _differentiated(
    logits: Float[Tensor, "n vocabulary"], tokens: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n vocabulary"]]:
    """P of the tokens and dP/dlogits = P * (1[token] - p): one pass where autograd takes six."""
    p = _wide(logits).softmax(1)
    answer = p.gather(1, tokens[:, None])
    by_logits = p.mul_(-answer).scatter_add_(1, tokens[:, None], answer)
    return answer[:, 0], by_logits.to(logits.dtype)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits
