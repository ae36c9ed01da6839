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

from kn_bench.cases.case import EditRequest
from kn_bench.editing.edit import DenseEdit, NotApplicable, Notes
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
from kn_bench.model.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class FtMSettings(TuningSettings, Settings):
    """Those of the optimisation are inherited.

    Attributes:
        layers: whose down-projections, weight and bias, are tuned.
        batch_size: rows of many requests together that make an update; None for all.
    """

    layers: tuple[int, ...] = (0,)
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class FtLSettings(FtMSettings):
    """As FT-M's, with the bound that makes it FT-L: ROME's authors' choice for gpt2-xl."""

    norm_constraint: float | None = 5e-4


class FineTuning:
    """FT-L or FT-M on one model.

    Args:
        teacher_forced: FT-M's loss; else FT-L's, at the last prompt position alone.
    """

    def __init__(self, lm: LanguageModel, settings: FtMSettings, *, teacher_forced: bool) -> None:
        self.lm = lm
        self.settings = settings
        self.teacher_forced = teacher_forced

    def edit(self, requests: Sequence[EditRequest]) -> list[DenseEdit | NotApplicable]:
        """The change of weights of each request, tuned by itself.

        Raises:
            NotApplicable: on a masked model.
        """
        rows = self._rows(requests)
        made = iter(self._tune([[row] for row in rows if isinstance(row, TunedRow)]))
        return [row if isinstance(row, NotApplicable) else next(made) for row in rows]

    def edit_together(self, requests: Sequence[EditRequest]) -> DenseEdit:
        """One change of weights for all ``requests``.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        rows = []
        for row in self._rows(requests):
            if isinstance(row, NotApplicable):
                raise row
            rows.append(row)
        if self.settings.batch_size is None:
            return self._tune([rows])[0]
        order = batches(range(len(rows)), self.settings.batch_size)
        epochs = repeat(order, self.settings.num_steps)
        tuned = tune_in_batches(self.lm, self.settings.layers, rows, self.settings, epochs)
        return dense(self.lm, tuned, recorded(self.settings))

    def _rows(self, requests: Sequence[EditRequest]) -> list[TunedRow | NotApplicable]:
        if not self.lm.is_causal:
            raise NotApplicable("fine-tuning is defined here for causal models")
        forced = self.teacher_forced
        return [tuned_row(request, self.lm.tokens, teacher_forced=forced) for request in requests]

    def _tune(self, rows: Sequence[Sequence[TunedRow]]) -> list[DenseEdit]:
        h = self.settings
        settings = TuningSettings(**{f.name: getattr(h, f.name) for f in fields(TuningSettings)})
        return [
            dense(self.lm, tuned, recorded(h))
            for tuned in fine_tune(self.lm, h.layers, rows, settings)
        ]


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


def tuned_row(
    request: EditRequest, tokens: Tokens, *, teacher_forced: bool, closed: bool = False
) -> TunedRow | NotApplicable:
    """Return the prompt with its answer, encoded whole, or why that cannot be.

    Args:
        closed: the end-of-text token, where the model has one, is to follow the answer.
    """
    cloze = request.cloze
    if not cloze.answer_is_last:
        return NotApplicable("text follows the answer: a causal model cannot be asked for it")
    start = len(cloze.left) + len(cloze.gap_space)
    encoding = tokens.encode(cloze.left + cloze.gap_space + request.target_new)
    at = [i for i, (a, b) in enumerate(encoding.offsets) if b > start and a < b]
    if not at or encoding.offsets[at[0]][0] < len(cloze.left):
        return NotApplicable("the answer shares a token with the prompt")
    targets = encoding.ids[at[0] : at[-1] + 1]
    if closed and tokens.eos_id is not None:
        ids, reads = encoding.ids[: at[-1] + 1], tuple(range(at[0] - 1, at[-1] + 1))
        return TunedRow(ids, reads, (*targets, tokens.eos_id))
    if teacher_forced:
        return TunedRow(encoding.ids[: at[-1]], tuple(range(at[0] - 1, at[-1])), targets)
    return TunedRow(encoding.ids[: at[0]], (at[0] - 1,) * len(targets), targets)


@edit_method("ft-l", models="causal", by_default=False, settings=FtLSettings)
def ft_l(language_model: LanguageModel, settings: FtLSettings) -> FineTuning:
    """Fine-tuning within a bound on every weight."""
    return FineTuning(language_model, settings, teacher_forced=False)


@edit_method("ft-m", models="causal", by_default=False, settings=FtMSettings)
def ft_m(language_model: LanguageModel, settings: FtMSettings) -> FineTuning:
    """Fine-tuning on the answer's tokens."""
    return FineTuning(language_model, settings, teacher_forced=True)
