"""Causal tracing (Meng et al. 2022, section 2): which states of a run carry the answer?

Every state of a corrupted run, token by token and layer by layer, is put back to its clean value:
what P(answer) regains by it is its indirect effect.

    hidden      a layer's output
    mlp         what the MLPs of a window of layers add to the residual stream
    attention   what their attention adds
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from kn_bench.localise.attribution import MEMORY
from kn_bench.localise.corruption import Kind, TracePrompt, corrupt
from kn_bench.localise.patching import Patch, PatchedRun, restore
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")


@dataclass(frozen=True)
class Trace:
    """What one prompt gave.

    Attributes:
        prompt: the prompt.
        kinds: what was restored.
        scores: P(answer) with the state of each kind, token and layer restored (of ``mlp`` and
            ``attention`` a window of layers around it), mean over the samples.
        clean, corrupted: P(answer) with nothing corrupted, with nothing restored.
    """

    prompt: TracePrompt
    kinds: tuple[Kind, ...]
    scores: Float[Tensor, "kinds T n_layers"]
    clean: float
    corrupted: float

    @property
    def indirect_effects(self) -> Float[Tensor, "kinds T n_layers"]:
        """P restored less P corrupted."""
        return self.scores - self.corrupted


def trace(
    lm: LanguageModel,
    prompts: Sequence[TracePrompt],
    noises: Sequence[Float[Tensor, "samples subject d_embedding"]],
    *,
    kinds: Sequence[Kind] = KINDS,
    window: int = 10,
    replace: bool = False,
    memory: int = MEMORY,
) -> list[Trace]:
    """Restore every state of every prompt.

    Args:
        noises: what is added to the embeddings of each prompt's subject; see
            :func:`kn_bench.localise.corruption.noise`.
        kinds: what to restore.
        window: layers restored at once for MLP and attention outputs (Meng et al.: 10).
        replace: the noise stands in for the embeddings instead of being added.
        memory: bytes that a batch of restored runs may take.
    """
    found: dict[int, Trace] = {}
    for batch in _alike(lm, prompts, noises, memory):
        corrupted = corrupt(
            lm, [prompts[i] for i in batch], [noises[i] for i in batch], replace=replace
        )
        states = list(_states(lm.n_layers, corrupted.prompts, kinds, window))
        regained = restore(corrupted, states, memory=memory).mean(1).cpu()
        scores = regained.reshape(len(batch), len(kinds), -1, lm.n_layers)
        for i, one, p in zip(batch, scores, corrupted.probability.cpu(), strict=True):
            found[i] = Trace(prompts[i], tuple(kinds), one, float(p[0]), float(p[1:].mean()))
    return [found[i] for i in range(len(prompts))]


def windowed(kind: Kind, layer: int, token: int, n_layers: int, window: int) -> tuple[Patch, ...]:
    """What is restored for one cell of a trace: a layer's output, or a window of contributions.

    A window of w covers layers l - floor(w/2) to l + ceil(w/2) - 1, as in the published code.
    """
    if kind == "hidden":
        return (Patch(kind, layer, token),)
    first, end = max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2)
    return tuple(Patch(kind, other, token) for other in range(first, end))


def _states(
    n_layers: int, prompts: Sequence[TracePrompt], kinds: Sequence[Kind], window: int
) -> Iterator[PatchedRun]:
    for number, prompt in enumerate(prompts):
        for kind in kinds:
            for token in range(len(prompt.ids)):
                for layer in range(n_layers):
                    yield PatchedRun(number, windowed(kind, layer, token, n_layers, window))


def _alike(
    lm: LanguageModel, prompts: Sequence[TracePrompt], noises: Sequence[Tensor], memory: int
) -> Iterator[list[int]]:
    """Prompts of equal length with as many samples, as many at once as memory allows."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (prompt, one) in enumerate(zip(prompts, noises, strict=True)):
        groups[len(prompt.ids), len(one)].append(index)
    for (length, samples), group in sorted(groups.items()):
        kept = 5 * lm.n_layers * length * lm.d_model * lm.dtype.itemsize
        most = max(1, memory // 2 // ((1 + samples) * kept))
        for at in range(0, len(group), most):
            yield group[at : at + most]
