"""Measuring many edits at once against editing, asking prompt by prompt, and restoring.

    python benchmarks/measuring.py [--model tiny-gpt2] [--limit 2] [--methods 2]

The default cases. One at a time means: put the edit into the weights, ask every probe of its case
by itself (the prompt, both answers, a greedy continuation), take the edit out again, and ask the
unedited model the same before; all that for every method. Its continuations are timed with the
key-value cache and without. The edits are made beforehand: they are ROME's, and random ones of the
same size. The numbers are compared. Of the one at a time a sample of cases is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from benchmarks.common import flops, product_rate, timed
from kn_bench.cases.case import Case
from kn_bench.cases.sources import embedded
from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import Edit, Method, NotApplicable
from kn_bench.edits.controls import RandomRankOne
from kn_bench.edits.rome import Rome
from kn_bench.measure.encoded import BUDGET
from kn_bench.measure.encoding import AnswerRow, EncodedCase, EncodedProbe, encode_cases
from kn_bench.measure.engine import Engine
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loading import load_model


class Numbers(NamedTuple):
    """The log-probabilities of both answers to a probe, and the continuation."""

    expected: float
    rejected: float
    generated: str


class Ready:
    """A method whose edits have been made in advance."""

    def __init__(self, edits: dict[str, Edit | NotApplicable]) -> None:
        self.edits = edits

    def edit(self, requests: Sequence[Any]) -> list[Edit | NotApplicable]:
        return [self.edits[request.id] for request in requests]


# -- one at a time -------------------------------------------------------------------------


@torch.no_grad()
def ask(lm: LanguageModel, probe: EncodedProbe, cached: bool) -> Numbers:
    return Numbers(
        score(lm, probe.expected), score(lm, probe.rejected), continued(lm, probe, cached)
    )


def score(lm: LanguageModel, row: AnswerRow) -> float:
    total = 0.0
    for part in row.parts:
        log_p = lm.hf(input_ids=torch.tensor([part.ids])).logits[0].log_softmax(-1)
        total += float(log_p[list(part.positions), list(part.targets)].sum())
    return total


def continued(lm: LanguageModel, probe: EncodedProbe, cached: bool) -> str:
    ids = torch.tensor([probe.prompt_ids])
    if not lm.is_causal:
        best = lm.hf(input_ids=ids).logits[0, probe.answer_position].argmax()
        return lm.tokens.decode([int(best)])
    fed, past, new_ids = ids, None, []
    for _ in range(BUDGET):
        output = lm.hf(input_ids=fed, past_key_values=past, use_cache=cached)
        new_ids.append(int(output.logits[0, -1].argmax()))
        new = torch.tensor([new_ids[-1:]])
        past = output.past_key_values if cached else None
        fed = new if cached else torch.cat([fed, new], 1)
    return lm.tokens.decode(new_ids)


def one_at_a_time(
    lm: LanguageModel, cases: Sequence[EncodedCase], methods: Sequence[Ready], cached: bool
) -> list[Numbers]:
    numbers = []
    for method in methods:
        for case in cases:
            edit = method.edits[case.case.id]
            if isinstance(edit, NotApplicable):
                continue
            numbers += [ask(lm, probe, cached) for probe in case.probes]
            with in_place(lm, edit):
                numbers += [ask(lm, probe, cached) for probe in case.probes]
    return numbers


# -- the engine ----------------------------------------------------------------------------


def together(lm: LanguageModel, cases: Sequence[Case], methods: Sequence[Ready]) -> list[Numbers]:
    engine = Engine(lm)
    numbers = []
    for number, method in enumerate(methods):
        results = engine.measure(str(number), method, cases).results
        for case in cases:
            rows = results[case.id].measurements
            for side in ("before", "after"):
                answers = [getattr(row, side) for row in rows]
                numbers += [
                    Numbers(a.log_prob_expected, a.log_prob_rejected, a.generated) for a in answers
                ]
    return numbers


def edits_of(lm: LanguageModel, cases: Sequence[EncodedCase], methods: int) -> list[Ready]:
    requests = [encoded.case.request for encoded in cases]
    names = [encoded.case.id for encoded in cases]
    makers: list[Method] = [Rome(lm), RandomRankOne(lm)]
    return [
        Ready(dict(zip(names, maker.edit(requests), strict=True))) for maker in makers[:methods]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-gpt2", choices=["tiny-gpt2", "tiny-llama"])
    parser.add_argument("--limit", type=int, default=2, help="cases of each relation and paradigm")
    parser.add_argument("--methods", type=int, default=2, choices=[1, 2])
    parser.add_argument("--sample", type=int, default=4, help="every so many cases one at a time")
    options = parser.parse_args()
    lm = load_model(options.model)
    cases = list(embedded.load(limit=options.limit).cases)
    encoded = [c for c in encode_cases(cases, lm.tokens) if isinstance(c, EncodedCase)]
    cases = [c.case for c in encoded]
    methods = edits_of(lm, encoded, options.methods)
    asked = [c for c in encoded if not isinstance(methods[0].edits[c.case.id], NotApplicable)]
    sample = asked[:: options.sample]
    n_probes = sum(len(c.probes) for c in asked)
    share = n_probes / sum(len(c.probes) for c in sample)
    together(lm, cases[:2], methods)  # the first passes of a process are slow
    rate = product_rate()
    batch, numbers = timed(lambda: together(lm, cases, methods), repeats=3)
    plain, wanted = timed(lambda: one_at_a_time(lm, sample, methods, cached=False))
    kept, again = timed(lambda: one_at_a_time(lm, sample, methods, cached=True))
    done = flops(lambda: together(lm, cases, methods))
    compared = together(lm, [c.case for c in sample], methods)
    print(
        f"{options.model}: {len(asked)} cases, {n_probes} probes, "
        f"{len(methods)} methods, {torch.get_num_threads()} threads; one at a time on "
        f"{len(sample)} cases, times {share:.2f}; a large product: {rate / 1e9:.0f} GFLOP/s\n"
    )
    rows = [
        ("one at a time, no cache", plain * share, 1.0, None),
        ("one at a time, key-value cache", kept * share, plain / kept, None),
        ("the engine", batch, plain * share / batch, batch / (done / rate)),
    ]
    headers = ["measuring", "seconds", "times faster", "x floor"]
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".1f", ".1f")))
    print(f"\nthe engine against one at a time with the cache: {kept * share / batch:.1f} x")
    print(f"{len(numbers)} answers; {difference(compared, wanted)}; {difference(again, wanted)}")


def difference(ours: Sequence[Numbers], theirs: Sequence[Numbers]) -> str:
    pairs = list(zip(ours, theirs, strict=True))
    worst = max(max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in pairs)
    other = sum(a.generated != b.generated for a, b in pairs)
    return f"of {len(pairs)} compared the largest difference is {worst:.1e} nats, {other} texts"


if __name__ == "__main__":
    main()
