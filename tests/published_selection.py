"""How published code selects knowledge neurons: the other side of comparisons with its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from kn_bench.localise.selection import Neuron, Neurons, refined

if TYPE_CHECKING:
    from torch import Tensor


def dai_bag(
    scores: Float[Tensor, "n n_layers d_mlp"],
    t: float = 0.2,
    share: float = 0.7,
    *,
    fewest: int = 3,
) -> Neurons:
    """The bag of Dai et al.'s code: alpha >= t * max in at least a share, and 3, of the prompts.

    Differs from :func:`~kn_bench.localise.selection.refined` in both comparisons and in the
    least number of prompts.
    """
    wide = scores.double()
    above = wide >= t * wide.amax((1, 2), keepdim=True)
    kept = above.sum(0) >= max(share * len(scores), fewest)
    return frozenset(Neuron(layer, unit) for layer, unit in kept.nonzero().tolist())


def compounding(
    scores: Float[Tensor, "n n_layers d_mlp"], t: float = 0.2, p: float = 0.7
) -> Neurons:
    """What published ``fix_p_neuron`` computes: a threshold that is reassigned for each prompt.

    The k-th prompt is held to t * max_1 * ... * max_k, so that the set depends on the order of
    prompts. Only for reproducing numbers made with it.
    """
    threshold, sets = t, []
    for score in scores:
        threshold = score.max().item() * threshold
        sets.append([Neuron(*place) for place in (score > threshold).nonzero().tolist()])
    return refined(sets, p).neurons
