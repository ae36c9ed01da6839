"""UltraEdit: one gradient step in closed form, without a subject, statistics or memory of facts.

XiaojieGu/UltraEdit, TMLR 2026. For each edited linear module and each answer token: x is its
input, g the gradient of the cross-entropy (mean over the answer tokens of a batch) by its output.

    x^, g^   [x; g] less the running mean, over the running deviation, of all turns so far
    V        -eta |x^|^2 g^, row by row
    D        (X^T X + I)^-1 X^T V, X the raw inputs of the turn

Modules of one shape share one set of moments, as published. The running deviation of a single token
is undefined, so that the published code gives NaN where the first turn has one answer token: here
the moments are warmed up on the last tokens of the first texts that C is taken over.

A minimal pair is edited like a fact: the word that differs is the answer. A pair whose answer is
followed by more text does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kn_bench.cases.case import EditRequest
from kn_bench.editing.answer_rows import AnswerMethod
from kn_bench.editing.bounds import Count, Rate, Whole
from kn_bench.editing.closed_form import Factors, closed_form
from kn_bench.editing.edit import DenseEdit, Edit, LowRank, LowRankEdit, NotApplicable, Notes
from kn_bench.editing.finetuning import TunedRow
from kn_bench.editing.method import State
from kn_bench.editing.registry import edit_method
from kn_bench.editing.rome.remembered import corpus_for, noted_texts
from kn_bench.editing.settings import Settings, recorded, refuse_modules
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.prefixed import padded


@dataclass(frozen=True, kw_only=True)
class UltraEditSettings(Settings):
    """UltraEdit's hyperparameters.

    Attributes:
        modules: the edited linear modules, by name in the model, ``{}`` for each of ``layers``;
            empty for the down-projections of ``layers``.
        layers: see there.
        lr: eta.
        batch_size: requests whose loss is one mean.
        warm_up: texts that the moments are warmed up on; 0 for none, as published.
    """

    layers: tuple[int, ...]
    modules: tuple[str, ...] = ()
    lr: Rate = 1e-6
    batch_size: Count = 100
    warm_up: Whole = 32

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return the down-projections of the last third of the layers, the last two left out."""
        first = 2 * lm.n_layers // 3
        layers = tuple(range(first, max(first + 1, lm.n_layers - 2)))
        return {"layers": layers, "settings_from": "default: down-projections of the last third"}

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        if self.modules:
            refuse_modules(lm, "modules", self.names(lm))

    def names(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the names of the edited modules."""
        patterns = self.modules or tuple(
            lm.weight_name(layer).removesuffix(".weight") for layer in self.layers
        )
        names = [p.replace("{}", str(i)) for p in patterns for i in self._layers_of(p)]
        return tuple(dict.fromkeys(names))

    def _layers_of(self, pattern: str) -> tuple[int, ...]:
        return self.layers if "{}" in pattern else (0,)


class Moments(NamedTuple):
    """Count, mean and mean squared deviation sums of [x; g], by Welford's recurrence."""

    n: int
    mean: Float[Tensor, " d"]
    var: Float[Tensor, " d"]

    def with_batch(self, rows: Float[Tensor, "b d"]) -> Moments:
        """Return the moments after a batch; its variance is unbiased but weighed by b."""
        b, n = len(rows), self.n + len(rows)
        delta = rows.mean(0) - self.mean
        own = rows.var(0) if b > 1 else torch.zeros_like(delta)
        var = self.var + b * own + self.n * b / n * delta.square()
        return Moments(n, self.mean + delta * b / n, var)

    @property
    def std(self) -> Float[Tensor, " d"]:
        """Return the deviation; NaN after a single row."""
        eps = torch.finfo(self.var.dtype).eps
        return (self.var / (self.n - 1 + eps)).sqrt()


class Seen(NamedTuple):
    """What the answer tokens of one batch gave at one module."""

    keys: Float[Tensor, "tokens d_in"]
    grads: Float[Tensor, "tokens d_out"]


class UltraEdit(AnswerMethod[UltraEditSettings]):
    """UltraEdit on one model."""

    called = "UltraEdit"

    def __init__(self, lm: LanguageModel, settings: UltraEditSettings) -> None:
        super().__init__(lm, settings)
        settings.check(lm)
        self.names = settings.names(lm)

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        """Return one update a request, each a first turn of its own.

        Raises:
            NotApplicable: on a masked model.
        """
        return [
            row if isinstance(row, NotApplicable) else self._alone(row)
            for row in self._rows(requests)
        ]

    def _alone(self, row: TunedRow) -> Edit | NotApplicable:
        try:
            return self._turn([row], self.begin())[0]
        except NotApplicable as reason:
            return reason

    def begin(self) -> State:
        """Return the moments before the first turn: those of the warm-up."""
        h = self.settings
        if not h.warm_up or not self.lm.is_causal:
            return {}
        key = ("ultraedit's warm-up", self.names, h.batch_size, h.warm_up)
        return dict(self.lm.memo.get(key, self._warmed_up, original=True))

    def _warmed_up(self) -> dict[str, Tensor]:
        h, tokens = self.settings, self.lm.tokens
        texts = islice(corpus_for(self.lm).corpus.documents(), h.warm_up)
        cut = [tokens.encode(text).ids[:WARM_UP_TOKENS] for text in texts]
        rows = [TunedRow(ids[:-1], (len(ids) - 2,), (ids[-1],)) for ids in cut if len(ids) > 2]
        size = h.batch_size
        with self.lm.unedited():
            seen = [self.seen(rows[i : i + size]) for i in range(0, len(rows), size)]
        return _state_of(self.moments(seen, {}))

    def edit_together(
        self, requests: Sequence[EditRequest], state: State
    ) -> tuple[Edit, dict[str, Tensor]]:
        """Return the edit of one turn, and the moments after it.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        return self._turn(self._rows_of_all(requests), state)

    # -- one turn ---------------------------------------------------------------------------

    def _turn(self, rows: Sequence[TunedRow], state: State) -> tuple[Edit, dict[str, Tensor]]:
        """Take the longest requests first, a batch at a time, as the moments are taken in."""
        ordered = sorted(rows, key=lambda row: -len(row.ids))
        size = self.settings.batch_size
        seen = [self.seen(ordered[i : i + size]) for i in range(0, len(ordered), size)]
        moments = self.moments(seen, state)
        factors = {}
        for name in self.names:
            keys = torch.cat([batch[name].keys for batch in seen])
            grads = torch.cat([batch[name].grads for batch in seen])
            factors[name] = self.update(keys, grads, moments[self._shape(name)])
        warm_up = self.settings.warm_up
        text: Notes = {"corpus": noted_texts(self.lm, warm_up)} if warm_up else {}
        return self._edit(factors, {**text, **recorded(self.settings)}), _state_of(moments)

    def seen(self, rows: Sequence[TunedRow]) -> dict[str, Seen]:
        """Return inputs and gradients of the answer tokens at every edited module."""
        lm, modules = self.lm, dict(self.lm.hf.named_modules())
        ids = padded(lm, [row.ids for row in rows])
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
                inputs[name] = args[0].detach()
                # the first edited module begins the graph: the weights ask for no gradient
                started = output if output.requires_grad else output.detach().requires_grad_()
                outputs[name] = started
                return started.clone()  # Falcon adds to it in place, which no leaf allows

            return hook

        handles = [modules[n].register_forward_hook(keep(n)) for n in self.names]
        try:
            with torch.enable_grad():
                hidden = lm.hidden(ids, torch.ones_like(ids), use_cache=False).last_hidden_state
                at = [(i, p, t) for i, row in enumerate(rows)
                      for p, t in zip(row.reads, row.targets, strict=True)]  # fmt: skip
                row_of, place, target = torch.tensor(at, device=lm.device).T
                logits = lm.logits(hidden[row_of, place])
                log_p = logits.to(wide_dtype(logits.dtype)).log_softmax(1)
                loss = -log_p.gather(1, target[:, None]).mean()
            grads = torch.autograd.grad(loss, [outputs[name] for name in self.names])
        finally:
            for handle in handles:
                handle.remove()
        return {
            name: Seen(_at(inputs[name], row_of, place, ids), _at(grad, row_of, place, ids))
            for name, grad in zip(self.names, grads, strict=True)
        }

    def moments(self, seen: Sequence[Mapping[str, Seen]], state: State) -> dict[str, Moments]:
        """Return the moments of each shape after a turn, batch by batch in the order of modules."""
        by_shape: dict[str, Moments] = {}
        for batch in seen:
            for name in self.names:
                shape = self._shape(name)
                rows = torch.cat([batch[name].keys, batch[name].grads], 1)
                if shape not in by_shape:
                    by_shape[shape] = _stored(state, shape, rows)
                by_shape[shape] = by_shape[shape].with_batch(rows)
        return by_shape

    def update(
        self, keys: Float[Tensor, "n d_in"], grads: Float[Tensor, "n d_out"], moments: Moments
    ) -> Factors:
        """Return D of one module.

        Raises:
            NotApplicable: when the moments are of a single token.
        """
        if moments.n < 2:
            raise NotApplicable(
                "one answer token has no deviation; set ultraedit.warm_up to some texts"
            )
        eps = torch.finfo(keys.dtype).eps
        hat = (torch.cat([keys, grads], 1) - moments.mean) / (moments.std + eps)
        x_hat, g_hat = hat[:, : keys.shape[1]], hat[:, keys.shape[1] :]
        v = -self.settings.lr * x_hat.square().sum(1, keepdim=True) * g_hat
        return closed_form(keys, v, ridge=1.0)

    def _shape(self, name: str) -> str:
        weight = self.lm.hf.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return "x".join(map(str, weight.shape))

    def _edit(self, factors: Mapping[str, Factors], notes: Notes) -> Edit:
        """Return a low-rank edit where only down-projections change, else deltas."""
        exact = wide_dtype(self.lm.dtype)
        sites = {self.lm.weight_name(i).removesuffix(".weight"): i for i in range(self.lm.n_layers)}
        if set(factors) <= set(sites):
            updates = tuple(
                LowRank(sites[name], d.u.to(exact), d.v.to(exact)) for name, d in factors.items()
            )
            return LowRankEdit(updates, notes=notes)
        deltas = {}
        for name, d in factors.items():
            change = (d.u @ d.v).to(exact)
            linear = isinstance(self.lm.hf.get_submodule(name), nn.Linear)
            deltas[f"{name}.weight"] = change.T.contiguous() if linear else change
        return DenseEdit(deltas=deltas, notes=notes)


def _at(states: Tensor, row: Tensor, place: Tensor, ids: Tensor) -> Tensor:
    read: Tensor = states.reshape(*ids.shape, -1)[row, place]
    return read.to(wide_dtype(read.dtype))


WARM_UP_TOKENS = 32
"""Of each text: about as long as a prompt."""


def _state_of(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    return {
        f"{part}.{shape}": torch.as_tensor(value)
        for shape, of_shape in moments.items()
        for part, value in of_shape._asdict().items()
    }


def _stored(state: State, shape: str, rows: Tensor) -> Moments:
    if f"n.{shape}" in state:
        return Moments(int(state[f"n.{shape}"]), state[f"mean.{shape}"], state[f"var.{shape}"])
    zeros = rows.new_zeros(rows.shape[1])
    return Moments(0, zeros, zeros)


@edit_method("ultraedit", models="causal", by_default=False, settings=UltraEditSettings)
def ultraedit(language_model: LanguageModel, settings: UltraEditSettings) -> UltraEdit:
    """UltraEdit, with its running moments carried through a sequence."""
    return UltraEdit(language_model, settings)
