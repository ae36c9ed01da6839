"""The optimisation of delta, for many requests at once, each with its own (ROME, equation 4).

Only the layers from the site on and the positions from the subject's last token on are run, and
the vocabulary is projected where the loss reads it. A request whose loss is low enough leaves the
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kn_bench.editing.rome.loss import Batch, Losses
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.model.costs import graph_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import widened
from kn_bench.model.ragged import Place, prepare
from kn_bench.model.transfer import to_host

if TYPE_CHECKING:
    from jaxtyping import Float


def optimise_values(
    lm: LanguageModel,
    layer: int,
    problems: Sequence[ValueProblem],
    settings: ValueSettings,
    *,
    place: Place = "site",
) -> list[Value]:
    """Find every request's delta at ``layer``; the model is untouched.

    Args:
        place: where delta is added: to the site's values (ROME), or to the layer's output (MEMIT).

    Raises:
        ValueError: for a masked model.
    """

    def item_bytes(problem: ValueProblem) -> int:
        rows, reads = len(problem.rows), sum(len(row.reads) for row in problem.rows)
        layers = lm.n_layers - layer
        return rows * graph_bytes(lm, _queries(problem), layers, reads=reads / rows)

    return lm.batcher.run(
        lambda batch: _optimise(lm, layer, batch, settings, place),
        problems,
        item_bytes=item_bytes,
    )


def _queries(problem: ValueProblem) -> int:
    return max(len(row.ids) - row.subject for row in problem.rows)


def _optimise(
    lm: LanguageModel,
    layer: int,
    problems: Sequence[ValueProblem],
    settings: ValueSettings,
    place: Place,
) -> list[Value]:
    rows = [row for problem in problems for row in problem.rows]
    ragged = prepare(
        lm,
        [row.ids for row in rows],
        [row.subject for row in rows],
        layer,
        place=place,
        shared=[row.context for row in rows],
    )
    # bf16 and fp16 weights: the edit's own arithmetic is float32
    keys, outputs = widened(ragged.keys), widened(ragged.values)
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
