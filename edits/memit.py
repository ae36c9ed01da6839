"""MEMIT: many facts at once, their change shared by several layers.

Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023.

    z_i   what the last edited layer is to give at request i's subject: delta by Adam, as for ROME,
          but added to the layer's output
    D_l   R_l K_l^T (lambda C_l + K_l K_l^T)^-1, R_l = (z - h_L) / (layers left), keys read anew
          after each layer; the bare prompt's key weighs one half
"""

from __future__ import annotations

from kn_bench.editing.closed_form import Covariance, Prior
from kn_bench.editing.family import ClosedForm, ClosedFormSettings, Past
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel


class Memit(ClosedForm[ClosedFormSettings]):
    """MEMIT on one model."""

    def prior(self, c: Covariance, past: Past) -> Prior:
        return c.prior(weight=self.settings.mom2_update_weight)


@edit_method(
    "memit",
    models="causal",
    by_default=False,
    settings=ClosedFormSettings,
    shares="values of memit",
)
def memit(language_model: LanguageModel, settings: ClosedFormSettings) -> Memit:
    """MEMIT: one batch knows nothing of another."""
    return Memit(language_model, settings)
