"""MEMIT's family: targets by optimisation, updates in closed form, one or several layers.

A method is a class that says what is to be left alone::

    class Memit(ClosedForm):
        def prior(self, c, past):
            return c.prior(weight=self.settings.mom2_update_weight)

:class:`ClosedForm` edits each request on its own, or many together; :class:`Carried` also carries
the keys of earlier steps through a sequence, as a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import EditRequest
from kn_bench.editing.bounds import Count, Lengths, Rate
from kn_bench.editing.closed_form import Covariance, Factors, Prior, joined
from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LowRank,
    LowRankEdit,
    NotApplicable,
    Notes,
)
from kn_bench.editing.maps import UpdateMap, prune, rect, sphere
from kn_bench.editing.method import State
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.editing.rome.remembered import (
    covariances_of,
    read_requests,
    refuse_lengths,
    values_of,
)
from kn_bench.editing.rome.spread import Mean, Share, Spread, spread
from kn_bench.editing.settings import SettingError, Settings, recorded
from kn_bench.model.context_templates import LENGTHS
from kn_bench.model.corpus import Corpus
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.ragged import Place


@dataclass(frozen=True, kw_only=True)
class ClosedFormSettings(ValueSettings, Settings):
    """What all of the family have; those of the optimisation of z are inherited.

    Attributes:
        layers: edited, from below.
        mom2_update_weight: lambda, the weight of C: of what is to be kept.
        context_template_length_params: (tokens, how many) of the generated contexts.
        context_seed: seed of their sampling.
        context_mean: how keys are averaged over contexts.
        mom2_n_tokens: tokens of the corpus that C is taken over; None for all.
        update_map: RECT, PRUNE or SPHERE on the finished update.
        solvable_by: parameters of which one must be above 0, or nothing can be solved.
    """

    solvable_by: ClassVar[tuple[str, ...]] = ()
    layers: tuple[int, ...]
    mom2_update_weight: Rate = 15_000.0
    context_template_length_params: Lengths = LENGTHS
    context_seed: int = 0
    context_mean: Mean = "grouped"
    mom2_n_tokens: Count | None = None
    update_map: UpdateMap = "none"

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return up to five layers that end at a third of the depth, as near as can be."""
        top = min(max(lm.n_layers // 3, 1), lm.n_layers - 2)
        gated = lm.architecture.down.endswith("down_proj")
        return {
            "layers": tuple(range(max(0, top - 4), top + 1)),
            "settings_from": "default: up to five layers ending at a third of the depth",
            **({"v_weight_decay": 1e-3, "v_num_grad_steps": 25} if gated else {}),
        }

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        refuse_lengths(lm, self.context_template_length_params)
        names = self.solvable_by
        if names and not any(getattr(self, name) for name in names):
            raise SettingError(f"{' and '.join(names)} are 0: expected one of them above 0; set it")


S = TypeVar("S", bound=ClosedFormSettings)


@dataclass(frozen=True)
class Past:
    """What a layer has of the steps before.

    Attributes:
        keys: with the same sum of k^T k as the keys of all requests before; None before the first.
        edits: how many requests there were.
        extra: further tensors of the layer that a method carries.
    """

    keys: Float[Tensor, "earlier d_mlp"] | None = None
    edits: int = 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class ClosedForm(Generic[S]):
    """A method of the family on one model.

    Args:
        lm: the model; untouched.
        settings: see the method's class of settings.
        corpus: what C is taken over; the model's chosen text by default.
    """

    place: ClassVar[Place] = "block"
    share: ClassVar[Share] = "linear"
    merges: ClassVar[bool] = False
    """Whether facts of one subject share a target and a key (MEMIT-Merge)."""

    def __init__(self, lm: LanguageModel, settings: S, *, corpus: Corpus | None = None) -> None:
        self.lm = lm
        self.settings = settings
        self.corpus = corpus

    def prior(self, c: Covariance, past: Past) -> Prior:
        """Return what an update of a layer is to leave alone, given C and the steps before."""
        raise NotImplementedError

    def slack(self, n: int) -> float:
        """Return 1 for least squares; see the closed form. ``n`` is the size of the batch."""
        return 1.0

    # -- what the engine asks ---------------------------------------------------------------

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        """Return one update a request, each a batch of its own.

        Raises:
            NotApplicable: on a masked model.
        """
        problems = self._read(requests)
        groups = [[p] for p in problems if isinstance(p, ValueProblem)]
        edits = iter(self._step(groups, {})[0] if groups else [])
        return [p if isinstance(p, NotApplicable) else next(edits) for p in problems]

    def edit_together(self, requests: Sequence[EditRequest]) -> Edit:
        """Return one update for all ``requests``.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        return self._together(requests, {})[0]

    def refusals(self, requests: Sequence[EditRequest]) -> list[NotApplicable | None]:
        """Return why the method is not defined for a request, or None."""
        return [p if isinstance(p, NotApplicable) else None for p in self._read(requests)]

    # -- one step ---------------------------------------------------------------------------

    def _read(self, requests: Sequence[EditRequest]) -> list[ValueProblem | NotApplicable]:
        h = self.settings
        return read_requests(
            self.lm, requests, lengths=h.context_template_length_params, seed=h.context_seed
        )

    def _together(self, requests: Sequence[EditRequest], state: State) -> tuple[Edit, Spread]:
        problems: list[ValueProblem] = []
        for problem in self._read(requests):
            if isinstance(problem, NotApplicable):
                raise problem
            problems.append(problem)
        if self.merges:
            problems = merged(problems, [request.subject for request in requests])
        edits, spreads = self._step([problems], state)
        return edits[0], spreads[0]

    def _step(
        self, groups: Sequence[Sequence[ValueProblem]], state: State
    ) -> tuple[list[Edit], list[Spread]]:
        h = self.settings
        flat = [problem for group in groups for problem in group]
        # C before the targets: a calibration stops at these, and must have seen how long C takes
        cs = covariances_of(self.lm, h.layers, self.corpus, h.mom2_n_tokens)
        values = values_of(self.lm, h.layers[-1], flat, h.value_settings, place=self.place)

        def coefficients(layer: int, keys: Float[Tensor, "n d_mlp"]) -> Float[Tensor, "d_mlp n"]:
            past = past_of(state, layer)
            prior = self.prior(cs[layer], past)
            return prior.coefficients(keys, past.keys, self.slack(len(keys)))

        spreads = spread(
            self.lm,
            groups,
            [torch.stack([values[problem].v_star for problem in group]) for group in groups],
            h.layers,
            coefficients,
            place=self.place,
            share=self.share,
            mean=h.context_mean,
        )
        text: Notes = {"corpus": cs[h.layers[-1]].source}
        edits = [
            self._finished(step.edit, state, {**_notes(group, values), **text, **recorded(h)})
            for step, group in zip(spreads, groups, strict=True)
        ]
        return edits, spreads

    def _finished(self, edit: LowRankEdit, state: State, notes: Notes) -> Edit:
        """Apply the map of the settings to a finished update."""
        which = self.settings.update_map
        if which == "none":
            return replace(edit, notes=notes)
        if which == "rect":
            return _rect(self.lm, edit, notes)
        if which == "prune":
            return LowRankEdit(pruned(self.lm, edit, state).updates, notes=notes)
        exact = wide_dtype(self.lm.dtype)
        updates = []
        for up in edit.updates:
            turned = sphere(Factors(up.u, up.v), self.lm.weight(up.layer))
            updates.append(LowRank(up.layer, turned.u.to(exact), turned.v.to(exact)))
        return LowRankEdit(tuple(updates), notes=notes)


class Carried(ClosedForm[S]):
    """A method of the family that carries the keys of earlier steps."""

    def begin(self) -> State:
        """Return the state before the first step: nothing."""
        return {}

    def edit_together(  # as the protocol of methods that carry a state has it
        self, requests: Sequence[EditRequest], state: State | None = None
    ) -> Any:
        """Return one update for all ``requests``, and the state to be given to the next step.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        before = {} if state is None else state
        edit, step = self._together(requests, before)
        after = {**before, "edits": _count(before) + len(requests)}
        for layer, keys in step.keys.items():
            past = past_of(before, layer)
            after[f"keys.{layer}"] = joined(past.keys, keys)
            for name, tensor in self.extra(layer, past).items():
                after[f"{name}.{layer}"] = tensor
        if self.settings.update_map == "prune":
            after |= accumulated(step.edit, before)
        return edit, after

    def extra(self, layer: int, past: Past) -> Mapping[str, Tensor]:
        """Return what else is carried for a layer, given what it had before this step."""
        return {}


def _count(state: State) -> Tensor:
    return state.get("edits", torch.tensor(0))


def past_of(state: State, layer: int) -> Past:
    """Return what ``state`` holds of ``layer``."""
    suffix = f".{layer}"
    extra = {n.removesuffix(suffix): t for n, t in state.items() if n.endswith(suffix)}
    return Past(extra.pop("keys", None), int(_count(state)), extra)


def merged(problems: Sequence[ValueProblem], subjects: Sequence[str]) -> list[ValueProblem]:
    """Return one problem a subject, with the rows of all its facts and one anchor."""
    groups: dict[str, list[ValueProblem]] = {}
    for problem, subject in zip(problems, subjects, strict=True):
        groups.setdefault(subject, []).append(problem)
    return [
        group[0]
        if len(group) == 1
        else ValueProblem(
            tuple(row for problem in group for row in problem.contexts),
            group[0].anchor,
            tuple(len(problem.contexts) for problem in group),
        )
        for group in groups.values()
    ]


def _notes(group: Sequence[ValueProblem], values: Mapping[ValueProblem, Value]) -> Notes:
    losses = torch.stack([values[problem].losses[-1] for problem in group])
    passes = [len(values[problem].losses) for problem in group]
    return {"final_loss": float(losses.mean()), "passes": max(passes)}


def _rect(lm: LanguageModel, edit: LowRankEdit, notes: Notes) -> DenseEdit:
    deltas = {}
    for up in edit.updates:
        # the weight that the update is added to: in a sequence, as it stands
        kept = rect(up.u @ up.v, lm.weight(up.layer).to(up.u.dtype))
        transposed = lm.transposed(up.layer)
        deltas[lm.weight_name(up.layer)] = kept.T.contiguous() if transposed else kept
    return DenseEdit(deltas=deltas, notes=notes)


def accumulated(edit: LowRankEdit, state: State) -> dict[str, Tensor]:
    """Return the change of all steps so far, before PRUNE, by layer."""
    change: dict[str, Tensor] = {}
    for up in edit.updates:
        u = torch.cat([state.get(f"change_u.{up.layer}", up.u[:, :0]), up.u], 1)
        v = torch.cat([state.get(f"change_v.{up.layer}", up.v[:0]), up.v])
        change |= {f"change_u.{up.layer}": u, f"change_v.{up.layer}": v}
    return change


def pruned(lm: LanguageModel, edit: LowRankEdit, state: State) -> LowRankEdit:
    """Return what takes the model from the pruned change before to the pruned change after.

    The published code adds the pruned change to the weights that hold the whole change already;
    here it takes its place, which is what restraining it says.
    """
    after = accumulated(edit, state)
    updates = []
    for up in edit.updates:
        sigma = _largest_singular_value(lm, up.layer)
        new = prune(Factors(after[f"change_u.{up.layer}"], after[f"change_v.{up.layer}"]), sigma)
        u, v = new
        if f"change_u.{up.layer}" in state:
            old = prune(
                Factors(state[f"change_u.{up.layer}"], state[f"change_v.{up.layer}"]), sigma
            )
            u, v = torch.cat([u, -old.u], 1), torch.cat([v, old.v])
        updates.append(LowRank(up.layer, u.to(up.u.dtype), v.to(up.v.dtype)))
    return LowRankEdit(tuple(updates))


def _largest_singular_value(lm: LanguageModel, layer: int) -> float:
    """Return that of the unedited weight, also in a sequence."""
    with lm.unedited():
        return float(torch.linalg.matrix_norm(lm.weight(layer).double(), 2))
