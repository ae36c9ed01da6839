"""The optimisation of delta, for many requests at once, each with its own (ROME, equation 4).

Only the layers from the site on and the positions from the subject's last token on are run, and
the vocabulary is projected where the loss reads it. A request whose loss is low enough leaves the
batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kn_bench.editing.rome.loss import Batch, Losses
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.memo import Memo
from kn_bench.model.prefixed import States
from kn_bench.model.ragged import Place, prepare
from kn_bench.model.transfer import to_host

if TYPE_CHECKING:
    from jaxtyping import Float

GRAPH_BYTES = 1 << 30
"""Rough bound on what one batch's autograd graph may hold, in bytes."""
TENSORS_A_LAYER = 34
"""Vectors of d_model kept for the backward pass, a token and layer (4 x wide MLP, attention)."""


def optimise_values(
    lm: LanguageModel,
    layer: int,
    problems: Sequence[ValueProblem],
    settings: ValueSettings,
    *,
    place: Place = "site",
    store: Memo[States] | None = None,
    graph_bytes: int = GRAPH_BYTES,
) -> list[Value]:
    """Find every request's delta at ``layer``; the model is untouched.

    Args:
        place: where delta is added: to the site's values (ROME), or to the layer's output (MEMIT).
        store: remembers contexts, for a model that is as it was loaded.
        graph_bytes: requests are taken in batches whose graph stays about within it.

    Raises:
        ValueError: for a masked model.
    """
    values: dict[int, Value] = {}
    for indices in _batches(lm, layer, problems, graph_bytes):
        found = _optimise(lm, layer, [problems[index] for index in indices], settings, place, store)
        values.update(zip(indices, found, strict=True))
    return [values[index] for index in range(len(problems))]


def _batches(
    lm: LanguageModel, layer: int, problems: Sequence[ValueProblem], graph_bytes: int
) -> Iterator[list[int]]:
    """Problems of similar length together, as many as the budget allows."""
    a_token = TENSORS_A_LAYER * lm.d_model * max(4, lm.dtype.itemsize) * (lm.n_layers - layer)
    batch: list[int] = []
    rows = 0
    for index in sorted(range(len(problems)), key=lambda i: _queries(problems[i])):
        more = len(problems[index].rows)
        if batch and (rows + more) * _queries(problems[index]) * a_token > graph_bytes:
            yield batch
            batch, rows = [], 0
        batch.append(index)
        rows += more
    if batch:
        yield batch


def _queries(problem: ValueProblem) -> int:
    return max(len(row.ids) - row.subject for row in problem.rows)


def _optimise(
    lm: LanguageModel,
    layer: int,
    problems: Sequence[ValueProblem],
    settings: ValueSettings,
    place: Place,
    store: Memo[States] | None,
) -> list[Value]:
    rows = [row for problem in problems for row in problem.rows]
    ragged = prepare(
        lm,
        [row.ids for row in rows],
        [row.subject for row in rows],
        layer,
        place=place,
        shared=[row.context for row in rows],
        store=store,
    )
    # bf16 and fp16 weights: the edit's own arithmetic is float32
    exact = torch.promote_types(lm.dtype, torch.float32)
    keys, outputs = ragged.keys.to(exact), ragged.values.to(exact)
    batch = Batch.of(lm, problems, ragged)
    firsts = batch.first_rows.tolist()
    deltas, history = _descend(batch, outputs[batch.first_rows], settings)
    return [
        Value(
            keys=keys[first : first + len(problem.contexts)],
            outputs=outputs[first : first + len(problem.contexts)],
            delta=delta.detach(),
            losses=steps[:, 0],
            nll=steps[:, 1],
            kl=steps[:, 2],
            decay=steps[:, 3],
        )
        for problem, first, delta, steps in zip(problems, firsts, deltas, history, strict=True)
    ]


def _descend(
    batch: Batch, v_0: Float[Tensor, "requests d_model"], settings: ValueSettings
) -> tuple[list[nn.Parameter], list[Float[Tensor, "steps 4"]]]:
    """Adam on every request's delta; each stops for itself.

    The published order: the loss is looked at before the update, N passes make N - 1 updates, and
    delta is projected onto its ball after each.
    """
    deltas = [nn.Parameter(torch.zeros_like(v)) for v in v_0]
    adam = torch.optim.Adam(deltas, lr=settings.v_lr)
    history: list[list[Tensor]] = [[] for _ in deltas]
    radii = settings.clamp_norm_factor * v_0.norm(dim=1)
    active = list(range(len(deltas)))
    for step in range(settings.v_num_grad_steps):
        with torch.enable_grad():
            losses = batch.losses(torch.stack([deltas[i] for i in active]), v_0[active], settings)
        # the one question a step that the device is asked: which requests are done
        parts = torch.from_numpy(*to_host(torch.stack(losses, 1)))
        for index, part in zip(active, parts, strict=True):
            history[index].append(part)
        going = parts[:, 0] >= settings.stop_loss
        if step + 1 == settings.v_num_grad_steps or not bool(going.any()):
            break
        _update(adam, deltas, active, losses, going, radii)
        if not bool(going.all()):
            active = [index for index, on in zip(active, going.tolist(), strict=True) if on]
            batch = batch.select(going)
    return deltas, [torch.stack(steps) for steps in history]


def _update(
    adam: torch.optim.Adam,
    deltas: Sequence[nn.Parameter],
    active: Sequence[int],
    losses: Losses,
    going: Tensor,
    radii: Float[Tensor, " requests"],
) -> None:
    """One step of those that go on: Adam passes over parameters without a gradient."""
    on = [index for index, goes in zip(active, going.tolist(), strict=True) if goes]
    adam.zero_grad(set_to_none=True)
    gradients = torch.autograd.grad(losses.total.sum(), [deltas[index] for index in on])
    for index, gradient in zip(on, gradients, strict=True):
        deltas[index].grad = gradient
    adam.step()
    with torch.no_grad():
        for index in on:
            delta = deltas[index]
            delta.mul_((radii[index] / delta.norm().clamp_min(1e-30)).clamp_max(1))
