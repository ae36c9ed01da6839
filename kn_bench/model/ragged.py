"""Run rows of unequal length again and again, from one layer and each row's own position on.

ROME and MEMIT optimise what is added at one layer and one position, the start, of every row. Layers
below and positions before the start are run once; later passes read them as attention keys and
values. A text that stands in front of many rows is run once for all of them.

Token t of a row has a column of its own on each of three axes of positions:

    row      s s a b c D e f     t               s  shared text        D  start
    first    a b c D e f .       t - shared      the one pass over what follows the shared text
    cache    . s s a b c D e f   t + shift       its keys: shared texts are padded on the left
    rerun    D e f .             t - start       Tq: column 0 is every row's start

Columns at the start are gathered row by row, since starts differ; the keys before it are aligned on
the right again, as :mod:`kn_bench.model.prefixed` reads them.

Results equal those of whole runs, to rounding. Rows that cannot resume are run whole.
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
from kn_bench.model.resuming import PrefixCache, may_resume, skipping
from kn_bench.model.stream import adds_to_stream, arriving

Place = Literal["site", "block", "both"]
"""Where something is added: to the values of a layer's site, to the layer's output, or (``both``)
to the values of the site and, separately, to what the layer's attention adds to the stream."""


class Rerun(Protocol):
    """Rows that can be run again with something added at one layer and position."""

    def run(self, added: Float[Tensor, "rows *places d_model"]) -> Float[Tensor, "rows Tq d_model"]:
        """Return last hidden states from each row's start on, with ``added`` at its start."""
        ...

    def select(self, rows: Int[Tensor, " n"]) -> Rerun:
        """Return the same for some of the rows."""
        ...


@dataclass(frozen=True)
class Ragged:
    """Result of :func:`prepare`.

    Attributes:
        rerun: runs the rows again.
        keys: input of the site at each row's start.
        values: what is added to there: the site's output, bias included; or the layer's; or those
            of the site and of the attention.
        site_values: the site's output there, for every place.
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
    """Run ``rows`` once, and prepare them to be run again from a change at ``layer``.

    Args:
        rows: token ids, of any lengths.
        starts: the position in each row where something will be added.
        layer: the layer at which it will be added.
        place: to what it will be added there.
        shared: how many first tokens of each row are a text that other rows share.

    Raises:
        ValueError: for a masked model, a start outside its row or within the shared text, and a
            change of the last layer's output, which no layer follows.
    """
    shared = shared or [0] * len(rows)
    _check(lm, rows, starts, shared, layer, place)
    at = torch.tensor(starts, device=lm.device)
    queries = max(len(row) - start for row, start in zip(rows, starts, strict=True))
    if not may_resume(lm, max(map(len, rows))):
        return _prepare_whole(lm, padded(lm, rows), at, queries, layer, place)
    joins = place == "block" or (
        place == "site"  # "both" changes the attention, whose output the layer's MLP reads
        and layer + 1 < lm.n_layers
        and adds_to_stream(lm, lm.tensor([rows[0]]), layer)
    )
    # where the change is simply added to the residual stream, the layer need not run again
    first = layer + 1 if joins else layer
    before = shared_prefixes(lm, rows, shared)
    stops = torch.tensor([len(row) for row in rows], device=lm.device)
    cache = Recorded(before)
    begin = at - before.counts
    attended = _attended(lm, layer, begin, place)
    with _watched(lm, layer, begin) as site, arriving(lm, first) as inputs, attended as attention:
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
    values = _values(place, site["values"], tail.hidden[:, 0], attention)
    last_hidden = _from(last, begin, queries)
    return Ragged(tail, site["keys"], values, site["values"], last_hidden)


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
            f"{lm.name}: expected a causal model; run a masked one whole, where every position "
            "sees the change"
        )
    for row, start, n in zip(rows, starts, shared, strict=True):
        if not n <= start < len(row):
            raise ValueError(
                f"start {start}: expected a position from {n} to {len(row) - 1}, in its row and "
                "after the shared text"
            )
    if place == "block" and layer + 1 >= lm.n_layers:
        raise ValueError(
            f"layer {layer}: expected a layer whose output another one reads; choose an earlier one"
        )


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
    """Return keys at ``layer`` and outputs of layer ``top`` at one position of each row.

    Args:
        place: ``block`` for the output of the layer ``top``, else for that of its site.
        edited: opens the edits that the rows run under, given the mask of their tokens.
    """
    where = torch.tensor(at, device=lm.device)
    ids = padded(lm, rows)
    real = torch.ones_like(ids, dtype=torch.bool)
    following = min(top + 1, lm.n_layers - 1)
    with ExitStack() as stack:
        stack.enter_context(edited(real))  # first, so that the hooks below see the edited model
        site = stack.enter_context(_watched(lm, layer, where))
        above = stack.enter_context(_watched(lm, top, where))
        outputs = stack.enter_context(arriving(lm, following))
        lm.hidden(ids, torch.ones_like(ids), use_cache=False)
    reached = _from(outputs[0], where, 1)[:, 0] if place == "block" else above["values"]
    return site["keys"], reached


@contextmanager
def _watched(
    lm: LanguageModel, layer: int, at: Int[Tensor, " rows"]
) -> Iterator[dict[str, Float[Tensor, "rows d"]]]:
    """Collect a site's keys and values at one position of each row, as copies."""
    site: dict[str, Tensor] = {}
    rows = torch.arange(len(at), device=at.device)

    def keep(_: int, keys: Tensor, values: Tensor) -> Tensor:
        for name, tensor in (("keys", keys), ("values", values)):
            site[name] = tensor.reshape(len(at), -1, tensor.shape[-1])[rows, at]
        return values

    with lm.site_hooks(keep, [layer]):
        yield site


@contextmanager
def _attended(
    lm: LanguageModel, layer: int, at: Int[Tensor, " rows"], place: Place
) -> Iterator[list[Float[Tensor, "rows d_model"]]]:
    """Collect what the layer's attention adds at one position of each row, for place ``both``."""
    outputs: list[Tensor] = []
    rows = torch.arange(len(at), device=at.device)
    if place != "both":
        yield outputs
        return

    def keep(_: int, output: Tensor) -> None:
        outputs.append(output.reshape(len(at), -1, output.shape[-1])[rows, at])

    with attention_hooks(lm, keep, [layer]):
        yield outputs


@dataclass(frozen=True)
class _Tail:
    """Rows that resume at layer ``first`` and at their own positions.

    ``prefixes`` hold what precedes those positions, in the layers from ``first`` on alone.
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
        # the cache is indexed by layer, and the model asks layer 0 for the length of the prefix:
        # skipped layers get the states of the first one, which none of them reads
        keys, values = self.prefixes.keys, self.prefixes.values
        below = self.first
        cache = PrefixCache((keys[0],) * below + keys, (values[0],) * below + values)
        ids = torch.zeros(self.hidden.shape[:2], dtype=torch.long, device=self.hidden.device)
        return run_after(self.lm, ids, self.prefixes, self.stops, cache)


@dataclass(frozen=True)
class _Whole:
    """Rows that cannot resume, run whole every time."""

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
        site = stack.enter_context(_watched(lm, layer, at))
        attention = stack.enter_context(_attended(lm, layer, at, place))
        following = min(layer + 1, lm.n_layers - 1)
        inputs = stack.enter_context(arriving(lm, following))
        hidden = lm.hidden(ids, torch.ones_like(ids), use_cache=False).last_hidden_state
    values = _values(place, site["values"], _from(inputs[0], at, 1)[:, 0], attention)
    whole = _Whole(lm, layer, place, ids, at, queries)
    last_hidden = _from(hidden, at, queries)
    return Ragged(whole, site["keys"], values, site["values"], last_hidden)


def _from(
    hidden: Float[Tensor, "rows T d"], starts: Int[Tensor, " rows"], length: int
) -> Float[Tensor, "rows length d"]:
    """Return ``length`` positions of each row from its start on; past its end, the last one."""
    at = starts[:, None] + torch.arange(length, device=hidden.device)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return hidden[rows, at.clamp_max(hidden.shape[1] - 1)]


def _before(
    states: Float[Tensor, "rows heads K d_head"],
    starts: Int[Tensor, " rows"],
    shift: Int[Tensor, " rows"],
) -> Float[Tensor, "rows heads P d_head"]:
    """Return the states before each row's start, aligned on the right.

    Args:
        shift: column of each row's first token in ``states``.
    """
    length = int(starts.max())
    # column of the result's first position; negative where fewer than ``length`` precede the start:
    # what is gathered there is padding, masked by ``counts``
    first = (starts + shift - length).to(states.device)
    at = torch.arange(length, device=states.device) + first[:, None]
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states.transpose(1, 2)[rows, at.clamp_min(0)].transpose(1, 2).contiguous()
