"""Reference editors that pin the definitions: what any method's figures are read against.

none              changes nothing: reliability 0, locality 1, overturn 0
oracle            a table that answers as the definitions ask: 1 on the first five criteria
in-context        the new fact stated in front of every prompt: a natural upper bound
random-rank-one   a random update as large as ROME's on the same request: a lower bound
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from kn_bench.cases.case import Case, Cloze, EditRequest
from kn_bench.editing.edit import (
    LookupEdit,
    LowRank,
    LowRankEdit,
    NoEdit,
    NotApplicable,
    PromptEdit,
    norm,
)
from kn_bench.editing.registry import edit_method
from kn_bench.model.language_model import LanguageModel

from .rome import Rome


class Nothing:
    """Changes nothing."""

    def edit(self, requests: Sequence[EditRequest]) -> list[NoEdit]:
        return [NoEdit() for _ in requests]


class Oracle:
    """Answers every probe as its criterion asks; for locality it leaves the model's own answer."""

    def edit(self, requests: Sequence[EditRequest]) -> list[LookupEdit]:
        """Answer the edited prompt alone: without the probes nothing else can be looked up."""
        return [LookupEdit(answers={request.cloze: request.target_new}) for request in requests]

    def edit_cases(self, cases: Sequence[Case]) -> list[LookupEdit]:
        """Answer the probes of each case as well."""
        return [LookupEdit(answers=_answers(case)) for case in cases]


def _answers(case: Case) -> dict[Cloze, tuple[str, ...]]:
    """Return the table of answers; in place of the old inverse the displaced subject stands."""
    answers: dict[Cloze, tuple[str, ...]] = {}
    for probe in case.probes:
        if probe.criterion != "locality":
            answer = probe.rejected if probe.kind == "old_inverse" else probe.expected
            answers[probe.cloze] = (*answers.get(probe.cloze, ()), answer)
    return answers


class InContext:
    """States the new fact, as the edited prompt would have it, in front of every prompt."""

    def edit(self, requests: Sequence[EditRequest]) -> list[PromptEdit]:
        return [PromptEdit(prefix=_stated(request)) for request in requests]


def _stated(request: EditRequest) -> str:
    text = request.cloze.fill(request.target_new)
    return text if text.endswith((".", "!", "?")) else f"{text}."


class RandomRankOne:
    """A random rank-one update at ROME's layer, as large as ROME's on the same request.

    On a masked model, where ROME is not defined, it lies at a third of the depth and is as large as
    KN-edit's change of one neuron: lambda_1 + lambda_2 = 9 times the layer's mean value row.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def edit(self, requests: Sequence[EditRequest]) -> list[LowRankEdit | NotApplicable]:
        """Return one update a request, drawn by its id; on a causal model where ROME has one."""
        sizes = self._like_rome(requests) if self.lm.is_causal else self._like_kn(requests)
        return [
            size if isinstance(size, NotApplicable) else self._drawn(request.id, *size)
            for request, size in zip(requests, sizes, strict=True)
        ]

    def _like_rome(
        self, requests: Sequence[EditRequest]
    ) -> list[tuple[int, float] | NotApplicable]:
        return [
            edit if isinstance(edit, NotApplicable) else (edit.updates[0].layer, norm(edit))
            for edit in Rome(self.lm).edit(requests)
        ]

    def _like_kn(self, requests: Sequence[EditRequest]) -> list[tuple[int, float]]:
        layer = self.lm.n_layers // 3
        row = float(self.lm.weight(layer).float().norm(dim=1).mean())
        return [(layer, KN_EDIT_ROWS * row)] * len(requests)

    def _drawn(self, request: str, layer: int, size: float) -> LowRankEdit:
        """Draw u and v on their spheres, then scale them: on the CPU, the same everywhere."""
        seed = int.from_bytes(hashlib.sha256(request.encode()).digest()[:8], "big")
        generator = torch.Generator().manual_seed(seed % 2**63)
        u = torch.randn(self.lm.d_mlp, 1, generator=generator, dtype=torch.float64)
        v = torch.randn(1, self.lm.d_model, generator=generator, dtype=torch.float64)
        u, v = u / u.norm(), v * (size / v.norm())
        exact = torch.promote_types(self.lm.dtype, torch.float32)
        update = LowRank(layer, u.to(self.lm.device, exact), v.to(self.lm.device, exact))
        return LowRankEdit(updates=(update,))


KN_EDIT_ROWS = 9.0
"""lambda_1 + lambda_2 of KN-edit (Dai et al. 2022)."""


@edit_method("none")
def none() -> Nothing:
    """No edit."""
    return Nothing()


@edit_method("oracle")
def oracle() -> Oracle:
    """A table of the right answers."""
    return Oracle()


@edit_method("in-context")
def in_context() -> InContext:
    """The new fact in the prompt."""
    return InContext()


@edit_method("random-rank-one", by_default=False)  # every method has its own control
def random_rank_one(language_model: LanguageModel) -> RandomRankOne:
    """A random update of ROME's size."""
    return RandomRankOne(language_model)
