"""MEMIT-seq: MEMIT that also keeps what earlier steps have written.

As in Fang et al., "AlphaEdit", ICLR 2025 (its baseline of this name).

    D_l   R_l K_l^T (lambda C_l + Sigma_l + K_l K_l^T)^-1, then Sigma_l += K_l K_l^T
"""

from __future__ import annotations

from kn_bench.editing.closed_form import Covariance, Prior
from kn_bench.editing.family import Carried, ClosedFormSettings, Past
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel


class MemitSeq(Carried[ClosedFormSettings]):
    """MEMIT-seq on one model."""

    def prior(self, c: Covariance, past: Past) -> Prior:
        return c.prior(weight=self.settings.mom2_update_weight)


@edit_method(
    "memit-seq",
    models="causal",
    by_default=False,
    settings=ClosedFormSettings,
    shares="values of memit",
)
def memit_seq(language_model: LanguageModel, settings: ClosedFormSettings) -> MemitSeq:
    """MEMIT with the keys of earlier steps kept."""
    return MemitSeq(language_model, settings)
