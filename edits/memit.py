"""MEMIT and EMMET: many facts in one update, spread over several layers, or exact at one.

Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023.
Gupta, Sajnani, Anumanchipalli, "A Unified Framework for Model Editing", 2024 (EMMET).

    z       output that the last edited layer is to have at the subject, by Adam as in ROME
    R_l     (z - h) / (layers left), h of the model as edited so far
    dW_l    R_l K^T (lambda C + K K^T)^-1, K the keys of all facts (bare prompt one half)

On the board each request is a batch of its own, as every method's edits are independent there;
``edit_together`` is what the methods were made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kn_bench.cases.case import EditRequest
from kn_bench.editing.edit import LowRank, LowRankEdit, NotApplicable
from kn_bench.editing.registry import edit_method
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.editing.rome.remembered import read_requests, solver_of, values_of
from kn_bench.editing.rome.spread import spread, whitened_coefficients
from kn_bench.model import embedded
from kn_bench.model.context_templates import LENGTHS
from kn_bench.model.corpus import Corpus
from kn_bench.model.language_model import LanguageModel

from .rome import Rome, hyperparameters


@dataclass(frozen=True, kw_only=True)
class MemitHyperparameters(ValueSettings):
    """The paper's hyperparameters; those of the optimisation of z are inherited.

    Attributes:
        layers: edited, from below.
        mom2_update_weight: lambda, the weight of C: of what is to be kept.
        context_template_length_params, context_seed, mom2_n_tokens: as for ROME.
        layers_from: where the choice of layers comes from; recorded with every edit.
    """

    layers: tuple[int, ...]
    mom2_update_weight: float = 15_000.0
    context_template_length_params: tuple[tuple[int, int], ...] = LENGTHS
    context_seed: int = 0
    mom2_n_tokens: int | None = None
    layers_from: str = "published"


_LLAMA_LIKE = MemitHyperparameters(layers=(4, 5, 6, 7, 8), v_weight_decay=1e-3, v_num_grad_steps=25)
KNOWN: dict[str, MemitHyperparameters] = {
    "gpt2-xl": MemitHyperparameters(
        layers=(13, 14, 15, 16, 17), mom2_update_weight=20_000.0, clamp_norm_factor=0.75
    ),
    "gpt-j-6b": MemitHyperparameters(layers=(3, 4, 5, 6, 7, 8), clamp_norm_factor=0.75),
    "llama-2-7b": _LLAMA_LIKE,
    "llama-3-8b": _LLAMA_LIKE,
    "meta-llama-3-8b": _LLAMA_LIKE,
    "mistral-7b": _LLAMA_LIKE,
}
"""By the beginning of a model's name, its organisation left out."""
DEFAULT_LAYERS = "default: up to five layers ending at ROME's"
EMBEDDED_WEIGHT = 30.0
"""lambda for the embedded models, whose layers are 0 and 1: on 24 to 28 known facts of tiny-gpt2
and tiny-llama reliability 1.00 and .63, locality .93 and .92."""


def memit_hyperparameters(lm: LanguageModel) -> MemitHyperparameters:
    """The published choice for ``lm``, or a stated default: up to five layers ending at ROME's."""
    name = lm.name.rstrip("/").rsplit("/", 1)[-1].lower()
    known = max((key for key in KNOWN if name.startswith(key)), key=len, default=None)
    if known is not None:
        return KNOWN[known]
    rome = hyperparameters(lm)
    top = min(max(rome.layer, 1), lm.n_layers - 2)
    tiny = lm.name in embedded.NAMES
    return MemitHyperparameters(
        layers=tuple(range(max(0, top - 4), top + 1)),
        layers_from="chosen on held-out cases" if tiny else DEFAULT_LAYERS,
        mom2_update_weight=EMBEDDED_WEIGHT if tiny else 15_000.0,
        context_template_length_params=rome.context_template_length_params,
        mom2_n_tokens=rome.mom2_n_tokens,
        **vars(rome.value_settings),
    )


class Memit:
    """MEMIT on one model; arguments as those of ROME."""

    def __init__(
        self,
        lm: LanguageModel,
        chosen: MemitHyperparameters | None = None,
        *,
        corpus: Corpus | None = None,
    ) -> None:
        self.lm = lm
        self.hyperparameters = chosen or memit_hyperparameters(lm)
        self.corpus = corpus

    def edit(self, requests: Sequence[EditRequest]) -> list[LowRankEdit | NotApplicable]:
        """One update a request, each as a batch of its own.

        Raises:
            NotApplicable: on a masked model.
        """
        problems = self._read(requests)
        groups = [[p] for p in problems if isinstance(p, ValueProblem)]
        made = iter(self._spread(groups) if groups else [])
        return [p if isinstance(p, NotApplicable) else next(made) for p in problems]

    def edit_together(self, requests: Sequence[EditRequest]) -> LowRankEdit:
        """One update for all ``requests``.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        problems = self._read(requests)
        refused = [p for p in problems if isinstance(p, NotApplicable)]
        if refused:
            raise refused[0]
        (edit,) = self._spread([[p for p in problems if isinstance(p, ValueProblem)]])
        return edit

    def _read(self, requests: Sequence[EditRequest]) -> list[ValueProblem | NotApplicable]:
        h = self.hyperparameters
        return read_requests(
            self.lm, requests, lengths=h.context_template_length_params, seed=h.context_seed
        )

    def _spread(self, groups: Sequence[Sequence[ValueProblem]]) -> list[LowRankEdit]:
        h = self.hyperparameters
        values = values_of(
            self.lm,
            h.layers[-1],
            [problem for group in groups for problem in group],
            h.value_settings,
            place="block",
        )
        solvers = {
            layer: solver_of(self.lm, layer, self.corpus, h.mom2_n_tokens) for layer in h.layers
        }
        edits = spread(
            self.lm,
            groups,
            [torch.stack([values[problem].v_star for problem in group]) for group in groups],
            h.layers,
            lambda layer, keys: whitened_coefficients(keys, solvers[layer], h.mom2_update_weight),
        )
        return [
            replace(
                edit,
                notes={
                    "final_loss": _mean_loss(group, values),
                    "layers_from": h.layers_from,
                    "corpus": solvers[h.layers[-1]].source,
                },
            )
            for edit, group in zip(edits, groups, strict=True)
        ]


def _mean_loss(group: Sequence[ValueProblem], values: dict[ValueProblem, Value]) -> float:
    return float(torch.stack([values[problem].losses[-1] for problem in group]).mean())


class Emmet(Rome):
    """EMMET: ROME's equality for many facts at once. Of a single fact it is R-ROME.

    Attributes:
        lambda_e: ridge of the batch's own keys; none for a single fact.
    """

    lambda_e = 0.1

    def edit_together(self, requests: Sequence[EditRequest]) -> LowRankEdit:
        """One update for all ``requests``.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        h = self.hyperparameters
        problems = read_requests(
            self.lm, requests, lengths=h.context_template_length_params, seed=h.context_seed
        )
        for problem in problems:
            if isinstance(problem, NotApplicable):
                raise problem
        found = list(values_of(self.lm, h.layer, problems, h.value_settings).values())
        keys = torch.stack([value.keys.mean(0) for value in found])
        missing = torch.stack([value.v_star - value.outputs.mean(0) for value in found])
        solver = solver_of(self.lm, h.layer, self.corpus, h.mom2_n_tokens)
        ridge = self.lambda_e if len(found) > 1 else 0.0
        u = whitened_coefficients(keys, solver, ridge).to(keys.dtype)
        return LowRankEdit(updates=(LowRank(h.layer, u, missing),))


@edit_method("memit", models="causal", by_default=False)
def memit(language_model: LanguageModel) -> Memit:
    """MEMIT, every request a batch of its own."""
    return Memit(language_model)
