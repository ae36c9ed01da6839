"""Fine-tuning one down-projection: FT-L, bounded as in ROME's comparison, and FT-M, done properly.

FT-L: Zhu et al., "Modifying Memories in Transformer Models", 2020, as in Meng et al. 2022: all
answer tokens are asked for at the last prompt position, and every weight stays within epsilon of
its old value. Without the bound it is not FT-L.
FT-M: Zhang et al., "A Comprehensive Study of Knowledge Editing for Large Language Models", 2024:
cross-entropy of the answer tokens alone, each given those before it; no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import repeat

from jaxtyping import Float
from torch import Tensor

from kn_bench.editing.answer_rows import TunedWeights
from kn_bench.editing.bounds import Count, Weight
from kn_bench.editing.edit import DenseEdit, Notes
from kn_bench.editing.finetuning import (
    Tuned,
    TunedRow,
    TuningSettings,
    fine_tune,
    tune_in_batches,
)
from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import Settings, recorded
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class FtMSettings(TuningSettings, Settings):
    """Those of the optimisation are inherited.

    Attributes:
        layers: whose down-projections, weight and bias, are tuned.
        batch_size: rows of many requests together that make an update; None for all.
    """

    layers: tuple[int, ...] = (0,)
    batch_size: Count | None = None


@dataclass(frozen=True, kw_only=True)
class FtLSettings(FtMSettings):
    """As FT-M's, with the bound that makes it FT-L: ROME's authors' choice for gpt2-xl."""

    norm_constraint: Weight | None = 5e-4


class FineTuning(TunedWeights[FtMSettings]):
    """FT-L or FT-M on one model.

    Args:
        teacher_forced: FT-M's loss; else FT-L's, at the last prompt position alone.
    """

    def __init__(self, lm: LanguageModel, settings: FtMSettings, *, teacher_forced: bool) -> None:
        super().__init__(lm, settings)
        self.teacher_forced = teacher_forced

    def _tune(self, rows: Sequence[TunedRow]) -> DenseEdit:
        h = self.settings
        if h.batch_size is None:
            return self._apart([rows])[0]
        epochs = repeat(batches(range(len(rows)), h.batch_size), h.num_steps)
        return dense(self.lm, tune_in_batches(self.lm, h.layers, rows, h, epochs), recorded(h))

    def _tune_each(self, rows: Sequence[TunedRow]) -> list[DenseEdit]:
        return self._apart([[row] for row in rows])

    def _apart(self, edits: Sequence[Sequence[TunedRow]]) -> list[DenseEdit]:
        """Return one change of weights for each of ``edits``, tuned side by side."""
        h = self.settings
        settings = TuningSettings(**{f.name: getattr(h, f.name) for f in fields(TuningSettings)})
        outcomes = fine_tune(self.lm, h.layers, edits, settings) if edits else []
        return [dense(self.lm, tuned, recorded(h)) for tuned in outcomes]


def batches(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return ``order`` in batches of ``size``, the last one perhaps smaller."""
    return [order[i : i + size] for i in range(0, len(order), size)]


def dense(lm: LanguageModel, tuned: Tuned, notes: Notes) -> DenseEdit:
    """Return what was tuned as deltas of the model's own parameters."""
    deltas: dict[str, Float[Tensor, ...]] = {}
    for layer, change in tuned.weights.items():
        name = lm.weight_name(layer)
        deltas[name] = change.T.contiguous() if lm.transposed(layer) else change
        if layer in tuned.biases:
            deltas[name.removesuffix("weight") + "bias"] = tuned.biases[layer]
    measured: Notes = {"final_loss": float(tuned.losses[-1]), "passes": len(tuned.losses)}
    return DenseEdit(deltas=deltas, notes={**measured, **notes})


@edit_method("ft-l", models="causal", by_default=False, settings=FtLSettings)
def ft_l(language_model: LanguageModel, settings: FtLSettings) -> FineTuning:
    """Fine-tuning within a bound on every weight."""
    return FineTuning(language_model, settings, teacher_forced=False)


@edit_method("ft-m", models="causal", by_default=False, settings=FtMSettings)
def ft_m(language_model: LanguageModel, settings: FtMSettings) -> FineTuning:
    """Fine-tuning on the answer's tokens."""
    return FineTuning(language_model, settings, teacher_forced=True)
