"""Fine-tuning one down-projection: FT-L, bounded as in ROME's comparison, and FT-M, done properly.

FT-L: Zhu et al., "Modifying Memories in Transformer Models", 2020, as in Meng et al. 2022: all
answer tokens are asked for at the last prompt position, and every weight stays within epsilon of
its old value. Without the bound it is not FT-L.
FT-M: Zhang et al., "A Comprehensive Study of Knowledge Editing for Large Language Models", 2024:
cross-entropy of the answer tokens alone, each given those before it; no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from torch import Tensor

from kn_bench.cases.case import EditRequest
from kn_bench.editing.edit import DenseEdit, NotApplicable
from kn_bench.editing.finetuning import Tuned, TunedRow, TuningSettings, fine_tune
from kn_bench.editing.registry import edit_method
from kn_bench.model import embedded
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class FtHyperparameters(TuningSettings):
    """Those of the optimisation are inherited.

    Attributes:
        layers: whose down-projections, weight and bias, are tuned.
        teacher_forced: FT-M's loss; else FT-L's, at the last prompt position alone.
        chosen_from: where the choice comes from; recorded with every edit.
    """

    layers: tuple[int, ...]
    teacher_forced: bool
    chosen_from: str = "default: layer 0, epsilon as for gpt2-xl"


FT_L = FtHyperparameters(layers=(0,), teacher_forced=False, norm_constraint=5e-4)
"""ROME's choice for gpt2-xl; the default elsewhere, and said so with every edit."""
FT_M = FtHyperparameters(layers=(0,), teacher_forced=True, chosen_from="default: layer 0")
HELD_OUT = "chosen on held-out cases"
EMBEDDED_L = replace(FT_L, lr=2e-2, norm_constraint=2e-2, chosen_from=HELD_OUT)
"""tiny-gpt2 and tiny-llama, 28 and 24 known facts: reliability .93 and .79, locality .66 and .81;
within the published 5e-4 nothing changes."""
EMBEDDED_M = replace(FT_M, lr=5e-3, chosen_from=HELD_OUT)
"""Reliability 1.00 on both, locality .53 and .43."""


class FineTuning:
    """FT-L or FT-M on one model."""

    def __init__(self, lm: LanguageModel, chosen: FtHyperparameters) -> None:
        self.lm = lm
        self.hyperparameters = chosen

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
        return self._tune([rows])[0]

    def _rows(self, requests: Sequence[EditRequest]) -> list[TunedRow | NotApplicable]:
        if not self.lm.is_causal:
            raise NotApplicable("fine-tuning is defined here for causal models")
        forced = self.hyperparameters.teacher_forced
        return [_row(request, self.lm.tokens, teacher_forced=forced) for request in requests]

    def _tune(self, rows: Sequence[Sequence[TunedRow]]) -> list[DenseEdit]:
        h = self.hyperparameters
        settings = TuningSettings(**{f.name: getattr(h, f.name) for f in fields(TuningSettings)})
        return [self._dense(tuned) for tuned in fine_tune(self.lm, h.layers, rows, settings)]

    def _dense(self, tuned: Tuned) -> DenseEdit:
        deltas: dict[str, Float[Tensor, ...]] = {}
        for layer, change in tuned.weights.items():
            name = self.lm.weight_name(layer)
            deltas[name] = change.T.contiguous() if self.lm.transposed(layer) else change
            if layer in tuned.biases:
                deltas[name.removesuffix("weight") + "bias"] = tuned.biases[layer]
        return DenseEdit(
            deltas=deltas,
            notes={
                "final_loss": float(tuned.losses[-1]),
                "passes": len(tuned.losses),
                "chosen_from": self.hyperparameters.chosen_from,
            },
        )


def _row(request: EditRequest, tokens: Tokens, *, teacher_forced: bool) -> TunedRow | NotApplicable:
    """The prompt with its answer, encoded whole."""
    cloze = request.cloze
    if not cloze.answer_is_last:
        return NotApplicable("text follows the answer: a causal model cannot be asked for it")
    start = len(cloze.left) + len(cloze.gap_space)
    encoding = tokens.encode(cloze.left + cloze.gap_space + request.target_new)
    at = [i for i, (a, b) in enumerate(encoding.offsets) if b > start and a < b]
    if not at or encoding.offsets[at[0]][0] < len(cloze.left):
        return NotApplicable("the answer shares a token with the prompt")
    targets = encoding.ids[at[0] : at[-1] + 1]
    if teacher_forced:
        return TunedRow(encoding.ids[: at[-1]], tuple(range(at[0] - 1, at[-1])), targets)
    return TunedRow(encoding.ids[: at[0]], (at[0] - 1,) * len(targets), targets)


@edit_method("ft-l", models="causal", by_default=False)
def ft_l(language_model: LanguageModel) -> FineTuning:
    """Fine-tuning within a bound on every weight."""
    tiny = language_model.name in embedded.NAMES
    return FineTuning(language_model, EMBEDDED_L if tiny else FT_L)


@edit_method("ft-m", models="causal", by_default=False)
def ft_m(language_model: LanguageModel) -> FineTuning:
    """Fine-tuning on the answer's tokens."""
    tiny = language_model.name in embedded.NAMES
    return FineTuning(language_model, EMBEDDED_M if tiny else FT_M)
