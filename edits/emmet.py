"""EMMET: ROME's equality for many facts at once.

Gupta, Sajnani, Anumanchipalli, "A Unified Framework for Model Editing", EMNLP 2024.

    D   R (K^T B^-1 K + lambda_e I)^-1 K^T B^-1, B = lambda C + mu I; of one fact no lambda_e
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kn_bench.editing.bounds import Weight
from kn_bench.editing.closed_form import Covariance, Prior
from kn_bench.editing.family import ClosedForm, ClosedFormSettings, Past
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EmmetSettings(ClosedFormSettings):
    """The family's, and two ridges: of the batch's own keys, and mu, of all directions."""

    solvable_by: ClassVar = ("mom2_update_weight", "update_norm_lambda")
    mom2_update_weight: Weight = 1.0
    emmet_lambda: Weight = 0.1
    update_norm_lambda: Weight = 0.0


class Emmet(ClosedForm[EmmetSettings]):
    """EMMET on one model. Of one fact it is R-ROME, with the same choice of keys."""

    def prior(self, c: Covariance, past: Past) -> Prior:
        h = self.settings
        return c.prior(weight=h.mom2_update_weight, ridge=h.update_norm_lambda)

    def slack(self, n: int) -> float:
        return self.settings.emmet_lambda if n > 1 else 0.0


@edit_method("emmet", models="causal", by_default=False, settings=EmmetSettings)
def emmet(language_model: LanguageModel, settings: EmmetSettings) -> Emmet:
    """EMMET: every target is met, as far as lambda_e lets it."""
    return Emmet(language_model, settings)
