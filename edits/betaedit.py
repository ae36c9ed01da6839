"""BetaEdit: AlphaEdit with C in the solve as well, and a null space that follows the edits.

lbq8942/BetaEdit, 2025.

    D_l   [P (K_l K_l^T + Sigma_l + lambda_1 C_l) + lambda_2 I]^-1 P K_l R_l^T, Sigma_l += K_l K_l^T
    P     every tau edits anew, of (Sigma_l / edits + lambda_1 C_l) / (lambda_1 + 1): in the solve
          Sigma is not divided, so that the two uses weigh C differently, as published
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kn_bench.editing.bounds import Count, Rate, Weight
from kn_bench.editing.closed_form import Covariance, Prior
from kn_bench.editing.family import Carried, ClosedFormSettings, Past
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class BetaEditSettings(ClosedFormSettings):
    """The family's (lambda is not used), lambda_1, lambda_2, tau and the null space's threshold."""

    solvable_by: ClassVar = ("lambda_1", "lambda_2")
    lambda_1: Weight = 3_000.0
    lambda_2: Weight = 10.0
    tau: Count = 1_000
    nullspace_threshold: Rate = 2e-2


class BetaEdit(Carried[BetaEditSettings]):
    """BetaEdit on one model."""

    def prior(self, c: Covariance, past: Past) -> Prior:
        h = self.settings
        used = self.extra(0, past)
        if not used:
            return c.prior(weight=h.lambda_1, ridge=h.lambda_2, null_below=h.nullspace_threshold)
        keys, edits = used["used_keys"], int(used["used_edits"])

        def renewed() -> Prior:
            known = h.lambda_1 * c.matrix.double()
            text_and_edits = (keys.T @ keys / edits + known) / (h.lambda_1 + 1)
            basis = Covariance(text_and_edits).null_space(h.nullspace_threshold)
            return Prior(known, h.lambda_2, basis)

        return c.remembered((h, edits, tuple(keys.sum(1).tolist())), renewed)

    def extra(self, layer: int, past: Past) -> Mapping[str, Tensor]:
        """Return the keys that the null space in use was taken over, and of how many edits."""
        last = int(past.extra["used_edits"]) if past.extra else 0
        if past.keys is not None and past.edits - last >= self.settings.tau:
            return {"used_keys": past.keys, "used_edits": torch.tensor(past.edits)}
        return past.extra


@edit_method("betaedit", models="causal", by_default=False, settings=BetaEditSettings)
def betaedit(language_model: LanguageModel, settings: BetaEditSettings) -> BetaEdit:
    """BetaEdit, with the keys of earlier steps kept."""
    return BetaEdit(language_model, settings)
