"""How long it takes to load the real files as cases, and to encode these with a tokenizer.

    python benchmarks/loading.py [--tokenizer tiny-gpt2 ...] [--cases blimp=FOLDER pararel=FOLDER]

Wall and processor time in one process: of each source alone, and of all of them with a tokenizer,
which encodes the cases of one source while the next is being read. A tokenizer is an embedded
model's name, a hub id or a folder. Processor time above the wall's is the second core's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from tabulate import tabulate
from transformers import AutoTokenizer

from kn_bench.cases import sources
from kn_bench.cases.case import Exclusion
from kn_bench.measure.encoding import EncodedCase, encode_cases
from kn_bench.model import embedded
from kn_bench.model.tokens import Tokens

T = TypeVar("T")


class LoadStep(NamedTuple):
    """One line of the table."""

    step: str
    cases: int
    probes: int
    excluded: int
    wall: float
    processor: float


def timed(run: Callable[[], T]) -> tuple[T, float, float]:
    """Return the result of ``run``, with its wall and processor time in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - processor


def loaded(spec: str, limit: int | None) -> LoadStep:
    selection, wall, processor = timed(lambda: sources.load(spec, limit=limit))
    probes = sum(len(case.probes) for case in selection.cases)
    excluded = len(selection.exclusions)
    name = spec.partition("=")[0]
    return LoadStep(name, len(selection.cases), probes, excluded, wall, processor)


def encoded(specs: Sequence[str], limit: int | None, name: str) -> LoadStep:
    path = embedded.folder(name) if name in embedded.NAMES else name
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = Tokens(tokenizer, "masked" if tokenizer.mask_token else "causal")
    cases = (case for spec in specs for case in sources.load(spec, limit=limit).cases)
    outcomes, wall, processor = timed(lambda: encode_cases(cases, tokens))
    probes = sum(len(case.probes) for case in outcomes if isinstance(case, EncodedCase))
    excluded = sum(isinstance(outcome, Exclusion) for outcome in outcomes)
    return LoadStep(f"all for {name}", len(outcomes) - excluded, probes, excluded, wall, processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["blimp", "pararel"])
    parser.add_argument("--tokenizer", nargs="+", default=list(embedded.NAMES))
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    steps = [loaded(spec, options.limit) for spec in options.cases]
    steps += [encoded(options.cases, options.limit, name) for name in options.tokenizer]
    headers = ["step", "cases", "probes", "excluded", "wall (s)", "processor (s)"]
    print(tabulate(steps, headers=headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
