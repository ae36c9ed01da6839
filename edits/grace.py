"""GRACE: a codebook beside one linear module; inside a ball around a key its value is the output.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors",
NeurIPS 2023.

    key     the module's input at the prompt's last token; value: by Adam on the answer's loss
    new     no ball within reach, eps_init + eps_j: a key of its own
    expand  the nearest ball has the same answer: its radius grows
    split   it has another answer: both radii become half the distance

A forward pass does not say where its prompt ends. The published code keeps the position of the last
edit's prompt, so that a longer prompt is asked at another token; here every position is asked, and
the value is put wherever a position lies in a ball.

A minimal pair is edited like a fact: the key is the token before the word that differs. Text before
the gap that several pairs share is one key, so that pairs with the same beginning split it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kn_bench.cases.case import EditRequest
from kn_bench.editing.answer_rows import SideMemories
from kn_bench.editing.bounds import Count, Rate, Weight
from kn_bench.editing.edit import MemoryEdit, Notes
from kn_bench.editing.finetuning import TunedRow
from kn_bench.editing.memories import Codebook
from kn_bench.editing.method import State
from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import Settings, recorded, refuse_modules
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.progress import stepwise
from kn_bench.model.seeding import seeded


@dataclass(frozen=True, kw_only=True)
class GraceSettings(Settings):
    """GRACE's hyperparameters.

    Attributes:
        layer: which layer's down-projection has the codebook.
        module: another linear module, by name in the model; "" for the down-projection.
        eps: radius of a new key's ball.
        edit_lr, n_iter: of Adam on the values; there is no early stop.
        val_init: values start at a uniform draw (cold) or at the module's own output (warm).
        replacement: the output is replaced at the key's position, or at all before it.
        eps_expand: a ball grows to the new prompt, or its key moves half way as well.
    """

    layer: int
    module: str = ""
    eps: Weight = 1.0
    edit_lr: Rate = 1.0
    n_iter: Count = 50
    val_init: Literal["cold", "warm"] = "cold"
    replacement: Literal["replace_last", "replace_prompt"] = "replace_last"
    eps_expand: Literal["coverage", "moving_average"] = "coverage"

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return a layer at two thirds of the depth."""
        return {"layer": 2 * lm.n_layers // 3, "settings_from": "default: two thirds of the depth"}

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        refuse_modules(lm, "module", [self.module] if self.module else [])


class Learnt(NamedTuple):
    """A codebook after one edit, and the losses on the way."""

    codebook: Codebook
    losses: Float[Tensor, " n_iter"]
    chosen: int


class Grace(SideMemories[GraceSettings]):
    """GRACE on one model."""

    called = "GRACE"

    def __init__(self, lm: LanguageModel, settings: GraceSettings) -> None:
        super().__init__(lm, settings)
        self.name = settings.module or lm.weight_name(settings.layer).removesuffix(".weight")

    def memory_edit(self, codebook: Codebook, notes: Notes | None = None) -> MemoryEdit:
        """Return the edit that has ``codebook`` beside the module: its state is all it holds."""
        before_last = self.settings.replacement == "replace_prompt"
        return MemoryEdit(self.name, codebook, before_last=before_last, notes=notes or {})

    # -- learning ---------------------------------------------------------------------------

    def _learn(
        self, pairs: Sequence[tuple[EditRequest, TunedRow]], state: State
    ) -> tuple[MemoryEdit, dict[str, Tensor]]:
        codebook = Codebook(**state) if state else self.empty()
        losses: list[float] = []
        for request, row in pairs:
            draw = torch.rand(codebook.values.shape[1], generator=seeded(0, "grace", request.id))
            codebook, history, _ = self.learn(codebook, row, draw.to(codebook.values))
            losses.append(float(history[-1]))
        notes: Notes = {
            "keys": len(codebook.keys),
            "final_loss": sum(losses) / len(losses),
            **recorded(self.settings),
        }
        return self.memory_edit(codebook, notes), dict(vars(codebook))

    def empty(self) -> Codebook:
        """Return a codebook without keys."""
        weight = self.lm.hf.get_submodule(self.name).weight
        linear = isinstance(self.lm.hf.get_submodule(self.name), nn.Linear)
        d_out, d_in = weight.shape if linear else weight.shape[::-1]
        zeros = torch.zeros(0, dtype=wide_dtype(self.lm.dtype), device=self.lm.device)
        answers = torch.zeros(0, 0, dtype=torch.long, device=self.lm.device)
        return Codebook(zeros.reshape(0, d_in), zeros.reshape(0, d_out), zeros, answers)

    def learn(self, codebook: Codebook, row: TunedRow, draw: Float[Tensor, " d_out"]) -> Learnt:
        """Return the codebook with one more edit.

        Args:
            draw: where a new value starts, if it starts cold.
        """
        query, own = self._at_key(row)
        start = own if self.settings.val_init == "warm" else draw
        answer = torch.tensor(row.targets, device=query.device)
        codebook = self._placed(codebook, query, start, answer)
        _, index = codebook.nearest(query)
        values, losses = self._values(codebook, row, int(index))
        return Learnt(replace(codebook, values=values), losses, int(index))

    def _placed(self, codebook: Codebook, query: Tensor, start: Tensor, answer: Tensor) -> Codebook:
        """Add a new key, expand or split the nearest ball, or change nothing."""
        h = self.settings
        if not len(codebook.keys):
            return codebook.with_key(query, start, h.eps, answer)
        nearest, index = codebook.nearest(query)
        distance, j = float(nearest), int(index)
        if distance > h.eps + float(codebook.epsilons[j]):
            return codebook.with_key(query, start, h.eps, answer)
        epsilons, keys = codebook.epsilons.clone(), codebook.keys.clone()
        if not codebook.same_answer(j, answer):
            epsilons[j] = distance / 2 - 1e-5
            split = replace(codebook, epsilons=epsilons)
            return split.with_key(query, start, distance / 2, answer)
        if distance > float(epsilons[j]):
            epsilons[j] = distance
            if h.eps_expand == "moving_average":
                keys[j] = (keys[j] + query) / 2
        return replace(codebook, keys=keys, epsilons=epsilons)

    def _at_key(self, row: TunedRow) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]:
        """Return the module's input and output at the prompt's last token."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: Any, output: Tensor) -> None:
            for states in (args[0], output):
                seen.append(states.detach().reshape(len(row.ids), -1)[row.reads[0]])

        handle = self.lm.hf.get_submodule(self.name).register_forward_hook(keep)
        try:
            with torch.no_grad():
                self.lm.hidden(self.lm.tensor([row.ids]), use_cache=False)
        finally:
            handle.remove()
        query, own = (states.to(wide_dtype(states.dtype)) for states in seen)
        return query, own

    def _values(
        self, codebook: Codebook, row: TunedRow, index: int
    ) -> tuple[Float[Tensor, "n d_out"], Float[Tensor, " n_iter"]]:
        """Descend on the chosen value by Adam; the others have no gradient and do not move."""
        h, lm = self.settings, self.lm
        value = nn.Parameter(codebook.values[index].clone())
        at, stop = row.reads[0], len(row.ids)
        inside = torch.zeros(stop, 1, dtype=torch.bool, device=lm.device)
        inside[slice(at) if h.replacement == "replace_prompt" else at] = True

        def put(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            rows = output.reshape(stop, -1)
            return torch.where(inside, value.to(rows.dtype), rows).reshape(output.shape)

        adam = torch.optim.Adam([value], lr=h.edit_lr)
        losses = []
        ids, targets = lm.tensor([row.ids]), torch.tensor(row.targets, device=lm.device)
        handle = lm.hf.get_submodule(self.name).register_forward_hook(put)
        try:
            for _ in stepwise(lm.progress, "learning the value, step", range(h.n_iter)):
                with torch.enable_grad():
                    hidden = lm.hidden(ids, use_cache=False).last_hidden_state
                    logits = lm.logits(hidden[0, list(row.reads)])
                    log_p = logits.to(wide_dtype(logits.dtype)).log_softmax(1)
                    loss = -log_p.gather(1, targets[:, None]).mean()
                losses.append(loss.detach().cpu())
                (value.grad,) = torch.autograd.grad(loss, [value])
                adam.step()
        finally:
            handle.remove()
        values = codebook.values.clone()
        values[index] = value.detach()
        return values, torch.stack(losses)


@edit_method("grace", models="causal", by_default=False, settings=GraceSettings)
def grace(language_model: LanguageModel, settings: GraceSettings) -> Grace:
    """GRACE, with its codebook carried through a sequence."""
    return Grace(language_model, settings)
