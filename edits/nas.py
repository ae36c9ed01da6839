"""NAS: AlphaEdit with every target's norm set to the model's own, the norm-anchor scaling.

"Norm-Anchor Scaling", SasyaTitech/NAS, 2025. Other methods have it by ``--set METHOD.norm_anchor``.

    v*    v_0 + delta, v_0 the MLP's output at the subject; v* <- m v* / |v*|, and no edit where
          |v*| > 2 m; m the mean |v*| of many edits of the unedited model
"""

from __future__ import annotations

from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import SettingError
from kn_bench.model.language_model import LanguageModel

from .alphaedit import AlphaEdit, AlphaEditSettings


@edit_method("nas", models="causal", by_default=False, settings=AlphaEditSettings)
def nas(language_model: LanguageModel, settings: AlphaEditSettings) -> AlphaEdit:
    """AlphaEdit with anchored norms."""
    if not settings.norm_anchor:
        raise SettingError(
            f"nas on {language_model.name}: expected m, the mean norm of the targets; give it by "
            "--set nas.norm_anchor=M, or measure it by `kn-bench tune nas MODEL`"
        )
    return AlphaEdit(language_model, settings)
