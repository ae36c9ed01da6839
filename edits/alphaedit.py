"""AlphaEdit: updates kept in the directions that other text does not use.

Fang et al., "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models", ICLR 2025.

    P     projection on the eigenvectors of C whose eigenvalues are small
    D_l   [P (K_l K_l^T + Sigma_l) + L2 I]^-1 P K_l R_l^T, then Sigma_l += K_l K_l^T; R as in MEMIT
"""

from __future__ import annotations

from dataclasses import dataclass

from kn_bench.editing.bounds import Rate
from kn_bench.editing.closed_form import Covariance, Prior
from kn_bench.editing.family import Carried, ClosedFormSettings, Past
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class AlphaEditSettings(ClosedFormSettings):
    """The family's (lambda is not used), the threshold of the null space, and the ridge L2."""

    nullspace_threshold: Rate = 2e-2
    L2: Rate = 10.0


class AlphaEdit(Carried[AlphaEditSettings]):
    """AlphaEdit on one model."""

    def prior(self, c: Covariance, past: Past) -> Prior:
        return c.prior(ridge=self.settings.L2, null_below=self.settings.nullspace_threshold)


@edit_method("alphaedit", models="causal", by_default=False, settings=AlphaEditSettings)
def alphaedit(language_model: LanguageModel, settings: AlphaEditSettings) -> AlphaEdit:
    """AlphaEdit, with the keys of earlier steps kept."""
    return AlphaEdit(language_model, settings)
