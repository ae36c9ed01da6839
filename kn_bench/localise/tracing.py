"""Trace causal effects (Meng et al. 2022, section 2): which states of a run carry the answer?

Every state of a corrupted run, token by token and layer by layer, is restored to its clean value:
the P(answer) that this regains is its indirect effect.

    hidden      a layer's output
    mlp         what the MLPs of a window of layers add to the residual stream
    attention   what their attention adds
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kn_bench.localise.corruption import Kind, TracePrompt, corrupt
from kn_bench.localise.patching import Patch, PatchedRun, restore
from kn_bench.model.language_model import LanguageModel

KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")


@dataclass(frozen=True)
class Trace:
    """Trace of one prompt.

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
) -> list[Trace]:
    """Restore every state of every prompt.

    Args:
        noises: what is added to the embeddings of each prompt's subject; see
            :func:`kn_bench.localise.corruption.noise`.
        kinds: what to restore.
        window: layers restored at once for MLP and attention outputs (Meng et al.: 10).
        replace: the noise replaces the embeddings instead of being added.
    """

    def compute(batch: list[int]) -> list[Trace]:
        corrupted = corrupt(
            lm, [prompts[i] for i in batch], [noises[i] for i in batch], replace=replace
        )
        states = list(_states(lm.n_layers, corrupted.prompts, kinds, window))
        regained = restore(corrupted, states).mean(1).cpu()
        scores = regained.reshape(len(batch), len(kinds), -1, lm.n_layers)
        return [
            Trace(prompts[i], tuple(kinds), scores[n], float(p[0]), float(p[1:].mean()))
            for n, (i, p) in enumerate(zip(batch, corrupted.probability.cpu(), strict=True))
        ]

    def state_bytes(i: int) -> int:
        # twice: the other half of a pass is for the restored runs
        rows = 1 + len(noises[i])
        states = 5 * lm.n_layers * len(prompts[i].ids) * lm.d_model
        return 2 * rows * states * lm.dtype.itemsize

    return lm.batcher.run(
        compute,
        range(len(prompts)),
        item_bytes=state_bytes,
        shape=lambda i: (len(prompts[i].ids), len(noises[i])),
        what="tracing, prompt",
    )


def windowed(kind: Kind, layer: int, token: int, n_layers: int, window: int) -> tuple[Patch, ...]:
    """Return the patches of one cell of a trace: one output, or a window of contributions.

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
