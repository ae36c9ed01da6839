"""Fine-tuning of down-projections by Adam, many edits at once, each with weights of its own.

The model's weights are never touched: at the edited sites every edit's rows go through a copy of
its own. Layers below the lowest site are run once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_bench.editing.bounds import Count, Rate, Weight
from kn_bench.model.costs import graph_bytes
from kn_bench.model.language_model import LanguageModel, SiteHook
from kn_bench.model.precision import wide_dtype
from kn_bench.model.prefixed import padded
from kn_bench.model.progress import stepwise
from kn_bench.model.resuming import skipping
from kn_bench.model.scoring import log_probs_of
from kn_bench.model.stream import arriving


@dataclass(frozen=True, slots=True)
class TunedRow:
    """One text: its ids, and which token each of ``reads`` is to predict.

    Several targets may be read at one position: FT-L asks for all of them at the prompt's last.
    """

    ids: tuple[int, ...]
    reads: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """Hyperparameters of fine-tuning.

    Attributes:
        lr: Adam's learning rate.
        num_steps: updates at most.
        weight_decay: Adam's.
        norm_constraint: every parameter stays within this of its old value; None: unbounded.
        stop_loss: an edit is finished when its loss, before an update, is below this.
    """

    lr: Rate = 5e-4
    num_steps: Count = 25
    weight_decay: Weight = 0.0
    norm_constraint: Weight | None = None
    stop_loss: Weight = 1e-2


@dataclass(frozen=True)
class Tuned:
    """The outcome of one edit.

    Attributes:
        weights: layer -> change of the site's weight as the map key -> value.
        biases: layer -> change of its bias, where it has one.
        losses: loss before each update.
    """

    weights: Mapping[int, Float[Tensor, "d_mlp d_model"]]
    biases: Mapping[int, Float[Tensor, " d_model"]]
    losses: Float[Tensor, " steps"]


def fine_tune(
    lm: LanguageModel,
    layers: Sequence[int],
    edits: Sequence[Sequence[TunedRow]],
    settings: TuningSettings,
) -> list[Tuned]:
    """Tune the sites of ``layers`` on each edit's rows; the edits know nothing of each other.

    The loss is the mean over rows of the mean over their targets of -log p.

    Raises:
        ValueError: for a masked model.
    """
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name} is a masked model: fine-tuning is defined here for causal ones"
        )
    # float32 copies of the weights, their gradients and Adam's two moments
    copies = 4 * 4 * lm.d_mlp * lm.d_model * len(layers)

    def item_bytes(edit: Sequence[TunedRow]) -> int:
        longest = max(len(row.ids) for row in edit)
        reads = sum(len(row.reads) for row in edit) / len(edit)
        return copies + len(edit) * graph_bytes(lm, longest, lm.n_layers - min(layers), reads=reads)

    return lm.batcher.run(
        lambda batch: _Tuning(lm, sorted(layers), batch, settings).run(),
        edits,
        item_bytes=item_bytes,
    )


def tune_in_batches(
    lm: LanguageModel,
    layers: Sequence[int],
    rows: Sequence[TunedRow],
    settings: TuningSettings,
    epochs: Iterable[Sequence[Sequence[int]]],
    *,
    biases: bool = True,
) -> Tuned:
    """Tune the sites of ``layers`` on all ``rows``, a batch of them at a time.

    A batch whose loss is below ``stop_loss`` is passed over; an epoch whose mean is ends it.

    Args:
        epochs: of each epoch at most, of each batch, which rows it has.
        biases: whether a site's bias is tuned with its weight.

    Raises:
        ValueError: for a masked model.
    """
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name} is a masked model: fine-tuning is defined here for causal ones"
        )
    layers = sorted(layers)
    copy, old = (_Copies(lm, layers, biases=biases) for _ in range(2))
    adam = torch.optim.Adam(copy.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    losses: list[Tensor] = []
    for batches in epochs:
        total = 0.0
        for batch in batches:
            prepared = PreparedRows.of(lm, [[rows[index] for index in batch]], layers[0])
            with torch.enable_grad():
                (loss,) = prepared.losses([copy], layers)
            losses.append(loss.detach().cpu())
            total += float(loss.detach()) * len(batch)
            if float(loss.detach()) >= settings.stop_loss:
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
                _bound(copy, old, settings.norm_constraint)
        if total / sum(map(len, batches)) < settings.stop_loss:
            break
    return _tuned(copy, old, layers, losses)


@torch.no_grad()
def _bound(new: _Copies, old: _Copies, bound: float | None) -> None:
    """Keep every parameter within ``bound`` of its old value."""
    if bound is not None:
        for parameter, before in zip(new.parameters(), old.parameters(), strict=True):
            parameter.clamp_(before - bound, before + bound)


def _tuned(new: _Copies, old: _Copies, layers: Sequence[int], losses: Sequence[Tensor]) -> Tuned:
    return Tuned(
        {i: (new.weights[str(i)] - old.weights[str(i)]).detach() for i in layers},
        {int(i): (new.biases[i] - old.biases[i]).detach() for i in old.biases},
        torch.stack(list(losses)),
    )


class _Copies(nn.Module):
    """One edit's own copies of the sites' weights and biases, in float32 or wider."""

    def __init__(self, lm: LanguageModel, layers: Sequence[int], *, biases: bool = True) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({str(layer): _copied(lm.weight(layer)) for layer in layers})
        self.biases = nn.ParameterDict()
        self.kept_biases: dict[str, Tensor] = {}
        for layer in layers:
            bias = getattr(lm.site(layer), "bias", None)
            if isinstance(bias, Tensor) and biases:
                self.biases[str(layer)] = _copied(bias)
            elif isinstance(bias, Tensor):
                self.kept_biases[str(layer)] = bias.detach()

    def values(self, layer: int, keys: Float[Tensor, "rows T d_mlp"]) -> Tensor:
        values: Tensor = keys @ self.weights[str(layer)].to(keys.dtype)
        for biases in (self.biases, self.kept_biases):
            if str(layer) in biases:
                values = values + biases[str(layer)].to(keys.dtype)
        return values


def _copied(tensor: Tensor) -> nn.Parameter:
    """Copy in float32 or wider: Adam's steps are smaller than the spacing of 16-bit weights."""
    return nn.Parameter(tensor.detach().to(wide_dtype(tensor.dtype), copy=True))


class _Tuning:
    """Some edits on their way together."""

    def __init__(
        self,
        lm: LanguageModel,
        layers: Sequence[int],
        edits: Sequence[Sequence[TunedRow]],
        settings: TuningSettings,
    ) -> None:
        self.lm, self.layers, self.settings = lm, layers, settings
        self.edits = edits
        self.copies = [_Copies(lm, layers) for _ in edits]
        self.old = _Copies(lm, layers)
        self.losses: list[list[Tensor]] = [[] for _ in edits]

    def run(self) -> list[Tuned]:
        adam = torch.optim.Adam(
            [parameter for copy in self.copies for parameter in copy.parameters()],
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
        )
        active = list(range(len(self.edits)))
        batch = PreparedRows.of(self.lm, [self.edits[index] for index in active], self.layers[0])
        what, steps = f"tuning {len(active)} edits, step", range(self.settings.num_steps)
        for _ in stepwise(self.lm.progress, what, steps):
            with torch.enable_grad():
                losses = batch.losses([self.copies[i] for i in active], self.layers)
            for index, loss in zip(active, losses.detach().cpu(), strict=True):
                self.losses[index].append(loss)
            going = (losses.detach() >= self.settings.stop_loss).tolist()
            if not any(going):
                break
            self._update(adam, losses, [i for i, on in zip(active, going, strict=True) if on])
            if not all(going):
                active = [index for index, on in zip(active, going, strict=True) if on]
                batch = PreparedRows.of(self.lm, [self.edits[i] for i in active], self.layers[0])
        return [
            _tuned(copy, self.old, self.layers, losses)
            for copy, losses in zip(self.copies, self.losses, strict=True)
        ]

    def _update(self, adam: torch.optim.Adam, losses: Tensor, going: Sequence[int]) -> None:
        adam.zero_grad(set_to_none=True)
        parameters = [p for index in going for p in self.copies[index].parameters()]
        gradients = torch.autograd.grad(losses.sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        for index in going:
            _bound(self.copies[index], self.old, self.settings.norm_constraint)


@dataclass(frozen=True)
class PreparedRows:
    """The rows of some edits, ready to be run from the lowest edited layer on.

    A row is one text; a read is one position of a row whose next token is predicted. ``reads``
    index the flat list of all of them: its edit, row, position and target.
    """

    lm: LanguageModel
    ids: Int[Tensor, "rows T"]
    hidden: Float[Tensor, "rows T d_model"]
    first: int
    counts: tuple[int, ...]
    read_row: Int[Tensor, " reads"]
    read_at: Int[Tensor, " reads"]
    read_target: Int[Tensor, " reads"]
    read_weight: Float[Tensor, " reads"]
    read_edit: Int[Tensor, " reads"]

    @classmethod
    def of(cls, lm: LanguageModel, edits: Sequence[Sequence[TunedRow]], first: int) -> PreparedRows:
        rows = [row for edit in edits for row in edit]
        ids = padded(lm, [row.ids for row in rows])
        with torch.no_grad(), arriving(lm, first) as inputs:
            lm.hidden(ids, torch.ones_like(ids), use_cache=False)
        reads = list(_reads(edits))
        numbers = torch.tensor([read[:4] for read in reads], device=lm.device).T
        exact = wide_dtype(lm.dtype)
        return cls(
            lm=lm,
            ids=ids,
            hidden=inputs[0],
            first=first,
            counts=tuple(len(edit) for edit in edits),
            read_row=numbers[0],
            read_at=numbers[1],
            read_target=numbers[2],
            read_weight=torch.tensor([read[4] for read in reads], dtype=exact, device=lm.device),
            read_edit=numbers[3],
        )

    def losses(self, copies: Sequence[_Copies], layers: Sequence[int]) -> Float[Tensor, " edits"]:
        """Return each edit's loss with its own weights."""

        def own(layer: int, keys: Tensor, values: Tensor) -> Tensor:
            keys = keys.reshape(*self.ids.shape, -1)
            parts = torch.split(keys, list(self.counts))
            own_values = [c.values(layer, part) for c, part in zip(copies, parts, strict=True)]
            return torch.cat(own_values).reshape(values.shape)

        return self.losses_under(own, layers)

    def losses_under(self, change: SiteHook, layers: Sequence[int]) -> Float[Tensor, " edits"]:
        """Return each edit's loss while the sites of ``layers`` answer by ``change``."""
        with ExitStack() as stack:
            if self.lm.architecture.resumable:
                stack.enter_context(skipping(self.lm, range(self.first)))
                stack.enter_context(self.lm.input_hooks(lambda _, __: self.hidden, [self.first]))
            stack.enter_context(self.lm.site_hooks(change, layers))
            hidden = self.lm.hidden(
                self.ids, torch.ones_like(self.ids), use_cache=False
            ).last_hidden_state
        log_p = log_probs_of(self.lm, hidden[self.read_row, self.read_at])
        each = -log_p.gather(1, self.read_target[:, None])[:, 0] * self.read_weight
        return each.new_zeros(len(self.counts)).index_add(0, self.read_edit, each)


def _reads(
    edits: Sequence[Sequence[TunedRow]],
) -> Iterator[tuple[int, int, int, int, float]]:
    """Yield (row, position, target, edit, weight) of every read."""
    row = 0
    for index, edit in enumerate(edits):
        for text in edit:
            weight = 1 / (len(edit) * len(text.targets))
            for at, target in zip(text.reads, text.targets, strict=True):
                yield row, at, target, index, weight
            row += 1
