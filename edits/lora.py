"""LoRA: low-rank adapters by peft, trained on the answer's tokens and merged into an edit.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. EasyEdit's ``LoRA`` is
AdaLoRA with the same settings. Needs the extra ``peft``.

A minimal pair is edited like a fact: the loss needs no subject. A pair whose differing word is
followed by more text does not apply.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kn_bench.editing.answer_rows import TunedWeights
from kn_bench.editing.bounds import Count, Dropped, Rate, Seed, Weight
from kn_bench.editing.edit import DenseEdit, LowRankDeltas, NotApplicable, RankFactors
from kn_bench.editing.finetuning import TunedRow
from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import SettingError, Settings, recorded, refuse_modules
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.prefixed import padded
from kn_bench.model.progress import stepwise


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """LoRA's hyperparameters.

    Attributes:
        target_modules: ends of the names of the modules that get an adapter.
        rank, lora_alpha, lora_dropout: of the adapters.
        lr, num_steps, weight_decay: of Adam.
        stop_loss: an edit is finished when its loss, before an update, is below this.
        init_seed: of the adapters' beginning and of dropout.
    """

    target_modules: tuple[str, ...]
    rank: Count = 8
    lora_alpha: Count = 32
    lora_dropout: Dropped = 0.1
    lr: Rate = 5e-3
    num_steps: Count = 30
    weight_decay: Weight = 0.0
    stop_loss: Weight = 1e-2
    init_seed: Seed = 0

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return EasyEdit's modules for the family, or the down-projections."""
        names = {name.rpartition(".")[2] for name, _ in lm.hf.named_modules()}
        for modules in (("c_attn",), ("q_proj", "v_proj")):
            if set(modules) <= names:
                return {"target_modules": modules, "settings_from": "EasyEdit's modules"}
        down = lm.architecture.down.rpartition(".")[2]
        return {"target_modules": (down,), "settings_from": "default: down-projections"}

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        if not self.target_modules:
            raise SettingError("target_modules is []: expected ends of modules' names; name one")
        names = [name for name, _ in lm.hf.named_modules()]
        named = (
            [name for name in names if f".{name}".endswith(f".{end}")] or [end]
            for end in self.target_modules
        )
        refuse_modules(lm, "target_modules", chain.from_iterable(named))


class Lora(TunedWeights[LoraSettings]):
    """LoRA on one model."""

    def _tune(self, rows: Sequence[TunedRow]) -> DenseEdit:
        peft = _peft()
        h, hf = self.settings, self.lm.hf
        config = peft.LoraConfig(
            r=h.rank,
            lora_alpha=h.lora_alpha,
            lora_dropout=h.lora_dropout,
            target_modules=list(h.target_modules),
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft sets fan_in_fan_out by itself, and says so
            torch.manual_seed(h.init_seed)
            adapted = peft.get_peft_model(hf, config)
            try:
                losses = self._descend(adapted, rows)
                factors = {
                    f"{name}.weight": _factors(module)
                    for name, module in hf.named_modules()
                    if hasattr(module, "get_delta_weight")
                }
            finally:
                adapted.unload()
        notes = {"final_loss": losses[-1], "passes": len(losses), **recorded(h)}
        return DenseEdit(deltas=LowRankDeltas(factors).copied(), notes=notes)

    def _descend(self, adapted: nn.Module, rows: Sequence[TunedRow]) -> list[float]:
        """Descend on the adapters; dropout is theirs alone, the model stays in eval mode."""
        h, lm = self.settings, self.lm
        for module in adapted.modules():
            dropout = getattr(module, "lora_dropout", None)
            if isinstance(dropout, nn.ModuleDict):
                dropout["default"] = _Dropout(h.lora_dropout)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        adam = torch.optim.Adam(trained, lr=h.lr, weight_decay=h.weight_decay)
        ids = padded(lm, [row.ids for row in rows])
        reads = [
            (i, at, target, 1 / (len(rows) * len(row.targets)))
            for i, row in enumerate(rows)
            for at, target in zip(row.reads, row.targets, strict=True)
        ]
        row_of, place, target = torch.tensor([read[:3] for read in reads], device=lm.device).T
        losses: list[float] = []
        for _ in stepwise(lm.progress, "tuning adapters, step", range(h.num_steps)):
            with torch.enable_grad():
                hidden = lm.hidden(ids, torch.ones_like(ids), use_cache=False).last_hidden_state
                logits = lm.logits(hidden[row_of, place])
                log_p: Tensor = logits.to(wide_dtype(logits.dtype)).log_softmax(1)
                weight = log_p.new_tensor([read[3] for read in reads])
                loss = -(log_p.gather(1, target[:, None])[:, 0] * weight).sum()
            losses.append(float(loss.detach()))
            if losses[-1] < h.stop_loss:
                break
            for parameter, gradient in zip(
                trained, torch.autograd.grad(loss, trained), strict=True
            ):
                parameter.grad = gradient
            adam.step()
        return losses


def _factors(adapted: Any) -> RankFactors:
    """Return the factors of what a module's adapter adds to its weight, in the weight's layout."""
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    b = b * adapted.scaling["default"]
    return RankFactors(a.T, b.T) if adapted.fan_in_fan_out else RankFactors(b, a)


class _Dropout(nn.Module):
    """Dropout drawn on the CPU, so that the edit does not depend on where the model is."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.kept = 1 - p

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.empty_like(x, device="cpu").bernoulli_(self.kept).div_(self.kept)
        return x * drawn.to(x.device)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise NotApplicable("lora needs peft: pip install 'kn_bench[peft]'") from None
    return peft


@edit_method("lora", models="causal", by_default=False, settings=LoraSettings)
def lora(language_model: LanguageModel, settings: LoraSettings) -> Lora:
    """Low-rank adapters, merged."""
    return Lora(language_model, settings)
