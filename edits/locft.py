"""LocFT-BF: fine-tuning of one down-projection, breadth first.

ICT-STAR/LocFT, "Fine-tuning done right in model editing", ICLR 2026. Epochs run over all facts in
shuffled mini-batches, where other editors finish one fact before the next; the loss is on the
answer and the end-of-text token.

A minimal pair is edited like a fact: the loss needs no subject. A pair whose differing word is
followed by more text does not apply.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kn_bench.editing.answer_rows import TunedWeights
from kn_bench.editing.bounds import Count
from kn_bench.editing.edit import DenseEdit
from kn_bench.editing.finetuning import TunedRow, TuningSettings, tune_in_batches
from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import Settings, recorded
from kn_bench.model.language_model import LanguageModel

from .ft import batches, dense


@dataclass(frozen=True, kw_only=True)
class LocftSettings(TuningSettings, Settings):
    """Those of the optimisation are inherited; ``num_steps`` counts epochs.

    Attributes:
        layers: whose down-projections are tuned, the weight alone.
        batch_size: facts that make an update.
        order_seed: of the shuffles; the published code has none.
    """

    layers: tuple[int, ...] = (0,)
    batch_size: Count = 100
    order_seed: int = 0

    def epochs(self, n: int) -> Iterator[list[Sequence[int]]]:
        """Yield the batches of each epoch; each shuffle is of the order before."""
        order, generator = list(range(n)), random.Random(self.order_seed)
        for _ in range(self.num_steps):
            generator.shuffle(order)
            yield batches(tuple(order), self.batch_size)


class Locft(TunedWeights[LocftSettings]):
    """LocFT-BF on one model."""

    closed = True

    def _tune(self, rows: Sequence[TunedRow]) -> DenseEdit:
        h = self.settings
        tuned = tune_in_batches(self.lm, h.layers, rows, h, h.epochs(len(rows)), biases=False)
        return dense(self.lm, tuned, recorded(h))


@edit_method("locft-bf", models="causal", by_default=False, settings=LocftSettings)
def locft_bf(language_model: LanguageModel, settings: LocftSettings) -> Locft:
    """Fine-tuning breadth first."""
    return Locft(language_model, settings)
