"""How time grows with layers, prompt length, prompts, cases and methods.

    python benchmarks/growth.py [--quick]

Each size is timed by itself and the exponent fitted: time ~ size^exponent, 1 being linear. A
further method must not ask the unedited model again: the passes that it took are counted.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from benchmarks.attribution import Size, prompts, random_model
from benchmarks.common import exponent, timed
from kn_bench.cases.case import Case
from kn_bench.cases.sources import embedded
from kn_bench.editing.rome.problem import ValueProblem
from kn_bench.editing.rome.remembered import read_requests
from kn_bench.editing.rome.value import optimise_values
from kn_bench.edits.controls import Nothing, RandomRankOne
from kn_bench.edits.rome import Rome
from kn_bench.localise.attribution import attribute
from kn_bench.localise.corruption import TracePrompt, noise
from kn_bench.localise.tracing import trace
from kn_bench.measure.engine import Engine
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loading import load_model

REPEATS = 3
D_MODEL, VOCABULARY = 256, 8192


class Growth(NamedTuple):
    """One line of the table: what grew, and the time at each size."""

    what: str
    sizes: Sequence[int]
    seconds: Sequence[float]

    @property
    def row(self) -> tuple[str, str, str, float]:
        return (
            self.what,
            ", ".join(map(str, self.sizes)),
            ", ".join(f"{time:.3g}" for time in self.seconds),
            exponent(self.sizes, self.seconds),
        )


def grown(what: str, sizes: Sequence[int], ready: Callable[[int], Callable[[], Any]]) -> Growth:
    """Time what ``ready`` prepares for each size; the first call of each is not timed."""
    seconds = []
    for size in sizes:
        run = ready(size)
        run()
        seconds.append(timed(run, REPEATS)[0])
    return Growth(what, sizes, seconds)


def attributing(family: str, layers: int = 6, length: int = 12, n: int = 16) -> Callable[[], Any]:
    lm = random_model(family, Size(layers, D_MODEL, VOCABULARY))
    return functools.partial(attribute, lm, prompts(lm, n, length))


def tracing(layers: int = 6, length: int = 12) -> Callable[[], Any]:
    lm = random_model("gpt2", Size(layers, D_MODEL, VOCABULARY))
    ids = prompts(lm, 1, length)[0].ids
    prompt = TracePrompt(ids, length - 1, (2, 5), answer=9)
    added = noise(prompt, 0.1, lm.d_model, samples=10)
    return lambda: trace(lm, [prompt], [added], kinds=["hidden"], window=10)


def measuring(lm: LanguageModel, cases: Sequence[Case]) -> Callable[[], Any]:
    """Measure with a fresh engine each time, so that the unedited model is asked as well."""
    method = RandomRankOne(lm)
    method.edit([case.request for case in cases])
    return lambda: Engine(lm).measure("random-rank-one", method, cases)


def editing(lm: LanguageModel, cases: Sequence[Case]) -> Callable[[], Any]:
    """Run ROME's optimisation, bypassing its memo."""
    h = Rome(lm).settings
    read = read_requests(
        lm,
        [case.request for case in cases],
        lengths=h.context_template_length_params,
        seed=h.context_seed,
    )
    problems = [problem for problem in read if isinstance(problem, ValueProblem)]
    return lambda: optimise_values(lm, h.layer, problems, h.value_settings)


def passes(lm: LanguageModel, cases: Sequence[Case]) -> list[tuple[str, int, int]]:
    """Count, method after method, the new questions to the unedited model, and all answers."""
    engine = Engine(lm)
    counts = []
    for name, method in (("rome", Rome(lm)), ("random", RandomRankOne(lm)), ("none", Nothing())):
        known = len(lm.memo.keys("answer"))
        results = engine.measure(name, method, cases).results.values()
        answers = sum(len(result.measurements) for result in results)
        counts.append((name, len(lm.memo.keys("answer")) - known, answers))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two sizes each")
    options = parser.parse_args()
    keep = 2 if options.quick else 4
    layers, lengths = (3, 6, 12, 24)[:keep], (6, 12, 24, 48)[:keep]
    numbers, limits = (8, 16, 32, 64)[:keep], (1, 2, 4, 8)[:keep]
    lm = load_model("tiny-gpt2")
    by_limit = {limit: list(embedded.load(limit=limit).cases) for limit in limits}
    cases = {len(loaded): loaded for loaded in by_limit.values()}
    lines = [
        grown("attribution (GPT-2), layers", layers, lambda n: attributing("gpt2", layers=n)),
        grown("attribution (BERT), layers", layers, lambda n: attributing("bert", layers=n)),
        grown("attribution (GPT-2), length", lengths, lambda n: attributing("gpt2", length=n)),
        grown("attribution (BERT), length", lengths, lambda n: attributing("bert", length=n)),
        grown("attribution (GPT-2), prompts", numbers, lambda n: attributing("gpt2", n=n)),
        grown("tracing, layers", layers, lambda n: tracing(layers=n)),
        grown("tracing, length", lengths, lambda n: tracing(length=n)),
        grown("ROME, cases", tuple(cases), lambda n: editing(lm, cases[n])),
        grown("measuring, cases", tuple(cases), lambda n: measuring(lm, cases[n])),
    ]
    print(f"{torch.get_num_threads()} threads, best of {REPEATS}\n")
    headers = ["what, by", "sizes", "seconds", "exponent"]
    print(tabulate([line.row for line in lines], headers, floatfmt=("", "", "", ".2f")))
    print("\nOne method after another, on the same cases:\n")
    headers = ["method", "asked of the unedited model", "measurements"]
    print(tabulate(passes(lm, cases[min(cases)]), headers))


if __name__ == "__main__":
    main()
