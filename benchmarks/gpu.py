"""Attributions, ROME edits and measured cases per second on large random models.

    python benchmarks/gpu.py [--device cuda] [--dtype bfloat16] [--model gpt2-xl llama-7b]
    python benchmarks/gpu.py --device cpu --dtype float32 --model small

Random weights of the size of GPT-2 XL and of Llama 7B. The floor is the time that the counted
operations of the same work would take at the rate of one large matrix product on that device, in
that precision. With --sync CUDA warns of every synchronisation.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.attribution import prompts
from benchmarks.common import flops
from benchmarks.rome import EDITED_AT, SETTINGS, problems
from kn_bench.cases.case import Cloze, Probe
from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.editing.rome.problem import Value, ValueProblem
from kn_bench.editing.rome.value import optimise_values
from kn_bench.localise.attribution import attribute
from kn_bench.measure.answers import Asker, Question
from kn_bench.measure.encoding import AnswerRow, EncodedProbe
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.source import DTYPES
from tests.tiny_models import word_tokenizer

MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "llama-7b": (
        "llama",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    ),
    "small": ("gpt2", {"n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": 8192}),
}  # fmt: skip
LENGTH, PROBES = 12, 14
"""Tokens of a prompt, and probes of a case: what the embedded cases have on average."""


def random_model(name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    family, size = MODELS[name]
    config = AutoConfig.for_model(family, bos_token_id=1, eos_token_id=2, pad_token_id=0, **size)
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LanguageModel(f"random-{name}", hf, word_tokenizer(causal=True))


def synchronised(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the best wall time of some repeats after a warm-up, device work included."""
    run()
    best = float("inf")
    for _ in range(repeats):
        synchronised(device)
        started = time.perf_counter()
        run()
        synchronised(device)
        best = min(best, time.perf_counter() - started)
    return best


def product_rate(device: str, dtype: torch.dtype, size: int = 4096) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, device, 10)


def probe(ids: Sequence[int], answers: tuple[int, int]) -> EncodedProbe:
    rows = [AnswerRow((*ids, answer), (len(ids) - 1,), (answer,)) for answer in answers]
    asked = Probe("reliability/0", "reliability", Cloze("w5"), "w6", "w7")
    return EncodedProbe(asked, tuple(ids), len(ids) - 1, rows[0], rows[1], answers[0])


def measuring(lm: LanguageModel, cases: int) -> Callable[[], Any]:
    """Return a function that measures all cases at once, each under its rank-one update."""
    rows = prompts(lm, cases * PROBES, LENGTH)
    draw = torch.Generator(lm.device).manual_seed(0)
    layer = round(lm.n_layers * EDITED_AT)

    def vector(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device=lm.device, dtype=lm.dtype)

    edits = [
        LowRankEdit((LowRank(layer, vector(lm.d_mlp, 1), vector(1, lm.d_model)),))
        for _ in range(cases)
    ]
    questions = [Question(probe(row.ids, (8, 9)), i // PROBES) for i, row in enumerate(rows)]
    return lambda: Asker(lm).ask(questions, RowEdits(lm, edits))


def lines(name: str, options: argparse.Namespace) -> list[tuple[str, str, float, float, float]]:
    dtype = getattr(torch, options.dtype)
    lm = random_model(name, options.device, dtype)
    lm.batcher.memory = options.memory << 30
    rate = product_rate(options.device, dtype)
    layer, n = round(lm.n_layers * EDITED_AT), options.batch
    asked, requests = prompts(lm, n, LENGTH), problems(lm, n)
    work: dict[str, Callable[[], Any]] = {
        "attributions": functools.partial(attribute, lm, asked),
        "ROME edits": functools.partial(_fresh_values, lm, layer, requests),
        "cases": measuring(lm, n),
    }
    rows = []
    for what, run in work.items():
        seconds = timed(run, options.device, options.repeats)
        if options.sync and options.device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
            run()
            torch.cuda.set_sync_debug_mode("default")
        floor = flops(run) / rate
        rows.append((name, what, n / seconds, seconds / floor, rate / 1e12))
    return rows


def _fresh_values(lm: LanguageModel, layer: int, requests: Sequence[ValueProblem]) -> list[Value]:
    lm.memo.clear()
    return optimise_values(lm, layer, requests, SETTINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--model", nargs="+", default=["gpt2-xl", "llama-7b"], choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=64, help="prompts, requests and cases")
    parser.add_argument("--memory", type=int, default=32, help="GiB, half of them for one pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sync", action="store_true", help="warn of synchronisations")
    options = parser.parse_args()
    device = "CPU" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    print(f"{device}, {options.dtype}, batches of {options.batch}, prompts of {LENGTH} tokens\n")
    table = [line for name in options.model for line in lines(name, options)]
    headers = ["model", "what", "a second", "x floor", "TFLOP/s of one product"]
    print(tabulate(table, headers, floatfmt=("", "", ".2f", ".2f", ".1f")))


if __name__ == "__main__":
    main()
