"""Cost of a sequence against its length: seconds of CPU, and the exponent of their growth.

    python benchmarks/sequences.py [--method rome] [--model tiny-gpt2] [LENGTH ...]

With ``--method cheap`` (the default) the edits are random and cost nothing, so that the figure is
that of the engine alone: adding, storing, asking, checkpoints. The bound is an exponent of 1.1.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch

from kn_bench.cases import sources
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.edits.rome import Rome
from kn_bench.measure.drawing import draw_sequences
from kn_bench.measure.engine import Engine
from kn_bench.measure.protocols import Protocol
from kn_bench.measure.sequences import Plan, measure_sequence
from kn_bench.model.loading import load_model


class Cheap:
    """Small random updates of rank one."""

    def __init__(self, lm):
        self.lm = lm
        self.generator = torch.Generator().manual_seed(0)

    def edit(self, requests):
        u = torch.randn(self.lm.d_mlp, 1, generator=self.generator)
        v = torch.randn(1, self.lm.d_model, generator=self.generator) * 1e-4
        return [LowRankEdit((LowRank(0, u, v),)) for _ in requests]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", nargs="*", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--model", default="tiny-gpt2")
    parser.add_argument("--method", default="cheap", choices=("cheap", "rome"))
    chosen = parser.parse_args()
    lm = load_model(chosen.model)
    engine = Engine(lm)
    facts = [c for c in sources.load("embedded").cases if c.task == "fact"]
    spent = []
    for length in (5, *chosen.lengths):  # the first warms up
        protocol = Protocol("sequence", length, 1)
        drawn = draw_sequences(facts, protocol, 1, seed=0, fits=lambda case: True)
        method = Rome(lm) if chosen.method == "rome" else Cheap(lm)
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time(), time.perf_counter()
            plan = Plan(protocol, drawn.sequences[0])
            result = measure_sequence(engine, chosen.method, method, plan, folder=Path(folder))
            spent.append(time.process_time() - started[0])
            wall = time.perf_counter() - started[1]
        print(f"{length:6d} edits  {spent[-1]:8.1f} s CPU  {wall:8.1f} s wall  "
              f"editing {result.edit_seconds:.1f} s wall")  # fmt: skip
    lengths, times = chosen.lengths, spent[1:]
    if len(lengths) > 1:
        growth = math.log(times[-1] / times[0]) / math.log(lengths[-1] / lengths[0])
        print(f"exponent of time against length: {growth:.2f}")


if __name__ == "__main__":
    main()
