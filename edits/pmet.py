"""PMET: the targets of the attention and of the MLP are found together, the MLP alone is written.

Li et al., "PMET: Precise Model Editing in a Transformer", AAAI 2024.

    delta   two, on what the MLP and on what the attention of the last edited layer give at the
            subject's last token; the likelihood's weight falls once the target is the likeliest
    D_l     R / sqrt(layers left) K_l^T (lambda C_l + K_l K_l^T)^-1, R of the MLP's output
"""

from __future__ import annotations

from dataclasses import dataclass

from kn_bench.editing.bounds import Count, Rate, Weight
from kn_bench.editing.family import ClosedFormSettings
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel

from .memit import Memit


@dataclass(frozen=True, kw_only=True)
class PmetSettings(ClosedFormSettings):
    """The family's, with PMET's published optimisation (gpt-j)."""

    mom2_update_weight: Rate = 6_000.0
    v_lr: Rate = 0.2
    v_num_grad_steps: Count = 30
    kl_factor: Weight = 1.0
    clamp_norm_factor: Rate = 0.75
    settled_nll_factor: Weight = 0.1


class Pmet(Memit):
    """PMET on one model."""

    place = "both"
    share = "sqrt"


@edit_method("pmet", models="causal", by_default=False, settings=PmetSettings)
def pmet(language_model: LanguageModel, settings: PmetSettings) -> Pmet:
    """PMET: every request a batch of its own, or many together."""
    return Pmet(language_model, settings)
