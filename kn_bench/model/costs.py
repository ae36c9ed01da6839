"""How many bytes a row takes in a pass, for :class:`kn_bench.model.batching.Batcher`.

Upper estimates by counting vectors; an error in them costs speed and changes no result.
"""

from __future__ import annotations

from kn_bench.model.language_model import LanguageModel

LOGIT_COPIES = 3
"""Tensors as wide as the vocabulary: the logits, their log-softmax or gradient, a comparison."""


def forward_bytes(lm: LanguageModel, length: int, *, reads: int = 1, cached: int = 0) -> int:
    """Return the bytes that a row of ``length`` tokens takes without gradients.

    One layer's activations are alive at a time: some 8 vectors of d_model and 3 of d_mlp.

    Args:
        reads: positions at which the vocabulary is projected.
        cached: positions whose attention keys and values are kept, for all layers.
    """
    activations = length * (8 * lm.d_model + 3 * lm.d_mlp)
    attention = 2 * cached * lm.n_layers * lm.d_model
    logits = LOGIT_COPIES * reads * lm.vocabulary * max(4, lm.dtype.itemsize)
    return (activations + attention) * lm.dtype.itemsize + logits


def graph_bytes(
    lm: LanguageModel, positions: int, layers: float, *, reads: float = 1, cached: int = 0
) -> int:
    """Return the bytes that autograd keeps of a row run at ``positions`` in ``layers`` layers.

    Some 14 vectors of d_model and 3 of d_mlp a position and layer.

    Args:
        reads, cached: see :func:`forward_bytes`.
    """
    graph = positions * layers * (14 * lm.d_model + 3 * lm.d_mlp)
    attention = cached * lm.n_layers * lm.d_model
    return int((graph + attention + LOGIT_COPIES * reads * lm.vocabulary) * lm.dtype.itemsize)
