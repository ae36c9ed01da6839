"""Rows of unequal length, run again and again from one layer and from each row's own position on.

What the optimisations of ROME and MEMIT ask for: something is added at one layer and one position
of every row, many times over. Layers below and positions before the change are run once; earlier
positions are then read from their attention keys and values, and a text that stands in front of
many rows is run once for all of them.

The numbers are those of whole runs, to rounding. Families that cannot resume are run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_bench.model.attention import attention_hooks
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.prefixed import (
    Prefixes,
    Recorded,
    padded,
    run_after,
    shared_prefixes,
)
from kn_bench.model.resuming import PrefixCache, skipping

Place = Literal["site", "block", "both"]
"""Where something is added: to the values of a layer's site, to the layer's output, or, two things
at once, to the values of the site and to what the layer's attention adds to the stream."""


class Rerun(Protocol):
    """Rows that can be run again with something added at one layer and position."""

    def run(self, added: Float[Tensor, "rows *places d_model"]) -> Float[Tensor, "rows Tq d_model"]:
        """Last hidden states from each row's start on, with ``added`` at its start."""
        ...

    def select(self, rows: Int[Tensor, " n"]) -> Rerun:
        """The same for some of the rows."""
        ...


@dataclass(frozen=True)
class Ragged:
    """What :func:`prepare` leaves.

    Attributes:
        rerun: runs the rows again.
        keys: input of the site at each row's start.
        values: what would be added to there: the site's output, bias included, or the layer's, or
            both that of the site and of the attention.
        site_values: the site's output there, whatever the place.
        last_hidden: of the clean run from each row's start on, padded on the right.
    """

    rerun: Rerun
    keys: Float[Tensor, "rows d_mlp"]
    values: Float[Tensor, "rows *places d_model"]
    site_values: Float[Tensor, "rows d_model"]
    last_hidden: Float[Tensor, "rows Tq d_model"]


@torch.no_grad()
def prepare(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    layer: int,
    *,
    place: Place = "site",
    shared: Sequence[int] | None = None,
) -> Ragged:
    """Run ``rows`` once, and make them ready to be run again from a change at ``layer``.

    Args:
        rows: token ids, of any lengths.
        starts: the position in each row where something will be added.
        layer: the layer at which it will be added.
        place: to the values of its site, or to its output.
        shared: how many first tokens of each row are a text that other rows begin with as well.

    Raises:
        ValueError: for a masked model, a start outside its row or within what is shared, and a
            change of the last layer's output, which nothing follows.
    """
    shared = shared or [0] * len(rows)
    _check(lm, rows, starts, shared, layer, place)
    at = torch.tensor(starts, device=lm.device)
    queries = max(len(row) - start for row, start in zip(rows, starts, strict=True))
    if not lm.architecture.resumable:
        return _prepare_whole(lm, padded(lm, rows), at, queries, layer, place)
    joins = place == "block" or (
        place == "site"  # what is added to the attention passes the layer's own MLP
        and layer + 1 < lm.n_layers
        and adds_to_stream(lm, lm.tensor([rows[0]]), layer)
    )
    # where what is added simply joins the residual stream, the layer itself need not run again
    first = layer + 1 if joins else layer
    before = shared_prefixes(lm, rows, shared)
    stops = torch.tensor([len(row) for row in rows], device=lm.device)
    cache = Recorded(before)
    begin = at - before.counts
    attended = _attended(lm, layer, begin, place)
    with _watched(lm, layer, begin) as found, arriving(lm, first) as inputs, attended as attention:
        ids = padded(lm, [row[n:] for row, n in zip(rows, shared, strict=True)])
        last = run_after(lm, ids, before, stops, cache)
    seen = [cache.seen[index] for index in range(first, lm.n_layers)]
    shift = before.longest - before.counts
    tail = _Tail(
        lm=lm,
        layer=layer,
        first=first,
        hidden=_from(inputs[0], at - before.counts, queries),
        prefixes=Prefixes(
            tuple(_before(keys, at, shift) for keys, _ in seen),
            tuple(_before(values, at, shift) for _, values in seen),
            at,
        ),
        stops=stops,
    )
    values = _values(place, found["values"], tail.hidden[:, 0], attention)
    last_hidden = _from(last, begin, queries)
    return Ragged(tail, found["keys"], values, found["values"], last_hidden)


def _values(
    place: Place,
    site: Float[Tensor, "rows d_model"],
    block: Float[Tensor, "rows d_model"],
    attention: Sequence[Float[Tensor, "rows d_model"]],
) -> Float[Tensor, "rows *places d_model"]:
    if place == "both":
        return torch.stack([site, attention[0]], 1)
    return block if place == "block" else site


def _check(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    shared: Sequence[int],
    layer: int,
    place: Place,
) -> None:
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name} is a masked model: every position sees the change, run it whole"
        )
    for row, start, n in zip(rows, starts, shared, strict=True):
        if not n <= start < len(row):
            raise ValueError(
                f"start {start} lies outside a row of {len(row)} tokens, of which {n} are shared"
            )
    if place == "block" and layer + 1 >= lm.n_layers:
        raise ValueError(f"nothing follows the output of layer {layer}: choose an earlier one")


@torch.no_grad()
def adds_to_stream(lm: LanguageModel, ids: Int[Tensor, "1 T"], layer: int) -> bool:
    """Whether the next layer's input moves by exactly what is added to the site's values.

    Asked of the model rather than of a table: families that normalise the MLP's output (Gemma 2,
    OLMo 2) answer no, and their layer is run again.
    """
    probe = torch.linspace(-1, 1, lm.d_model, device=lm.device, dtype=lm.dtype)
    with arriving(lm, layer + 1) as seen:
        lm.hidden(ids, torch.ones_like(ids), use_cache=False)
        with lm.site_hooks(lambda _, __, values: values + probe, [layer]):
            lm.hidden(ids, torch.ones_like(ids), use_cache=False)
    before, after = (hidden.double() for hidden in seen)
    tolerance = 8 * torch.finfo(lm.dtype).eps * float(before.abs().max() + 1)
    return bool(((after - before) - probe.double()).abs().max() <= tolerance)


@torch.no_grad()
def states_at(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    at: Sequence[int],
    layer: int,
    top: int,
    edited: Callable[[Bool[Tensor, "rows T"]], AbstractContextManager[object]],
    *,
    place: Place = "block",
) -> tuple[Float[Tensor, "rows d_mlp"], Float[Tensor, "rows d_model"]]:
    """Keys of the site of ``layer``, and the output of layer ``top``, at one position of each row.

    Args:
        place: ``block`` for the output of the layer ``top``, else for that of its site.
        edited: opens what the rows are to run under, given where they have tokens.
    """
    where = torch.tensor(at, device=lm.device)
    ids = padded(lm, rows)
    real = torch.ones_like(ids, dtype=torch.bool)
    following = min(top + 1, lm.n_layers - 1)
    with ExitStack() as stack:
        stack.enter_context(edited(real))  # first: what is watched is the edited model
        found = stack.enter_context(_watched(lm, layer, where))
        above = stack.enter_context(_watched(lm, top, where))
        outputs = stack.enter_context(arriving(lm, following))
        lm.hidden(ids, torch.ones_like(ids), use_cache=False)
    reached = _from(outputs[0], where, 1)[:, 0] if place == "block" else above["values"]
    return found["keys"], reached


@contextmanager
def arriving(lm: LanguageModel, layer: int) -> Iterator[list[Float[Tensor, "rows T d_model"]]]:
    """Collect the inputs of a layer; copies, for some models overwrite them."""
    found: list[Tensor] = []

    with lm.input_hooks(lambda _, hidden: found.append(hidden.clone()), [layer]):
        yield found


@contextmanager
def _watched(
    lm: LanguageModel, layer: int, at: Int[Tensor, " rows"]
) -> Iterator[dict[str, Float[Tensor, "rows d"]]]:
    """Keep a site's keys and values at one position of each row; copies, as above."""
    found: dict[str, Tensor] = {}
    rows = torch.arange(len(at), device=at.device)

    def keep(_: int, keys: Tensor, values: Tensor) -> Tensor:
        for name, tensor in (("keys", keys), ("values", values)):
            found[name] = tensor.reshape(len(at), -1, tensor.shape[-1])[rows, at]
        return values

    with lm.site_hooks(keep, [layer]):
        yield found


@contextmanager
def _attended(
    lm: LanguageModel, layer: int, at: Int[Tensor, " rows"], place: Place
) -> Iterator[list[Float[Tensor, "rows d_model"]]]:
    """Keep what the layer's attention adds at one position of each row, where that is asked."""
    found: list[Tensor] = []
    rows = torch.arange(len(at), device=at.device)
    if place != "both":
        yield found
        return

    def keep(_: int, output: Tensor) -> None:
        found.append(output.reshape(len(at), -1, output.shape[-1])[rows, at])

    with attention_hooks(lm, keep, [layer]):
        yield found


@dataclass(frozen=True)
class _Tail:
    """Rows that resume at layer ``first`` and at their own positions.

    ``prefixes`` are what stands before those positions, the layers from ``first`` on alone.
    """

    lm: LanguageModel
    layer: int
    first: int
    hidden: Float[Tensor, "rows Tq d_model"]
    prefixes: Prefixes
    stops: Int[Tensor, " rows"]

    def select(self, rows: Int[Tensor, " n"]) -> _Tail:
        old = self.prefixes
        kept = Prefixes(
            tuple(k[rows.to(k.device)] for k in old.keys),
            tuple(v[rows.to(v.device)] for v in old.values),
            old.counts[rows],
        )
        return replace(self, hidden=self.hidden[rows], prefixes=kept, stops=self.stops[rows])

    def run(self, added: Float[Tensor, "rows *places d_model"]) -> Float[Tensor, "rows Tq d_model"]:
        added = added.to(self.lm.dtype)
        to_values, *to_attention = added.unbind(1) if added.ndim == 3 else (added,)

        def moved(values: Tensor, added: Tensor = to_values) -> Tensor:
            rows = values.reshape(self.hidden.shape)
            rows = torch.cat([(rows[:, 0] + added)[:, None], rows[:, 1:]], 1)
            return rows.reshape(values.shape)

        joins = self.first > self.layer
        with ExitStack() as stack:
            stack.enter_context(skipping(self.lm, range(self.first)))
            stack.enter_context(
                self.lm.input_hooks(
                    lambda _, __: moved(self.hidden) if joins else self.hidden, [self.first]
                )
            )
            if not joins:
                hook = self.lm.site_hooks(lambda _, __, values: moved(values), [self.layer])
                stack.enter_context(hook)
            if to_attention:
                stack.enter_context(
                    attention_hooks(
                        self.lm, lambda _, output: moved(output, to_attention[0]), [self.layer]
                    )
                )
            return self._forward()

    def _forward(self) -> Float[Tensor, "rows Tq d_model"]:
        # the model asks layer 0 for the length of what came before
        keys, values = self.prefixes.keys, self.prefixes.values
        below = self.first
        cache = PrefixCache((keys[0],) * below + keys, (values[0],) * below + values)
        ids = torch.zeros(self.hidden.shape[:2], dtype=torch.long, device=self.hidden.device)
        return run_after(self.lm, ids, self.prefixes, self.stops, cache)


@dataclass(frozen=True)
class _Whole:
    """The same for families that cannot resume: whole rows, every time."""

    lm: LanguageModel
    layer: int
    place: Place
    ids: Int[Tensor, "rows T"]
    starts: Int[Tensor, " rows"]
    queries: int

    def select(self, rows: Int[Tensor, " n"]) -> _Whole:
        return replace(self, ids=self.ids[rows], starts=self.starts[rows])

    def run(self, added: Float[Tensor, "rows *places d_model"]) -> Float[Tensor, "rows Tq d_model"]:
        here = torch.arange(self.ids.shape[1], device=self.ids.device) == self.starts[:, None]
        added = added.to(self.lm.dtype)
        to_values, *to_attention = added.unbind(1) if added.ndim == 3 else (added,)

        def moved(values: Tensor, added: Tensor = to_values) -> Tensor:
            change = here[..., None] * added[:, None]
            return values + change.reshape(values.shape)

        with ExitStack() as stack:
            stack.enter_context(
                self.lm.input_hooks(lambda _, hidden: moved(hidden), [self.layer + 1])
                if self.place == "block"
                else self.lm.site_hooks(lambda _, __, values: moved(values), [self.layer])
            )
            if to_attention:
                stack.enter_context(
                    attention_hooks(
                        self.lm, lambda _, output: moved(output, to_attention[0]), [self.layer]
                    )
                )
            hidden = self.lm.hidden(
                self.ids, torch.ones_like(self.ids), use_cache=False
            ).last_hidden_state
        return _from(hidden, self.starts, self.queries)


def _prepare_whole(
    lm: LanguageModel,
    ids: Int[Tensor, "rows T"],
    at: Int[Tensor, " rows"],
    queries: int,
    layer: int,
    place: Place,
) -> Ragged:
    with ExitStack() as stack:
        found = stack.enter_context(_watched(lm, layer, at))
        attention = stack.enter_context(_attended(lm, layer, at, place))
        following = min(layer + 1, lm.n_layers - 1)
        inputs = stack.enter_context(arriving(lm, following))
        hidden = lm.hidden(ids, torch.ones_like(ids), use_cache=False).last_hidden_state
    values = _values(place, found["values"], _from(inputs[0], at, 1)[:, 0], attention)
    whole = _Whole(lm, layer, place, ids, at, queries)
    last_hidden = _from(hidden, at, queries)
    return Ragged(whole, found["keys"], values, found["values"], last_hidden)


def _from(
    hidden: Float[Tensor, "rows T d"], starts: Int[Tensor, " rows"], length: int
) -> Float[Tensor, "rows length d"]:
    """``length`` positions of each row from its start on; past the end the last one again."""
    at = starts[:, None] + torch.arange(length, device=hidden.device)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return hidden[rows, at.clamp_max(hidden.shape[1] - 1)]


def _before(
    states: Float[Tensor, "rows heads K d_head"],
    starts: Int[Tensor, " rows"],
    shift: Int[Tensor, " rows"],
) -> Float[Tensor, "rows heads P d_head"]:
    """What stands before each row's start, aligned on the right; its first is at ``shift``."""
    length = int(starts.max())
    first = (starts + shift - length).to(states.device)
    at = torch.arange(length, device=states.device) + first[:, None]
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states.transpose(1, 2)[rows, at.clamp_min(0)].transpose(1, 2).contiguous()
