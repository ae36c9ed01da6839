"""Knowledge neurons (Dai et al. 2022; Niu et al. 2024): find the neurons of a fact, change those.

    locate   integrated gradients over the request's queries, then the neurons that they share
    then     kn-suppress   neurons x 0 at the answer position
             kn-enhance    neurons x 2
             kn-edit       W_i += -lambda_1 |W_i|/|e_old| e_old + lambda_2 |W_i|/|e_new| e_new
             kn-erase      W_i = 0
             kn-random     as kn-suppress, on random neurons of the same layers: the control

W_i is the value of neuron i, a row of the site's weight; e(answer) a row of the output embedding.
All of it works on masked and causal models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import EditRequest, Query
from kn_bench.editing.bounds import Count, Share, Whole
from kn_bench.editing.edit import (
    Edit,
    LowRank,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NotApplicable,
    Notes,
)
from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import SettingError, Settings
from kn_bench.localise.alternatives import activation
from kn_bench.localise.locating import AttributionName, Bag, Located, Locating, locate
from kn_bench.localise.matching import matched
from kn_bench.localise.selection import Neurons, shared_by
from kn_bench.measure.encoding import encode_query
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded

Erased = Literal["zero", "mean", "unk", "random"]
ERASED: tuple[Erased, ...] = ("zero", "mean", "unk", "random")


@dataclass(frozen=True, kw_only=True)
class KnSettings(Settings):
    """How the neurons are found; see :class:`kn_bench.localise.locating.Locating`.

    Attributes:
        attribution: integrated gradients, as in the paper, or the forward-only increase of
            log-probability (Yu and Ananiadou, EMNLP 2024), for causal models.
        t: a prompt's coarse set: scores above this share of its highest.
        p: neurons are kept that are in more than this share of the prompts' coarse sets.
        fewest, most: p is moved until the number of neurons is within these bounds.
        capped: false leaves p as it is.
    """

    attribution: AttributionName = "integrated-gradients"
    t: Share = 0.2
    p: Share = 0.7
    fewest: Whole = 2
    most: Count = 5
    capped: bool = True

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        if self.capped and self.fewest > self.most:
            raise SettingError(
                f"fewest {self.fewest}: expected no more than most, which is {self.most}; set both"
            )

    @property
    def locating(self) -> Locating:
        """Return what the localisation is told."""
        return Locating(
            t=self.t,
            p=self.p,
            fewest=self.fewest,
            most=self.most,
            capped=self.capped,
            attribution=self.attribution,
        )


DEFAULTS = KnSettings()


@dataclass(frozen=True)
class ScaleKN:
    """Multiply the knowledge neurons by ``factor`` where the answer is read.

    Attributes:
        factor: 0 suppresses, 2 enhances.
        locating: how the neurons are found: t = 0.2, p = 0.7.
    """

    model: LanguageModel
    factor: float
    locating: Locating = field(default_factory=Locating)

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        located = _locate(self.model, requests, self.locating)
        return [
            self.scaled(kn.neurons, _notes(kn)) if kn.queries else _unfit(request)
            for request, kn in zip(requests, located, strict=True)
        ]

    def scaled(self, neurons: Neurons, notes: Notes | None = None) -> NeuronEdit:
        """Return the edit that scales ``neurons``."""
        return NeuronEdit(_scales(neurons, self.factor), notes=notes or {})


@dataclass(frozen=True)
class RewriteKN:
    """Turn the knowledge neurons' values from the old answer to the new one.

    Attributes:
        lambda_1, lambda_2: weights of the old and the new answer (Dai et al.: 1 and 8).
        relative: whether e is scaled to the value's norm (Dai et al.) or taken as it is, as
            EleutherAI's code does (there with 2 and 2).
        shared: neurons in the sets of more than this share of the relation's other facts are
            dropped first: they carry the relation, not the fact.
        locating: how the neurons are found.
    """

    model: LanguageModel
    lambda_1: float = 1.0
    lambda_2: float = 8.0
    relative: bool = True
    shared: float = 0.1
    locating: Locating = field(default_factory=Locating)

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        bags = dict.fromkeys(bag for request in requests for bag in _bags(request))
        located = locate(self.model, list(bags), self.locating)
        by_bag = dict(zip(bags, located, strict=True))
        return [self._edit(request, by_bag) for request in requests]

    def _edit(self, request: EditRequest, by_bag: dict[Bag, Located]) -> Edit | NotApplicable:
        located, *background = (by_bag[bag] for bag in _bags(request))
        old, new = (self._embedding(request, a) for a in (request.target_true, request.target_new))
        if not located.queries or old is None or new is None:
            return _unfit(request)
        common = shared_by([b.neurons for b in background if b.queries], self.shared)
        kept = located.neurons - common
        notes = {**_notes(located), "shared": len(located.neurons & common)}
        return LowRankEdit(self.updates(kept, old, new), notes=notes)

    def updates(
        self, neurons: Neurons, old: Float[Tensor, " d_model"], new: Float[Tensor, " d_model"]
    ) -> tuple[LowRank, ...]:
        """Return the update that turns the values of ``neurons`` from ``old`` to ``new``."""
        updates = []
        for layer, units in _by_layer(neurons).items():
            change = answer_change(
                _values(self.model, layer, units),
                old,
                new,
                self.lambda_1,
                self.lambda_2,
                relative=self.relative,
            )
            updates.append(_update(self.model, layer, units, change))
        return tuple(updates)

    def _embedding(self, request: EditRequest, answer: str) -> Float[Tensor, " d_model"] | None:
        encoded = encode_query(Query(request.cloze, answer), self.model.tokens, request.task)
        if encoded is None:
            return None
        # an answer of several tokens: their sum, as in the published baseline of ROME's authors
        return _wide(answer_embeddings(self.model)[list(encoded.answer_ids)]).sum(0)


@dataclass(frozen=True)
class EraseKN:
    """Replace the knowledge neurons' values.

    Attributes:
        by: ``zero``; ``mean`` of the layer's values; ``unk``, the output embedding of the unknown
            token; ``random``, that of a random token (seeded by the request).
        locating: how the neurons are found.
    """

    model: LanguageModel
    by: Erased = "zero"
    seed: int = 0
    locating: Locating = field(default_factory=Locating)

    def __post_init__(self) -> None:
        if self.by not in ERASED:
            raise ValueError(f"erase by {self.by!r}: expected one of {', '.join(ERASED)}")

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        located = _locate(self.model, requests, self.locating)
        return [
            self._edit(request, neurons) if neurons.queries else _unfit(request)
            for request, neurons in zip(requests, located, strict=True)
        ]

    def _edit(self, request: EditRequest, located: Located) -> Edit:
        return LowRankEdit(self.updates(located.neurons, request.id), notes=_notes(located))

    def updates(self, neurons: Neurons, case: str) -> tuple[LowRank, ...]:
        """Return the update that replaces the neurons' values; ``case`` seeds a random one."""
        return tuple(
            _update(
                self.model,
                layer,
                units,
                self._value(case, layer) - _values(self.model, layer, units),
            )
            for layer, units in _by_layer(neurons).items()
        )

    def _value(self, case: str, layer: int) -> Float[Tensor, " d_model"]:
        model = self.model
        if self.by == "mean":
            return _wide(model.weight(layer)).mean(0)
        if self.by == "zero":
            return _wide(model.weight(layer)).new_zeros(model.d_model)
        embeddings = answer_embeddings(model)
        if self.by == "unk":
            if model.tokens.unk_id is None:
                raise NotApplicable(f"{model.name} has no unknown token to erase by")
            return _wide(embeddings[model.tokens.unk_id])
        generator = seeded(self.seed, "erase", case)
        token = int(torch.randint(len(embeddings), (1,), generator=generator))
        return _wide(embeddings[token])


def answer_embeddings(lm: LanguageModel) -> Float[Tensor, "vocabulary d_model"]:
    """Return e of every token, as values of neurons.

    Raises:
        NotApplicable: where e and the values of neurons are of unequal width.
    """
    embeddings = lm.output_embeddings
    width = embeddings.shape[1]
    if width != lm.d_model:
        raise NotApplicable(
            f"{lm.name} has output embeddings of width {width} and layers of width {lm.d_model}, "
            "so no answer's embedding can be a neuron's value"
        )
    return embeddings


@dataclass(frozen=True)
class RandomKN:
    """Suppress random neurons instead: as many, of the same layers, nearest in mean activation.

    Attributes:
        factor: 0 suppresses.
        seed: together with the request's id it fixes the draw.
        locating: how the neurons to be matched are found.
    """

    model: LanguageModel
    factor: float = 0.0
    seed: int = 0
    locating: Locating = field(default_factory=Locating)

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        located = _locate(self.model, requests, self.locating)
        return [
            self._edit(request, neurons, mean)
            if mean is not None and request.true_is_known
            else _unfit(request)
            for request, neurons, mean in zip(
                requests, located, self._activations(requests), strict=True
            )
        ]

    def _edit(self, request: EditRequest, located: Located, mean: Tensor) -> Edit:
        drawn = matched(mean, located.neurons, seeded(self.seed, "random", request.id))
        return NeuronEdit(_scales(drawn, self.factor), notes=_notes(located))

    def _activations(
        self, requests: Sequence[EditRequest]
    ) -> list[Float[Tensor, "n_layers d_mlp"] | None]:
        """Return of each request the mean over its queries that fit; None where none does."""
        bags = [
            [encode_query(query, self.model.tokens, request.task) for query in request.queries]
            for request in requests
        ]
        encoding = [[query for query in bag if query is not None] for bag in bags]
        active = activation(self.model, [query for bag in encoding for query in bag])
        parts = torch.split(active, [len(bag) for bag in encoding])
        return [part.mean(0) if len(part) else None for part in parts]


def answer_change(
    values: Float[Tensor, "n d_model"],
    old: Float[Tensor, " d_model"],
    new: Float[Tensor, " d_model"],
    lambda_1: float,
    lambda_2: float,
    *,
    relative: bool = True,
) -> Float[Tensor, "n d_model"]:
    """Return what is added to the values of neurons: -lambda_1 * old + lambda_2 * new.

    With ``relative`` both are scaled to each value's own norm (Dai et al. 2022, section 5.2).
    """
    if not relative:
        return torch.zeros_like(values) + lambda_2 * new - lambda_1 * old
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    change: Tensor = norms * (lambda_2 * new / new.norm() - lambda_1 * old / old.norm())
    return change


def _locate(
    model: LanguageModel, requests: Sequence[EditRequest], locating: Locating
) -> list[Located]:
    return locate(model, [_bags(request)[0] for request in requests], locating)


def _bags(request: EditRequest) -> list[Bag]:
    """Return the request's own queries, and those of the other facts of its relation."""
    # attribution follows the true answer; where the data brings none, there is nothing to follow
    own = request.queries if request.true_is_known else ()
    return [Bag(queries, request.task) for queries in (own, *request.background)]


def _unfit(request: EditRequest) -> NotApplicable:
    if not request.true_is_known:
        return NotApplicable("the data brings no true answer to locate knowledge neurons by")
    return NotApplicable(
        "no query of the request can be put to this model"
        if request.queries
        else "the request has no queries to locate knowledge neurons over"
    )


def _notes(located: Located) -> Notes:
    return {
        "kn": len(located.neurons),
        "tau": located.tau,
        "queries": located.queries,
        "skipped": located.skipped,
        "completeness_error": located.completeness,
        "unconverged": located.unconverged,
    }


def _by_layer(neurons: Neurons) -> dict[int, list[int]]:
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, unit in sorted(neurons):
        by_layer[layer].append(unit)
    return by_layer


def _scales(neurons: Neurons, factor: float) -> tuple[NeuronScale, ...]:
    return tuple(
        NeuronScale(layer, torch.tensor(units), factor)
        for layer, units in _by_layer(neurons).items()
    )


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in at least float32, whatever the model's precision."""
    wide: Tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    return wide


def _values(model: LanguageModel, layer: int, neurons: Sequence[int]) -> Float[Tensor, "n d_model"]:
    return _wide(model.weight(layer)[list(neurons)])


def _update(
    model: LanguageModel, layer: int, neurons: Sequence[int], change: Float[Tensor, "n d_model"]
) -> LowRank:
    """Return the update that adds ``change`` to the values of ``neurons``: u is one-hot."""
    index = torch.tensor(neurons, device=change.device)
    one_hot = torch.nn.functional.one_hot(index, model.d_mlp).T
    return LowRank(layer, one_hot.to(change.dtype), change.contiguous())


@edit_method("kn-suppress", settings=KnSettings, shares="neurons")
def kn_suppress(language_model: LanguageModel, settings: KnSettings = DEFAULTS) -> ScaleKN:
    """Knowledge neurons set to 0 at the answer position."""
    return ScaleKN(language_model, factor=0.0, locating=settings.locating)


@edit_method("kn-enhance", settings=KnSettings, shares="neurons")
def kn_enhance(language_model: LanguageModel, settings: KnSettings = DEFAULTS) -> ScaleKN:
    """Knowledge neurons doubled at the answer position."""
    return ScaleKN(language_model, factor=2.0, locating=settings.locating)


@edit_method("kn-edit", settings=KnSettings, shares="neurons")
def kn_edit(language_model: LanguageModel, settings: KnSettings = DEFAULTS) -> RewriteKN:
    """Knowledge neurons' values turned from the old answer to the new one."""
    return RewriteKN(language_model, locating=settings.locating)


@edit_method("kn-erase", settings=KnSettings, shares="neurons")
def kn_erase(language_model: LanguageModel, settings: KnSettings = DEFAULTS) -> EraseKN:
    """Knowledge neurons' values set to 0."""
    return EraseKN(language_model, locating=settings.locating)


@edit_method("kn-random", settings=KnSettings, by_default=False)
def kn_random(language_model: LanguageModel, settings: KnSettings = DEFAULTS) -> RandomKN:
    """Random neurons like the knowledge neurons, suppressed: the control."""
    return RandomKN(language_model, locating=settings.locating)
