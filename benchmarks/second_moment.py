"""Where the time of a second moment C = E[k k^T] goes: the share of matrix products.

    python benchmarks/second_moment.py [--small] [--tokens 20000] [--layers 4]

A random model of GPT-2 small's size reads random text; torch's profiler sums the self time of every
operator. Printed with it is the rate in tokens a second.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from benchmarks.attribution import SMALL, Size, random_model
from benchmarks.common import timed
from kn_bench.model.second_moment import second_moments

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "flash_attention")
"""Operators that are matrix products, fused attention among them."""
SHOWN = 8


class RandomText:
    """Documents of random words."""

    def __init__(self, documents: int, words: int = 64) -> None:
        drawn = torch.randint(5, 64, (documents, words), generator=torch.Generator().manual_seed(0))
        self.texts = [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]

    @property
    def content_hash(self) -> str:
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        return iter(self.texts)


def is_product(operator: str) -> bool:
    name = operator.removeprefix("aten::")
    return name in PRODUCTS or any(part in name for part in PRODUCTS[-1:])


def shares(events: Sequence[tuple[str, float]]) -> list[tuple[str, float, bool]]:
    """Sort operators by their share of all time, the largest first."""
    whole = sum(time for _, time in events)
    by_operator = [(name, time / whole, is_product(name)) for name, time in events]
    return sorted(by_operator, key=lambda share: -share[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model, for a quick check")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--layers", type=int, nargs="+", default=[4], help="whose C is taken")
    options = parser.parse_args()
    lm = random_model("gpt2", SMALL["gpt2"] if options.small else Size(12, 768, 50257))
    layers = [layer for layer in options.layers if layer < lm.n_layers] or [lm.n_layers // 3]
    text = RandomText(1 + options.tokens // 64)
    second_moments(lm, layers, RandomText(64))  # the first passes of a process are slow
    seconds, _ = timed(lambda: second_moments(lm, layers, text, max_tokens=options.tokens))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        second_moments(lm, layers, text, max_tokens=options.tokens)
    events = [(event.key, float(event.self_cpu_time_total)) for event in profiled.key_averages()]
    by_operator = shares(events)
    print(
        f"layers {layers} of {lm.n_layers}, {options.tokens} tokens in {seconds:.1f} s, "
        f"{options.tokens / seconds:.0f} tokens a second, {torch.get_num_threads()} threads\n"
    )
    rows = [(name, share, "yes" if product else "") for name, share, product in by_operator[:SHOWN]]
    print(tabulate(rows, ["operator", "share of time", "product"], floatfmt=".1%"))
    print(f"\nmatrix products: {sum(share for _, share, product in by_operator if product):.1%}")


if __name__ == "__main__":
    main()
