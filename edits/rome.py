"""ROME and R-ROME: one fact, one rank-one update of one down-projection.

Meng et al., "Locating and Editing Factual Associations in GPT", NeurIPS 2022.
Gupta, Rao, Anumanchipalli, "Rebuilding ROME: Resolving Model Collapse during Sequential Model
Editing", 2024 (R-ROME).

    k       mean over contexts of the key at the subject's last token
    u       C^-1 k / |C^-1 k|                          rome-no-c:  k / |k|
    v_star  v_0 + delta, delta by Adam so that the model answers target_new
    W'      W + u (v_star - k_p W) / (k_p u)           rome: k_p of the bare prompt; r-rome: k_p = k

The three methods share contexts, keys and v_star: on the same cases the optimisation is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kn_bench.cases.case import EditRequest
from kn_bench.editing.bounds import Count, Lengths
from kn_bench.editing.closed_form import Covariance
from kn_bench.editing.edit import LowRankEdit, NotApplicable, Notes, norm
from kn_bench.editing.registry import edit_method
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.editing.rome.remembered import covariance_of, read_requests, refuse_lengths, values_of
from kn_bench.editing.rome.update import KeyChoice, rank_one
from kn_bench.editing.settings import Settings, recorded, settings_for
from kn_bench.model.context_templates import LENGTHS
from kn_bench.model.corpus import Corpus
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class RomeSettings(ValueSettings, Settings):
    """The paper's hyperparameters; those of the optimisation of delta are inherited.

    Attributes:
        layer: whose down-projection is edited.
        context_template_length_params: (tokens, how many) of the generated contexts.
        context_seed: seed of their sampling.
        mom2_adjustment: whether u is made with C; without it the method has another name.
        mom2_n_tokens: tokens of the corpus that C is taken over; None for all.
        u_from, k_p_from: the key u is made of, and the key of the denominator and of W k_p.
    """

    layer: int
    context_template_length_params: Lengths = LENGTHS
    context_seed: int = 0
    mom2_adjustment: bool = True
    mom2_n_tokens: Count | None = None
    u_from: KeyChoice = "mean"
    k_p_from: KeyChoice = "bare"

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return a layer at a third of the depth, where the published layers of GPT models lie.

        For a model of your own, find the layer by a sweep: ``kn-bench tune rome MODEL``.
        """
        gated = lm.architecture.down.endswith("down_proj")
        return {
            "layer": lm.n_layers // 3,
            "settings_from": "default: a third of the depth",
            **({"v_weight_decay": 1e-3, "v_num_grad_steps": 25} if gated else {}),
        }

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        refuse_lengths(lm, self.context_template_length_params)


class Rome:
    """ROME on one model.

    Args:
        lm: the model; untouched.
        settings: those of the model's preset by default.
        corpus: what C is taken over; the model's chosen text by default.
    """

    def __init__(
        self,
        lm: LanguageModel,
        settings: RomeSettings | None = None,
        *,
        corpus: Corpus | None = None,
    ) -> None:
        self.lm = lm
        self.settings = settings or settings_for("rome", RomeSettings, lm)
        self.corpus = corpus

    def edit(self, requests: Sequence[EditRequest]) -> list[LowRankEdit | NotApplicable]:
        """Return one rank-one update a request, or why there is none.

        Raises:
            NotApplicable: on a masked model.
        """
        h = self.settings
        problems = read_requests(
            self.lm, requests, lengths=h.context_template_length_params, seed=h.context_seed
        )
        solver = None
        # C before the targets: a calibration stops at these, and must have seen how long C takes
        if h.mom2_adjustment and any(isinstance(p, ValueProblem) for p in problems):
            solver = covariance_of(self.lm, h.layer, self.corpus, h.mom2_n_tokens)
        values = values_of(self.lm, h.layer, problems, h.value_settings)
        return [
            p if isinstance(p, NotApplicable) else self._rank_one(values[p], solver)
            for p in problems
        ]

    def _rank_one(self, value: Value, solver: Covariance | None) -> LowRankEdit:
        h = self.settings
        solved = rank_one(value, h.layer, solver=solver, u_from=h.u_from, k_p_from=h.k_p_from)
        notes: Notes = {
            "layer": h.layer,
            "denominator": solved.denominator,
            "final_loss": float(value.losses[-1]),
            "passes": len(value.losses),
            **recorded(h),
        }
        if solver is not None:
            notes["corpus"] = solver.source
        edit = LowRankEdit(updates=(solved.update,), notes=notes)
        weight = torch.linalg.matrix_norm(self.lm.weight(h.layer).float())
        notes["relative_norm"] = norm(edit) / float(weight)
        return edit


@edit_method("rome", models="causal", settings=RomeSettings, shares="values of rome")
def rome(language_model: LanguageModel, settings: RomeSettings) -> Rome:
    """ROME as published: u of the mean key, the bare prompt's key in the denominator."""
    return Rome(language_model, settings)


@edit_method("rome-no-c", models="causal", settings=RomeSettings, shares="values of rome")
def rome_no_c(language_model: LanguageModel, settings: RomeSettings) -> Rome:
    """ROME with u along the key itself."""
    return Rome(language_model, replace(settings, mom2_adjustment=False))


@edit_method("r-rome", models="causal", settings=RomeSettings, shares="values of rome")
def r_rome(language_model: LanguageModel, settings: RomeSettings) -> Rome:
    """R-ROME: the mean key in all three places."""
    return Rome(language_model, replace(settings, k_p_from="mean"))
