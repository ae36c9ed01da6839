"""The optimisation of delta, for many requests at once, each with its own (ROME, equation 4).

Only the layers from the site on and the positions from the subject's last token on are run, and
the vocabulary is projected where the loss reads it. A request whose loss is low enough leaves the
batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kn_bench.editing.rome.loss import Batch, Losses
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.model.costs import graph_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import widened
from kn_bench.model.progress import Advance
from kn_bench.model.ragged import Place, prepare
from kn_bench.model.transfer import to_host

PREPARED = 1.5
"""The passes before the descent take about as long as this many of its steps."""


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
        place: where delta is added: to the site's values (ROME), to the layer's output (MEMIT), or
            to the values of the site and to the attention's (PMET), a delta each.

    Raises:
        ValueError: for a masked model.
    """

    def item_bytes(problem: ValueProblem) -> int:
        rows, reads = len(problem.rows), sum(len(row.reads) for row in problem.rows)
        layers = lm.n_layers - layer
        return rows * graph_bytes(lm, _queries(problem), layers, reads=reads / rows)

    # one task for all batches: what is left of the first says nothing of the others
    with lm.progress.task("editing, fact", len(problems)) as advance:
        return lm.batcher.run(
            lambda batch: _optimise(lm, layer, batch, settings, place, advance),
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
    advance: Advance,
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
    facts_a_step = len(problems) / (PREPARED + settings.v_num_grad_steps)

    def done(steps: float) -> None:
        advance(steps * facts_a_step)

    done(PREPARED)
    # bf16 and fp16 weights: the edit's own arithmetic is float32
    keys, outputs = widened(ragged.keys), widened(ragged.values)
    batch = Batch.of(lm, problems, ragged)
    firsts = batch.first_rows.tolist()
    deltas, history = _descend(batch, outputs[batch.first_rows], settings, done)
    values = []
    for problem, first, delta, steps in zip(problems, firsts, deltas, history, strict=True):
        offset = delta
        beside = None
        if place == "both":
            beside = outputs[first, 1] + offset[1]
            offset = offset[0]
        v_site = widened(ragged.site_values[first])
        if settings.norm_anchor:
            offset = anchored(v_site, offset, settings.norm_anchor)
        here = slice(first, first + len(problem.contexts))
        values.append(
            Value(
                keys=keys[here],
                outputs=outputs[here, 0] if place == "both" else outputs[here],
                delta=offset,
                v_site=v_site + offset,
                losses=steps[:, 0],
                nll=steps[:, 1],
                kl=steps[:, 2],
                decay=steps[:, 3],
                beside=beside,
            )
        )
    return values


def anchored(
    v_0: Float[Tensor, " d_model"], delta: Float[Tensor, " d_model"], norm: float
) -> Float[Tensor, " d_model"]:
    """Return the delta for which |v_0 + delta| is ``norm``: NAS, norm-anchor scaling.

    Scaled up as well as down; where it is above twice the norm there is no change.
    """
    v_star = v_0 + delta
    size = v_star.norm()
    if float(size) > 2 * norm:
        return torch.zeros_like(delta)
    scaled: Tensor = v_star * (norm / (size + 1e-10)) - v_0
    return scaled


class _Progress:
    """What decides, beside the loss, when each request is finished: ENCORE's and PMET's rules."""

    def __init__(self, batch: Batch, settings: ValueSettings, like: Tensor) -> None:
        self.settings = settings
        self.reads, self.reads_in_contexts = zip(*batch.counts, strict=True)
        self.passes_at_rank_1 = [0] * len(self.reads)
        self.nll_factor = torch.ones(len(self.reads), dtype=like.dtype, device=like.device)

    def finished(self, index: int, part: Float[Tensor, " parts"]) -> bool:
        """Return whether request ``index`` is finished, given the parts of its loss."""
        total, _, kl, _, right, right_in_contexts = part.tolist()
        s = self.settings
        if s.stop_after_rank_1:
            wanted = s.rank_1_reads or self.reads_in_contexts[index] or self.reads[index]
            reached = right_in_contexts if self.reads_in_contexts[index] else right
            self.passes_at_rank_1[index] += int(reached) == wanted
            if self.passes_at_rank_1[index] >= s.stop_after_rank_1:
                return True
        settled = s.settled_nll_factor != 1 and int(right) == self.reads[index]
        self.nll_factor[index] = s.settled_nll_factor if settled else 1.0
        return not total >= s.stop_loss or (settled and kl <= s.settled_kl)  # not: NaN ends it too


def _descend(
    batch: Batch,
    v_0: Float[Tensor, "requests *places d_model"],
    settings: ValueSettings,
    advance: Advance,
) -> tuple[Float[Tensor, "requests *places d_model"], list[Float[Tensor, "steps 6"]]]:
    """Descend on every request's delta by Adam; each stops for itself.

    The published order: the loss is looked at before the update, N passes make N - 1 updates, and
    delta is projected onto its ball after each.

    Args:
        advance: told of each step, and at the end of those that were not needed.
    """
    # Adam is elementwise, so that one parameter serves all requests. It goes on changing those that
    # are finished: ``reached`` holds their final deltas
    deltas = nn.Parameter(torch.zeros_like(v_0))
    reached = torch.zeros_like(v_0)
    adam = torch.optim.Adam([deltas], lr=settings.v_lr)
    history: list[list[Tensor]] = [[] for _ in v_0]
    radii = settings.clamp_norm_factor * v_0.norm(dim=-1, keepdim=True)
    active = list(range(len(v_0)))
    progress = _Progress(batch, settings, v_0)
    left = settings.v_num_grad_steps
    while left:
        with torch.enable_grad():
            factor = progress.nll_factor[active]
            losses = batch.losses(deltas[active], v_0[active], settings, factor)
        # the one question a step that the device is asked: which requests are done
        parts = torch.from_numpy(*to_host(torch.stack(losses, 1)))
        on = []
        for index, part in zip(active, parts, strict=True):
            history[index].append(part)
            on.append(not progress.finished(index, part))
        left -= 1
        advance(1)
        if not left or not any(on):
            break
        if not all(on):
            reached[active] = deltas.detach()[active]
        _update(adam, deltas, losses, radii)
        if not all(on):
            active = [index for index, goes in zip(active, on, strict=True) if goes]
            batch = batch.select(torch.tensor(on))
    reached[active] = deltas.detach()[active]
    advance(left)
    return reached, [torch.stack(steps) for steps in history]


def _update(
    adam: torch.optim.Adam,
    deltas: Float[nn.Parameter, "requests *places d_model"],
    losses: Losses,
    radii: Float[Tensor, "requests *places 1"],
) -> None:
    """Take one step of Adam, and project every delta onto its ball."""
    (deltas.grad,) = torch.autograd.grad(losses.total.sum(), [deltas])
    adam.step()
    with torch.no_grad():
        size = deltas.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        deltas.mul_((radii / size).clamp_max(1))
