"""Restore some states of corrupted runs, running each only from where it begins to differ.

A restored run equals its corrupted run up to the layer and (in a causal model) the token that is
restored, so it starts there; and one that sets the same states as another up to some layer branches
off it there. The states of one token, of all layers and samples, run together; states that the
noise cannot reach, and those past the last layer, are not run at all. All of it is exact.

Three axes of rows meet here:

    corrupted run   prompt * (1 + samples) + 0       the clean row of a prompt
                    prompt * (1 + samples) + 1 + s   its noisy rows (:meth:`Corrupted.rows`)
    one pass        branch * samples + s             rows present; start is column 0 of Tq
    result          branch, s                        a reshape of the last

Branches are sorted by the layer at which they join, since :func:`resume` appends joining rows to
those present: a stem joins earlier than its branches, so its rows are there to be copied.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.localise.corruption import Corrupted, Kind, answer_probability
from kn_bench.model.attention import attention_hooks
from kn_bench.model.costs import forward_bytes
from kn_bench.model.resuming import may_resume, resume


class Patch(NamedTuple):
    """One state that is set: to its clean value, or kept at its corrupted one.

    ``clean=False`` freezes a state that restoring another would change (a severed path).
    """

    kind: Kind
    layer: int
    token: int
    clean: bool = True

    @property
    def depth(self) -> int:
        """The first layer that it changes, from inside or through its input."""
        return self.layer + (self.kind == "hidden")


class PatchedRun(NamedTuple):
    """The corrupted runs of prompt number ``prompt`` with these states set."""

    prompt: int
    patches: tuple[Patch, ...]


Steps = list[tuple[Patch, ...]]
"""Layer -> what is set there."""


class Branch(NamedTuple):
    """A run, and where it departs from what runs already.

    Attributes:
        join: the layer at whose input it begins to differ from ``stem``.
        stem: index of the branch that it equals until there; None for its corrupted run.
    """

    run: PatchedRun
    join: int
    stem: int | None


@torch.no_grad()
def restore(corrupted: Corrupted, runs: Sequence[PatchedRun]) -> Float[Tensor, "runs samples"]:
    """Return P(answer) of corrupted runs with states set; equal runs run once.

    Args:
        runs: any; one without effective patches is its corrupted run.
    """
    effective = [PatchedRun(run.prompt, _effective(corrupted, run)) for run in runs]
    regained: dict[PatchedRun, Tensor] = {}
    by_start: dict[int, list[PatchedRun]] = defaultdict(list)
    for run in dict.fromkeys(effective):
        if run.patches:
            by_start[_start(corrupted, run)].append(run)
        else:
            regained[run] = corrupted.probability[run.prompt, 1:]
    for start, group in by_start.items():
        # sorted by what they set, so that a batch holds runs with the most in common
        ordered = sorted(group, key=lambda run: (run.prompt, _steps(run, corrupted.lm.n_layers)))
        together = functools.partial(_together, corrupted, ordered, start)
        row = _row_bytes(corrupted, start)
        for part in corrupted.lm.batcher.parts(together, len(ordered), corrupted.samples * row):
            regained.update(part)
    return torch.stack([regained[run] for run in effective])


def branched(runs: Sequence[PatchedRun], n_layers: int) -> list[Branch]:
    """Arrange distinct runs as a tree, in the order of the layers at which they branch off.

    Sorted by what they set, layer after layer, each run has the most in common with the one before
    it, and the two run as one up to the first layer where they differ.

    Args:
        runs: with patches, those of each in order.
    """
    joined: list[tuple[int, PatchedRun, PatchedRun | None]] = []
    ordered = sorted((run.prompt, _steps(run, n_layers), run) for run in runs)
    for _, group in groupby(ordered, itemgetter(0)):
        before: Steps = [()] * (n_layers + 1)
        # the branches that lead to the run before, by rising depth; those that join at or after the
        # layer where this run differs belong to that run alone
        stems: list[tuple[int, PatchedRun]] = []
        for _, steps, run in group:
            join = next(d for d in range(n_layers + 1) if before[d] != steps[d])
            while stems and stems[-1][0] >= join:
                stems.pop()
            joined.append((join, run, stems[-1][1] if stems else None))
            stems.append((join, run))
            before = steps
    joined.sort(key=lambda branch: branch[0])
    number = {run: i for i, (_, run, _) in enumerate(joined)}
    return [Branch(run, join, None if stem is None else number[stem]) for join, run, stem in joined]


def _steps(run: PatchedRun, n_layers: int) -> Steps:
    """Return what a run sets, layer by layer."""
    steps: Steps = [()] * (n_layers + 1)
    for patch in run.patches:
        steps[patch.depth] += (patch,)
    return steps


def _effective(corrupted: Corrupted, run: PatchedRun) -> tuple[Patch, ...]:
    """Return the patches that can change the answer, sorted.

    In a causal model only those from the subject to the answer can.
    """
    prompt, patches = corrupted.prompts[run.prompt], sorted(set(run.patches))
    if not corrupted.lm.is_causal:
        return tuple(patches)
    return tuple(p for p in patches if prompt.subject[0] <= p.token <= prompt.position)


def _start(corrupted: Corrupted, run: PatchedRun) -> int:
    """Return the first position that has to run."""
    lm = corrupted.lm
    late = lm.is_causal and may_resume(lm, corrupted.run.ids.shape[1])
    return min(patch.token for patch in run.patches) if late else 0


def _together(
    corrupted: Corrupted, runs: Sequence[PatchedRun], start: int, part: range
) -> dict[PatchedRun, Float[Tensor, " samples"]]:
    """Return P(answer) of part of the runs, from one pass."""
    branches = branched(runs[part.start : part.stop], corrupted.lm.n_layers)
    regained = _Pass(corrupted, branches, start).run()
    return dict(zip([branch.run for branch in branches], regained, strict=True))


def _row_bytes(corrupted: Corrupted, start: int) -> int:
    """Return the bytes of one row, doubled: half of a pass is for the corrupted runs' states."""
    length = corrupted.run.ids.shape[1]
    # one layer's keys and values are gathered for its rows at a time
    a_layer = 2 * length * corrupted.lm.d_model * corrupted.lm.dtype.itemsize
    return 2 * (forward_bytes(corrupted.lm, length - start) + a_layer)


class _Places(NamedTuple):
    """Where states are set in a batch, and which rows of the corrupted run they come from."""

    rows: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    sources: Int[Tensor, " n"]


class _Pass:
    """Some branches in one batch, from position ``start`` on."""

    def __init__(self, corrupted: Corrupted, branches: Sequence[Branch], start: int) -> None:
        self.corrupted, self.branches, self.start = corrupted, branches, start
        self.lm = corrupted.lm

    def run(self) -> Float[Tensor, "branches samples"]:
        rows: dict[int, list[int]] = defaultdict(list)
        for branch in self.branches:
            rows[branch.join] += self.corrupted.rows(branch.run.prompt)
        joins = {layer: self._tensor(noisy) for layer, noisy in rows.items()}
        joins.pop(self.lm.n_layers, None)  # these change only what the head reads
        hidden = self.corrupted.run.last_hidden[:0, self.start :]
        if joins:
            with self._attention_set():
                hidden = resume(
                    self.lm,
                    self.corrupted.run,
                    joins=joins,
                    start=self.start,
                    hook=lambda layer, _, values: self._set("mlp", layer, values),
                    arriving=self._arriving,
                )
        hidden = self._arriving(self.lm.n_layers, hidden)
        prompts = [self.corrupted.prompts[branch.run.prompt] for branch in self.branches]
        p = answer_probability(self.lm, hidden, prompts, self.corrupted.samples, self.start)
        return p.reshape(len(self.branches), -1)

    def _arriving(self, layer: int, before: Tensor) -> Float[Tensor, "rows Tq d_model"]:
        """Return the input of ``layer``: rows that branch off there copy their stem's."""
        source, samples = self.corrupted.states("hidden", layer - 1), self.corrupted.samples
        parts = [before]
        for run, join, stem in self.branches:
            if join == layer:
                rows = self.corrupted.rows(run.prompt)
                own = source[rows.start : rows.stop, self.start :]
                parts.append(own if stem is None else before[stem * samples :][:samples])
        return self._set("hidden", layer - 1, torch.cat(parts) if parts[1:] else before)

    def _tensor(self, values: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(values, dtype=torch.long, device=self.corrupted.run.ids.device)

    @functools.cached_property
    def _places(self) -> dict[tuple[Kind, int], _Places]:
        # (kind, layer) -> row of the pass, column of Tq, row of the corrupted run
        places: dict[tuple[Kind, int], list[tuple[int, int, int]]] = defaultdict(list)
        for number, branch in enumerate(self.branches):
            noisy = self.corrupted.rows(branch.run.prompt)
            for patch in branch.run.patches:
                if patch.depth < branch.join:
                    continue  # its stem has it
                places[patch.kind, patch.layer] += [
                    (
                        number * len(noisy) + sample,
                        patch.token - self.start,
                        noisy[0] - 1 if patch.clean else row,
                    )
                    for sample, row in enumerate(noisy)
                ]
        return {
            where: _Places(*(self._tensor(column) for column in zip(*entries, strict=True)))
            for where, entries in places.items()
        }

    def _set(self, kind: Kind, layer: int, states: Tensor) -> Tensor:
        """Return ``states`` with the patches of this kind and layer put in."""
        places = self._places.get((kind, layer))
        if places is None:
            return states
        rows, tokens, sources = places
        new = self.corrupted.states(kind, layer)[sources, tokens + self.start]
        # out of place: the model may still read what it was given
        return states.index_put((rows, tokens), new)

    @contextmanager
    def _attention_set(self) -> Iterator[None]:
        def put(layer: int, output: Tensor) -> Tensor:
            return self._set("attention", layer, output)

        layers = sorted({layer for kind, layer in self._places if kind == "attention"})
        with attention_hooks(self.lm, put, layers):
            yield
