"""MEMIT-Merge: facts of one subject in one batch share a target and a key.

Dong et al., "MEMIT-Merge: Addressing MEMIT's Key-Value Conflicts in Same-Subject Batch Editing",
2025. Their keys are alike, so that targets of their own contradict each other; here one delta has
the sum of the facts' losses.
"""

from __future__ import annotations

from kn_bench.editing.family import ClosedFormSettings
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel

from .memit import Memit


class MemitMerge(Memit):
    """MEMIT-Merge on one model."""

    merges = True


@edit_method(
    "memit-merge",
    models="causal",
    by_default=False,
    settings=ClosedFormSettings,
    shares="values of memit",
)
def memit_merge(language_model: LanguageModel, settings: ClosedFormSettings) -> MemitMerge:
    """MEMIT with one target a subject."""
    return MemitMerge(language_model, settings)
