"""ENCORE: MEMIT-seq with a bound on the update's norm, and targets that are not pushed too far.

Gupta et al., "Lifelong Sequential Knowledge Editing without Model Degradation", 2025.

    z     stops a few passes after the target is the likeliest in every context
    D_l   R_l K_l^T (lambda C_l + beta I + Sigma_l + K_l K_l^T)^-1, then Sigma_l += K_l K_l^T
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kn_bench.editing.bounds import Weight, Whole
from kn_bench.editing.closed_form import Covariance, Prior
from kn_bench.editing.family import Carried, ClosedFormSettings, Past
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EncoreSettings(ClosedFormSettings):
    """The family's, and beta, the weight of the update's norm."""

    solvable_by: ClassVar = ("mom2_update_weight", "update_norm_lambda")
    mom2_update_weight: Weight = 15_000.0
    update_norm_lambda: Weight = 10.0
    stop_after_rank_1: Whole = 4


class Encore(Carried[EncoreSettings]):
    """ENCORE on one model."""

    def prior(self, c: Covariance, past: Past) -> Prior:
        h = self.settings
        return c.prior(weight=h.mom2_update_weight, ridge=h.update_norm_lambda)


@edit_method("encore", models="causal", by_default=False, settings=EncoreSettings)
def encore(language_model: LanguageModel, settings: EncoreSettings) -> Encore:
    """ENCORE, with the keys of earlier steps kept."""
    return Encore(language_model, settings)
