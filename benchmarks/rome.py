"""ROME for many requests at once against one at a time without shortcuts.

    python benchmarks/rome.py            a random model of GPT-2 small's size, 16 requests
    python benchmarks/rome.py --small    a tenth of it, in seconds
    python benchmarks/rome.py --smollm2  SmolLM2-135M's shape; with --passes 5 in minutes

Both give the same updates, which is checked. Of the brute force a few requests are timed and the
rest reckoned from them: they are all alike. Early stopping is off, so that both do all passes.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import common
from benchmarks.common import TENTH, flops, product_rate, random_gpt2, random_smollm2
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueRow, ValueSettings
from kn_bench.editing.rome.update import rank_one
from kn_bench.editing.rome.value import optimise_values
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.ragged import prepare

SETTINGS = ValueSettings(stop_loss=0.0)
CONTEXTS = [5] * 10 + [10] * 10
PROMPT, SUBJECT = 12, (5, 7)
"""Tokens of the prompt; the subject's first and last."""
EDITED_AT = 1 / 3
"""Depth of the edited layer: where the published ones of the GPT models lie."""


def problems(lm: LanguageModel, requests: int) -> list[ValueProblem]:
    """Return requests with one-token answers, after 20 shared contexts and without context."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, lm.vocabulary, (n,), generator=generator).tolist())

    contexts = [(), *(draw(n) for n in CONTEXTS)]
    value_problems = []
    for _ in range(requests):
        prompt, (answer,) = draw(PROMPT), draw(1)
        rows = tuple(
            ValueRow(
                (*context, *prompt),
                len(context) + SUBJECT[1],
                (len(context) + PROMPT - 1,),
                (answer,),
                len(context),
            )
            for context in contexts
        )
        subject = prompt[SUBJECT[0] : SUBJECT[1] + 1]
        value_problems.append(
            ValueProblem(rows, ValueRow(subject, len(subject) - 1, (len(subject) - 1,)))
        )
    return value_problems


def brute_force(
    lm: LanguageModel, layer: int, problem: ValueProblem, settings: ValueSettings
) -> torch.Tensor:
    """Return one request's delta, running all rows through the whole model at every step."""
    rows = problem.rows
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
    mask = torch.tensor([[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in rows])
    at = torch.tensor([row.subject for row in rows])
    here = (torch.arange(longest) == at[:, None])[..., None]
    delta = torch.zeros(lm.d_model, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.v_lr)
    initial, v_0 = None, torch.zeros(())
    index = torch.arange(len(problem.contexts))
    reads = torch.tensor([row.reads[0] for row in problem.contexts])
    targets = torch.tensor([row.targets[0] for row in problem.contexts])

    def add(_: int, __: Any, values: torch.Tensor) -> torch.Tensor:
        nonlocal v_0
        v_0 = values[0, at[0]].detach() if initial is None else v_0
        return values + here * delta

    for step in range(settings.v_num_grad_steps):
        with lm.site_hooks(add, [layer]):
            logits = lm.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits
        log_p = logits.log_softmax(2)
        anchor = log_p[-1, at[-1]]
        initial = anchor.detach() if initial is None else initial
        loss = -log_p[index, reads, targets].mean()
        loss = loss + settings.kl_factor * (anchor.exp() * (anchor - initial)).sum()
        loss = loss + settings.v_weight_decay * delta.norm() / v_0.norm() ** 2
        if step + 1 == settings.v_num_grad_steps:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= (settings.clamp_norm_factor * v_0.norm() / delta.norm()).clamp_max(1)
    return delta.detach()


def difference(layer: int, value: Value, delta: torch.Tensor) -> float:
    """Return the relative difference of the two updates."""
    ours = rank_one(value, layer, solver=None).update
    theirs = rank_one(replace(value, delta=delta), layer, solver=None).update
    exact = theirs.u @ theirs.v
    return float((ours.u @ ours.v - exact).norm() / exact.norm())


def clean(lm: LanguageModel, layer: int, asked: Sequence[ValueProblem], timed: Any) -> float:
    """Return the seconds of the one pass over the unedited model, of all requests."""
    rows = [row for problem in asked for row in problem.rows]
    shared = [row.context for row in rows]
    subjects = [row.subject for row in rows]
    seconds, _ = timed(
        lambda: prepare(lm, [row.ids for row in rows], subjects, layer, shared=shared)
    )
    return float(seconds)


def chosen() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--smollm2", action="store_true", help="a model of SmolLM2-135M's shape")
    parser.add_argument("--passes", type=int, default=SETTINGS.v_num_grad_steps)
    parser.add_argument("--cpu", action="store_true", help="CPU-seconds of one thread")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--brute", type=int, default=2, help="requests the brute force is timed on")
    return parser.parse_args()


def print_costs(costs: Sequence[tuple[str, float, float]], rate: float) -> None:
    """Print seconds and floating-point operations of an edit, beside the first way's."""
    (_, slowest, _), *_ = costs
    print(
        tabulate(
            [
                (name, seconds, slowest / seconds, done / 1e9, seconds / (done / rate))
                for name, seconds, done in costs
            ],
            headers=["an edit", "seconds", "ratio", "GFLOP", "of the floor"],
            floatfmt=("", ".3f", ".1f", ".1f", ".2f"),
        )
    )


def print_growth(growth: Sequence[tuple[int, float]]) -> None:
    """Print the seconds of several requests at once, and of each of them."""
    print(
        tabulate(
            [(n, seconds, seconds / n) for n, seconds in growth],
            headers=["requests", "seconds", "seconds each"],
            floatfmt=("d", ".2f", ".3f"),
        )
    )


def main() -> None:
    arguments = chosen()
    if arguments.cpu:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.cpu else time.perf_counter
    timed = functools.partial(common.timed, clock=clock)
    settings = replace(SETTINGS, v_num_grad_steps=arguments.passes)
    if arguments.smollm2:
        lm = random_smollm2()
    else:
        lm = random_gpt2(**TENTH) if arguments.small else random_gpt2()
    layer = round(lm.n_layers * EDITED_AT)
    asked = problems(lm, arguments.requests)
    rate = product_rate(clock=clock)

    def together(n: int = len(asked), memory: int = lm.batcher.memory) -> list[Value]:
        lm.memo.clear()
        lm.batcher.memory = memory
        return optimise_values(lm, layer, asked[:n], settings)

    together(2)  # the first passes of a process are slow
    few = asked[: arguments.brute]
    brute, deltas = timed(lambda: [brute_force(lm, layer, p, settings) for p in few])
    alone, _ = timed(lambda: together(arguments.brute, memory=1))
    batch, values = timed(together)
    worst = max(difference(layer, v, d) for v, d in zip(values, deltas, strict=False))
    costs = [
        (
            "one at a time, whole model",
            brute / arguments.brute,
            flops(lambda: brute_force(lm, layer, asked[0], settings)),
        ),
        ("one at a time, shortcuts", alone / arguments.brute, flops(lambda: together(1))),
        (f"{len(asked)} at once, shortcuts", batch / len(asked), flops(together) / len(asked)),
    ]
    print(
        f"{lm.n_layers} layers x {lm.d_model}, layer {layer}, {PROMPT}-token prompts, "
        f"{1 + len(CONTEXTS)} contexts, {settings.v_num_grad_steps} passes, "
        f"{torch.get_num_threads()} threads; a large product: {rate / 1e9:.0f} GFLOP/s"
    )
    print_costs(costs, rate)
    print(f"largest relative difference of an update: {worst:.1e}")
    share = clean(lm, layer, asked, timed) / batch
    print(f"of the batch {share:.0%} is the clean pass, the rest the optimisation")
    sizes = [n for n in (1, 2, 4, 8) if n < len(asked)]
    growth = [(n, timed(functools.partial(together, n))[0]) for n in sizes] + [(len(asked), batch)]
    print_growth(growth)


if __name__ == "__main__":
    main()
