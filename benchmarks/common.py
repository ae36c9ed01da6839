"""What the benchmarks share: clocks, counted arithmetic, random models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kn_bench.model.language_model import LanguageModel

T = TypeVar("T")


def timed(
    run: Callable[[], T], repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, T]:
    """Return the best time of some repeats by ``clock``, in seconds, and the last result."""
    best = math.inf
    for _ in range(repeats):
        started = clock()
        result = run()
        best = min(best, clock() - started)
    return best, result


def flops(run: Callable[[], Any]) -> float:
    """Count the floating-point operations of the matrix products that ``run`` does."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def product_rate(size: int = 3072, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the FLOP/s of one large float32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds, _ = timed(lambda: a @ b, repeats=5, clock=clock)
    return 2 * size**3 / seconds


def random_gpt2(**size: int) -> LanguageModel:
    """Return a random GPT-2, of GPT-2 small's size unless ``size`` says otherwise."""
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **size))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    return LanguageModel(
        "random", hf, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[UNK]")
    )


def random_smollm2() -> LanguageModel:
    """Return a random model of SmolLM2-135M's shape: Llama's family, gated layers, a tied head."""
    from benchmarks.attribution import SIZES, random_model

    return random_model("llama", SIZES["llama"])


TENTH = {"n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": 8192}
"""A size for a quick check."""


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log time over log size, by least squares: 1 is linear growth."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum(
        (a - middle) ** 2 for a in x
    )
