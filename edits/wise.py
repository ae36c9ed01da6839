"""WISE: a copy of one weight matrix beside the model's own, and a router between the two.

Wang et al., "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of Large Language
Models", NeurIPS 2024.

    D(x)     |x (W' - W)|, the distance of activations that routes: W' where it is at least epsilon,
             the least distance of what was edited
    loss     -log p(answer) + [D(x_i) - alpha]_+ + [beta - D(x_e)]_+ + [gamma - (D(x_e) - D(x_i))]_+
             x_e where the answer is read, x_i other text
    shards   every ``save_freq`` edits a new copy; each is written in a random share of its entries
    merging  every ``merge_freq`` edits the shards become one by TIES: trim, elect signs, average

A forward pass does not say where its prompt ends. The published code routes a whole query by its
mean distance; here every position is routed by itself, and the copy is trained where the answer is
read. The other text is the text that C is taken over, in place of the locality prompts of zsRE.
Epsilon is taken again after each edit, over the inputs of all that were edited.

A minimal pair is edited like a fact: the loss needs no subject. A pair whose differing word is
followed by more text does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor, nn

from kn_bench.cases.case import EditRequest
from kn_bench.editing.answer_rows import SideMemories
from kn_bench.editing.bounds import Count, Rate, Share, Weight
from kn_bench.editing.edit import MemoryEdit, Notes
from kn_bench.editing.finetuning import PreparedRows, TunedRow
from kn_bench.editing.memories import SideWeights
from kn_bench.editing.method import State
from kn_bench.editing.registry import edit_method
from kn_bench.editing.rome.remembered import corpus_for, noted_texts
from kn_bench.editing.settings import SettingError, Settings, recorded
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.progress import stepwise
from kn_bench.model.seeding import seeded

OTHER_TEXTS = 32
OTHER_TOKENS = 32
"""Other text: so many documents, and tokens of each."""


@dataclass(frozen=True, kw_only=True)
class WiseSettings(Settings):
    """WISE's hyperparameters, published for gpt2-xl.

    Attributes:
        layer: whose down-projection has the copy.
        mask_ratio: share of the entries that a shard may change.
        alpha: margin of other text: its distance stays below.
        beta: margin of what is edited: its distance gets above.
        gamma: margin between the two.
        edit_lr, n_iter: of gradient descent; there is no early stop.
        density: share of a shard's entries that TIES keeps.
        save_freq: edits of a shard.
        merge_freq: edits after which shards are merged; a multiple of ``save_freq``.
        others: texts beside each edit, for the margins.
        mask_seed: of the masks, and of the choice of texts.
    """

    layer: int
    mask_ratio: Share = 0.2
    alpha: Weight = 5.0
    beta: Weight = 20.0
    gamma: Weight = 10.0
    edit_lr: Rate = 1.0
    n_iter: Count = 40
    density: Share = 0.53
    save_freq: Count = 500
    merge_freq: Count = 1000
    others: Annotated[int, Meta(ge=1, le=OTHER_TEXTS)] = 8
    mask_seed: int = 0

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return a layer at two thirds of the depth."""
        return {"layer": 2 * lm.n_layers // 3, "settings_from": "default: two thirds of the depth"}

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        if self.save_freq < 1 or self.merge_freq % self.save_freq:
            raise SettingError(
                f"merge_freq {self.merge_freq}: expected a multiple of save_freq {self.save_freq}"
            )


class SideMemory(NamedTuple):
    """The copies so far, and what was edited in them: the state of a sequence.

    Attributes:
        deltas: W' - W of each: the merged one, where there is one, then the shards.
        keys: the module's inputs where edited answers are read.
        owner: which of ``deltas`` each key was edited in.
        edits: how many there were.
    """

    deltas: Float[Tensor, "n d_mlp d_model"]
    keys: Float[Tensor, "keys d_mlp"]
    owner: Int[Tensor, " keys"]
    edits: Int[Tensor, ""]

    def weights(self) -> SideWeights:
        """Return the copies with the distance from which on each is used."""
        epsilons = [
            (self.keys[self.owner == i] @ delta).norm(dim=-1).min()
            for i, delta in enumerate(self.deltas)
        ]
        return SideWeights(self.deltas, torch.stack(epsilons) * (1 - ROUNDING))


ROUNDING = 1e-4
"""Epsilon lies so much below the least distance: rounding is not to turn that edit away."""


class Wise(SideMemories[WiseSettings]):
    """WISE on one model."""

    called = "WISE"

    # -- learning ---------------------------------------------------------------------------

    def _learn(
        self, pairs: Sequence[tuple[EditRequest, TunedRow]], state: State
    ) -> tuple[MemoryEdit, dict[str, Tensor]]:
        memory = SideMemory(**state) if state else self.empty()
        losses = []
        for request, row in pairs:
            memory, loss = self.learn(memory, row, self.other_keys(request.id))
            losses.append(loss)
        notes: Notes = {
            "copies": len(memory.deltas),
            "final_loss": sum(losses) / len(losses),
            "corpus": noted_texts(self.lm, OTHER_TEXTS),
            **recorded(self.settings),
        }
        module = self.lm.weight_name(self.settings.layer).removesuffix(".weight")
        return MemoryEdit(module, memory.weights(), notes=notes), memory._asdict()

    def empty(self) -> SideMemory:
        """Return no copies."""
        d_mlp, d_model = self.lm.weight(self.settings.layer).shape
        zeros = torch.zeros(0, dtype=wide_dtype(self.lm.dtype), device=self.lm.device)
        count = torch.zeros((), dtype=torch.long, device=self.lm.device)
        return SideMemory(
            zeros.reshape(0, d_mlp, d_model), zeros.reshape(0, d_mlp), count[None][:0], count
        )

    def learn(
        self, memory: SideMemory, row: TunedRow, others: Sequence[Float[Tensor, "tokens d_mlp"]]
    ) -> tuple[SideMemory, float]:
        """Return the copies with one more edit, and its loss before the last update.

        Args:
            others: the module's inputs in other texts.
        """
        h, edits = self.settings, int(memory.edits)
        deltas = memory.deltas
        if edits % h.save_freq == 0:  # a new shard goes on from what is merged
            start = deltas[:1] if edits >= h.merge_freq else self.no_change()
            deltas = torch.cat([deltas, start])
        keys = self._keys_of([row])[0][list(row.reads)]
        delta, loss = self._descend(deltas[-1], self.mask(edits // h.save_freq), row, keys, others)
        memory = SideMemory(
            torch.cat([deltas[:-1], delta[None]]),
            torch.cat([memory.keys, keys]),
            torch.cat([memory.owner, memory.owner.new_full((len(keys),), len(deltas) - 1)]),
            memory.edits + 1,
        )
        return (self.merged(memory) if (edits + 1) % h.merge_freq == 0 else memory), loss

    def no_change(self) -> Float[Tensor, "1 d_mlp d_model"]:
        """Return one copy that differs nowhere."""
        weight = self.lm.weight(self.settings.layer)
        return torch.zeros_like(weight, dtype=wide_dtype(weight.dtype))[None]

    def mask(self, shard: int) -> Bool[Tensor, "d_mlp d_model"]:
        """Return which entries the ``shard``-th shard may change; drawn on the CPU."""
        weight = self.lm.weight(self.settings.layer)
        generator = seeded(self.settings.mask_seed, "wise", str(shard))
        drawn = torch.rand(weight.shape, generator=generator) < self.settings.mask_ratio
        return drawn.to(weight.device)

    def merged(self, memory: SideMemory) -> SideMemory:
        """Return the copies as one: what was merged before, plus the shards' changes by TIES."""
        first = memory.deltas[0] if int(memory.edits) > self.settings.merge_freq else None
        shards = memory.deltas if first is None else memory.deltas[1:] - first
        joined = ties(shards, self.settings.density)
        whole = joined if first is None else first + joined
        return SideMemory(whole[None], memory.keys, torch.zeros_like(memory.owner), memory.edits)

    def _descend(
        self,
        delta: Float[Tensor, "d_mlp d_model"],
        mask: Bool[Tensor, "d_mlp d_model"],
        row: TunedRow,
        keys: Float[Tensor, "reads d_mlp"],
        others: Sequence[Float[Tensor, "tokens d_mlp"]],
    ) -> tuple[Float[Tensor, "d_mlp d_model"], float]:
        """Descend on one copy, in its masked entries."""
        h, lm = self.settings, self.lm
        rows = PreparedRows.of(lm, [[row]], h.layer)
        side = nn.Parameter(delta.clone())
        read = torch.zeros(len(row.ids), 1, dtype=torch.bool, device=lm.device)
        read[list(row.reads)] = True
        # the values that arrive are those under the memory of earlier edits, where it is in force
        weight, bias = lm.weight(h.layer), getattr(lm.site(h.layer), "bias", None)

        def changed(_: int, inputs: Tensor, values: Tensor) -> Tensor:
            flat = inputs.reshape(len(read), -1)
            plain = flat @ weight if bias is None else flat @ weight + bias.to(weight.device)
            added = torch.where(read, flat.to(side) @ side, 0.0)
            return (plain + added.to(plain)).reshape(values.shape)

        loss = torch.zeros(())
        for _ in stepwise(lm.progress, "writing the memory, step", range(h.n_iter)):
            with torch.enable_grad():
                nll = rows.losses_under(changed, [h.layer])[0]
                edited = (keys @ side).norm(dim=-1).mean()
                other = torch.stack([(text @ side).norm(dim=-1).mean() for text in others]).mean()
                margins = (other - h.alpha, h.beta - edited, h.gamma - (edited - other))
                loss = nll + sum(margin.clamp_min(0) for margin in margins)
            (gradient,) = torch.autograd.grad(loss, [side])
            with torch.no_grad():
                side.sub_(h.edit_lr * gradient * mask)
        return side.detach(), float(loss.detach())

    # -- the module's inputs ----------------------------------------------------------------

    def other_keys(self, request: str) -> list[Float[Tensor, "tokens d_mlp"]]:
        """Return the module's inputs in texts that have nothing to do with ``request``."""
        keys = self.lm.memo.get(
            ("wise's other text", self.settings.layer), self._text_keys, original=True
        )
        generator = seeded(self.settings.mask_seed, "wise's other text", request)
        return [
            keys[i] for i in torch.randperm(len(keys), generator=generator)[: self.settings.others]
        ]

    def _text_keys(self) -> list[Float[Tensor, "tokens d_mlp"]]:
        tokens = self.lm.tokens
        texts = islice(corpus_for(self.lm).corpus.documents(), OTHER_TEXTS)
        cut = [tokens.encode(text).ids[:OTHER_TOKENS] for text in texts]
        with self.lm.unedited():
            return self._keys_of([TunedRow(ids, (), ()) for ids in cut if ids])

    def _keys_of(self, rows: Sequence[TunedRow]) -> list[Float[Tensor, "tokens d_mlp"]]:
        """Return the module's inputs at all positions of each text."""
        keys: list[Tensor] = []

        def keep(_: int, inputs: Tensor, values: Tensor) -> Tensor:
            flat = inputs.detach().reshape(-1, inputs.shape[-1])
            keys.append(flat.to(wide_dtype(flat.dtype)))
            return values

        with torch.no_grad(), self.lm.site_hooks(keep, [self.settings.layer]):
            for row in rows:
                self.lm.hidden(self.lm.tensor([row.ids]), use_cache=False)
        return keys


def ties(
    shards: Float[Tensor, "n d_mlp d_model"], density: float
) -> Float[Tensor, "d_mlp d_model"]:
    """Return the changes of the shards as one (Yadav et al., TIES-Merging, NeurIPS 2023).

    Of each the largest ``density`` of its entries are kept; every entry takes the sign of their
    sum, and is the mean of those that have it.
    """
    sizes = shards.abs().flatten(1)
    left_out = int((1 - density) * sizes.shape[1])
    if left_out:
        least = sizes.kthvalue(left_out, dim=1).values
        shards = torch.where(shards.abs() > least[:, None, None], shards, 0.0)
    agreeing = (shards.sign() == shards.sum(0).sign()) & (shards != 0)
    count = agreeing.sum(0).clamp_min(1)
    return torch.where(agreeing, shards, 0.0).sum(0) / count


@edit_method("wise", models="causal", by_default=False, settings=WiseSettings)
def wise(language_model: LanguageModel, settings: WiseSettings) -> Wise:
    """WISE, with its copies carried through a sequence."""
    return Wise(language_model, settings)
