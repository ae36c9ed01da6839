"""NAS: AlphaEdit with every target's norm set to the model's own, the norm-anchor scaling.

"Norm-Anchor Scaling", SasyaTitech/NAS, 2025. Other methods have it by ``--set METHOD.norm_anchor``.

    v*    v_0 + delta, v_0 the MLP's output at the subject; v* <- m v* / |v*|, and no edit where
          |v*| > 2 m; m the mean |v*| of many edits of the unedited model, measured before the first
          edit where it is not given
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kn_bench.editing.bounds import Count
from kn_bench.editing.norm_anchor import measured_norm
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel

from .alphaedit import AlphaEdit, AlphaEditSettings


@dataclass(frozen=True, kw_only=True)
class NasSettings(AlphaEditSettings):
    """AlphaEdit's, and how many targets m is the mean of, where ``norm_anchor`` is 0."""

    norm_solves: Count = 1_000


@edit_method("nas", models="causal", by_default=False, settings=NasSettings)
def nas(language_model: LanguageModel, settings: NasSettings) -> AlphaEdit:
    """AlphaEdit with anchored norms."""
    if not settings.norm_anchor:
        m = measured_norm(language_model, settings, settings.norm_solves, place=AlphaEdit.place)
        settings = replace(settings, norm_anchor=m)
    return AlphaEdit(language_model, settings)
