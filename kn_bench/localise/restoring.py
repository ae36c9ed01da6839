"""Corrupted runs with some of their states put back, each run only from where it begins to differ.

A restored run equals its corrupted run up to the layer and (in a causal model) the token that is
restored, so it starts there. The states of one token, of all layers and samples, run together;
states that the noise cannot reach, and those past the last layer, are not run at all. All of it is
exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kn_bench.localise.attribution import MEMORY
from kn_bench.localise.corrupting import Corrupted, answer_probability, attention_hooks
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.resuming import resume

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Kind = Literal["hidden", "mlp", "attention"]
"""A layer's output, what its MLP adds to the residual stream, or what its attention adds."""


class Patch(NamedTuple):
    """One state that is set: to its clean value, or kept at its corrupted one.

    ``clean=False`` freezes a state that another, restored, one would change (a severed path).
    """

    kind: Kind
    layer: int
    token: int
    clean: bool = True


class PatchedRun(NamedTuple):
    """The corrupted runs of prompt number ``prompt`` with these states set."""

    prompt: int
    patches: tuple[Patch, ...]

    @property
    def join(self) -> int:
        """The layer at whose input it begins to differ from its corrupted run."""
        return min(patch.layer + (patch.kind == "hidden") for patch in self.patches)


@torch.no_grad()
def restore(
    corrupted: Corrupted, runs: Sequence[PatchedRun], *, memory: int = MEMORY
) -> Float[Tensor, "runs samples"]:
    """P(answer) of corrupted runs with states set; equal runs are made once.

    Args:
        runs: any; one without effective patches is its corrupted run.
        memory: bytes that a batch may take.
    """
    effective = [PatchedRun(run.prompt, _effective(corrupted, run)) for run in runs]
    found: dict[PatchedRun, Tensor] = {}
    by_start: dict[int, list[PatchedRun]] = defaultdict(list)
    for run in dict.fromkeys(effective):
        if run.patches:
            by_start[_start(corrupted, run)].append(run)
        else:
            found[run] = corrupted.probability[run.prompt, 1:]
    for start, group in by_start.items():
        for chunk in _chunks(corrupted, group, start, memory):
            found.update(zip(chunk, _Pass(corrupted, chunk, start).run(), strict=True))
    return torch.stack([found[run] for run in effective])


def _effective(corrupted: Corrupted, run: PatchedRun) -> tuple[Patch, ...]:
    """The patches that can change the answer: in a causal model, from the subject to the answer."""
    if not corrupted.lm.is_causal:
        return run.patches
    prompt = corrupted.prompts[run.prompt]
    return tuple(p for p in run.patches if prompt.subject[0] <= p.token <= prompt.position)


def _start(corrupted: Corrupted, run: PatchedRun) -> int:
    """The first position that is run."""
    lm = corrupted.lm
    late = lm.is_causal and lm.architecture.resumable
    return min(patch.token for patch in run.patches) if late else 0


def _chunks(
    corrupted: Corrupted, group: Sequence[PatchedRun], start: int, memory: int
) -> Iterator[list[PatchedRun]]:
    """Runs in the order of their layers, in batches of bounded size."""
    row = _row_bytes(corrupted.lm, corrupted.run.ids.shape[1], start)
    most = max(1, memory // 2 // (corrupted.samples * row))
    ordered = sorted(group, key=lambda run: run.join)
    # neighbours together: a batch skips all layers below its first
    for at in range(0, len(ordered), most):
        yield ordered[at : at + most]


def _row_bytes(lm: LanguageModel, length: int, start: int) -> int:
    """About what one row takes: activations of one layer, keys and values, logits."""
    inside = (length - start) * (8 * lm.d_model + 3 * lm.d_mlp)
    return (inside + 2 * length * lm.d_model + 3 * lm.vocabulary) * lm.dtype.itemsize


class _Places(NamedTuple):
    """Where states are set in a batch, and which rows of the corrupted run they come from."""

    rows: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    sources: Int[Tensor, " n"]


class _Pass:
    """Some runs in one batch, in the order of the layers where they join, from ``start`` on."""

    def __init__(self, corrupted: Corrupted, runs: Sequence[PatchedRun], start: int) -> None:
        self.corrupted, self.runs, self.start = corrupted, runs, start
        self.lm = corrupted.lm

    def run(self) -> Float[Tensor, "runs samples"]:
        joins = self._joins()
        unrun = joins.pop(self.lm.n_layers, self._tensor([]))
        source = self.corrupted.run.last_hidden
        hidden = source[unrun][:, self.start :]
        if joins:
            hidden = torch.cat([self._resumed(joins), hidden])
        hidden = self._set("hidden", self.lm.n_layers - 1, hidden, source)
        prompts = [self.corrupted.prompts[run.prompt] for run in self.runs]
        p = answer_probability(self.lm, hidden, prompts, self.corrupted.samples, self.start)
        return p.reshape(len(self.runs), -1)

    def _joins(self) -> dict[int, Int[Tensor, " rows"]]:
        """Layer -> the corrupted rows that join there."""
        rows: dict[int, list[int]] = defaultdict(list)
        for run in self.runs:
            rows[run.join] += self.corrupted.rows(run.prompt)
        return {layer: self._tensor(found) for layer, found in rows.items()}

    def _resumed(self, joins: dict[int, Tensor]) -> Float[Tensor, "rows Tq d_model"]:
        inputs, before = {}, 0
        for layer, rows in joins.items():
            inputs[layer] = self._arriving(layer, rows, before)
            before += len(rows)

        def hook(layer: int, _: Tensor, values: Tensor) -> Tensor:
            return self._set("mlp", layer, values, self.corrupted.mlp[layer])

        with self._hidden_set(min(joins)), self._attention_set():
            return resume(
                self.lm,
                self.corrupted.run,
                joins=joins,
                start=self.start,
                hook=hook,
                inputs=inputs,
            )

    def _arriving(self, layer: int, rows: Tensor, before: int) -> Float[Tensor, "rows Tq d_model"]:
        """What joins at the input of ``layer``: corrupted, the outputs below it set."""
        source = self.corrupted.run.layer_inputs[layer]
        arriving = source[rows][:, self.start :]
        return self._set("hidden", layer - 1, arriving, source, before)

    def _tensor(self, values: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(values, dtype=torch.long, device=self.corrupted.run.ids.device)

    @cached_property
    def _places(self) -> dict[tuple[Kind, int], _Places]:
        found: dict[tuple[Kind, int], list[tuple[int, int, int]]] = defaultdict(list)
        for number, run in enumerate(self.runs):
            noisy = self.corrupted.rows(run.prompt)
            for patch in run.patches:
                found[patch.kind, patch.layer] += [
                    (
                        number * len(noisy) + sample,
                        patch.token - self.start,
                        noisy[0] - 1 if patch.clean else row,
                    )
                    for sample, row in enumerate(noisy)
                ]
        return {
            where: _Places(*(self._tensor(column) for column in zip(*places, strict=True)))
            for where, places in found.items()
        }

    def _set(
        self, kind: Kind, layer: int, states: Tensor, source: Tensor, before: int = 0
    ) -> Tensor:
        """``states`` of the batch's rows from ``before`` on, with what is to be set there set."""
        places = self._places.get((kind, layer))
        if places is None:
            return states
        here = (places.rows >= before) & (places.rows < before + len(states))
        rows, tokens, sources = (column[here] for column in places)
        # out of place: the model may still read what it was given
        return states.index_put((rows - before, tokens), source[sources, tokens + self.start])

    @contextmanager
    def _attention_set(self) -> Iterator[None]:
        def put(layer: int, output: Tensor) -> Tensor:
            return self._set("attention", layer, output, self.corrupted.attention[layer])

        layers = sorted({layer for kind, layer in self._places if kind == "attention"})
        with attention_hooks(self.lm, put, layers):
            yield

    @contextmanager
    def _hidden_set(self, first: int) -> Iterator[None]:
        """Set outputs of rows that joined earlier, on their way into the next layer."""
        into = {layer + 1 for kind, layer in self._places if kind == "hidden"}
        with ExitStack() as stack:
            for layer in sorted(layer for layer in into if first < layer < self.lm.n_layers):

                def put(_: nn.Module, args: Any, kwargs: Any, layer: int = layer) -> Any:
                    hidden = args[0] if args else kwargs["hidden_states"]
                    source = self.corrupted.run.layer_inputs[layer]
                    hidden = self._set("hidden", layer - 1, hidden, source)
                    if args:
                        return (hidden, *args[1:]), kwargs
                    return args, {**kwargs, "hidden_states": hidden}

                own = self.lm.own_call(layer, put)
                handle = self.lm.layers[layer].register_forward_pre_hook(own, with_kwargs=True)
                stack.callback(handle.remove)
            yield
