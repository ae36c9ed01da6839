"""Attribution against the plain brute force, and against the arithmetic that is left.

    python benchmarks/attribution.py [--small] [--prompts 16] [--length 12] [--repeat 3]
    python benchmarks/attribution.py --family llama --prompts 8 --length 6 --cpu

Random models of the size of GPT-2 small, BERT-base and SmolLM2-135M (Llama's family: gated
neurons, grouped key-value heads, a tied head), float32, frozen parameters, one run.
The log-probability increase of Yu and Ananiadou stands beside it, on an eighth of the prompts.
The brute force runs the whole model for every layer and every step, one at a time; it is timed on
one prompt, and a second time with the 20 steps of a layer as one batch. The floor is the time that
the multiply-adds left by the exact shortcuts would take at the rate of one large matrix product,
measured in between.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from kn_bench.localise.alternatives import log_prob_increase
from kn_bench.localise.attribution import Attribution, attribute
from kn_bench.localise.integration import Rule
from kn_bench.model.language_model import LanguageModel
from tests.brute_force import Place, integrated_gradients
from tests.tiny_models import word_tokenizer


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with its answer, with the fields of ``kn_bench.measure.encoding.EncodedQuery``."""

    ids: tuple[int, ...]
    answer_position: int
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """What the arithmetic depends on.

    Attributes:
        d_mlp: neurons of a layer; 0 for four times ``d_model``.
        gated: whether a layer has a third MLP matrix.
        kv_share: width of keys and of values as a share of ``d_model``.
    """

    layers: int
    d_model: int
    vocabulary: int
    neurons: int = 0
    gated: bool = False
    kv_share: float = 1.0

    @property
    def d_mlp(self) -> int:
        return self.neurons or 4 * self.d_model

    @property
    def attention(self) -> float:
        """Weights of a layer's attention."""
        return self.d_model**2 * (2 + 2 * self.kv_share)

    @property
    def mlp(self) -> int:
        """Weights of a layer's MLP."""
        return (3 if self.gated else 2) * self.d_model * self.d_mlp


SIZES = {
    "gpt2": Size(12, 768, 50257),
    "bert": Size(12, 768, 30522),
    "llama": Size(30, 576, 49152, 1536, gated=True, kv_share=1 / 3),
}
SMALL = {
    "gpt2": Size(4, 128, 5000),
    "bert": Size(4, 128, 5000),
    "llama": Size(4, 192, 5000, 512, gated=True, kv_share=1 / 3),
}

clock = time.perf_counter


def random_model(family: str, size: Size) -> LanguageModel:
    torch.manual_seed(0)
    heads = size.d_model // 64
    config = AutoConfig.for_model(
        family,
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        **({"num_key_value_heads": round(heads * size.kv_share)} if family == "llama" else {}),
        tie_word_embeddings=True,
        vocab_size=size.vocabulary,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    causal = family != "bert"
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    return LanguageModel(f"random-{family}", auto.from_config(config), word_tokenizer(causal))


def prompts(lm: LanguageModel, n: int, length: int) -> list[AnsweredPrompt]:
    ids = torch.randint(10, 60, (n, length + 1), generator=torch.Generator().manual_seed(0))
    position = length - 1 if lm.is_causal else length // 2
    return [AnsweredPrompt(tuple(row[:-1]), position, (row[-1],)) for row in ids.tolist()]


# -- what is compared ----------------------------------------------------------------------


def brute_force(lm: LanguageModel, asked: AnsweredPrompt, rule: Rule) -> Tensor:
    nodes = rule.on_unit_interval()
    row = torch.tensor(asked.ids)
    return torch.stack(
        [
            integrated_gradients(
                lm.hf, row, asked.answer_ids[0], Place(lm.site(layer), asked.answer_position), nodes
            )
            for layer in range(lm.n_layers)
        ]
    )


def brute_force_by_layer(lm: LanguageModel, asked: AnsweredPrompt, rule: Rule) -> Tensor:
    """Run the same with all steps of a layer in one batch, as published code does."""
    places, weights = (torch.from_numpy(a).to(lm.dtype) for a in rule.on_unit_interval())
    ids = torch.tensor([asked.ids] * len(places))
    at, (token,) = asked.answer_position, asked.answer_ids
    by_layer = []
    for layer in range(lm.n_layers):
        leaves: list[Tensor] = []

        def scale(_: Any, inputs: Any, leaves: list[Tensor] = leaves) -> Any:
            keys = inputs[0].detach().clone()
            leaves += [keys[0, at].clone(), (places[:, None] * keys[:, at]).requires_grad_()]
            keys[:, at] = leaves[1]
            return (keys,)

        handle = lm.site(layer).register_forward_pre_hook(scale)
        p = lm.hf(input_ids=ids).logits[:, at].softmax(-1)[:, token]
        handle.remove()
        (gradient,) = torch.autograd.grad(p.sum(), leaves[1])
        by_layer.append(leaves[0] * (weights @ gradient))
    return torch.stack(by_layer)


# -- the arithmetic that is left -----------------------------------------------------------


def multiply_adds(
    size: Size, causal: bool, length: int, attributions: Sequence[Attribution], rule: Rule
) -> float:
    """Count the multiply-adds left by shortcuts 1 to 5.

    These are the layers above the site, the positions that see it, the vocabulary at the answer
    alone, and the nodes that the rule took.
    """
    d = size.d_model
    body = size.attention + size.mlp
    positions = 1 if causal else length
    head = d * size.vocabulary + (0 if causal else d * d)
    layer_of_row = positions * (body + 2 * length * d)
    # behind its attention the last layer is read at the answer alone
    keys_and_values = 2 * d * d * size.kv_share
    last = positions * (keys_and_values + 2 * d) + 2 * d * d + size.mlp + 2 * length * d
    total = 0.0
    for attribution in attributions:
        total += length * size.layers * body + head  # the clean pass
        for layer, nodes in enumerate(attribution.nodes.tolist()):
            above = size.layers - 1 - layer
            row = head + (0 if not above else (above - 1) * layer_of_row + last)
            forward_only = (nodes // rule.n_nodes + 1) // 2 if rule.name == "adaptive" else 0
            total += (2 * nodes + forward_only) * row + 2 * d * size.d_mlp  # the site's own
    return total


def matrix_rate(d: int = 2048, repeat: int = 5) -> float:
    """Return the multiply-adds per second of one large float32 product."""
    a, b = torch.randn(d, d), torch.randn(d, d)
    return d**3 / min(timed(lambda: a @ b)[0] for _ in range(repeat))


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    started = clock()
    result = what()
    return clock() - started, result


# -- the table -----------------------------------------------------------------------------


def compare(family: str, size: Size, n: int, length: int, repeat: int) -> list[list[object]]:
    lm = random_model(family, size)
    asked = prompts(lm, n, length)
    same, default = Rule("riemann"), Rule()
    attribute(lm, asked[:1])  # the first call asks how layers go on behind their sites
    rates = [matrix_rate()]
    plain, expected = timed(lambda: brute_force(lm, asked[0], same))
    by_layer, again = timed(lambda: brute_force_by_layer(lm, asked[0], same))
    table: list[list[object]] = [
        [family, "brute force, one step at a time", plain, 1.0, None, None, None],
        [
            family,
            "  20 steps a batch",
            by_layer,
            plain / by_layer,
            None,
            None,
            off(again, expected),
        ],
    ]
    for name, rule in (("same rule, 20 steps", same), ("default rule", default)):
        runs = []
        for _ in range(repeat):
            seconds, attributions = timed(functools.partial(attribute, lm, asked, rule=rule))
            runs.append(seconds / n)
            rates.append(matrix_rate())
        each = statistics.median(runs)
        needed = multiply_adds(size, lm.is_causal, length, attributions, rule) / n
        floor = needed / statistics.median(rates)
        error = off(attributions[0].scores, expected) if rule is same else None
        nodes = float(torch.stack([a.nodes for a in attributions]).float().mean())
        label = f"{name}, {nodes:.1f} nodes a layer"
        table.append([family, label, each, plain / each, 2 * needed / 1e9, each / floor, error])
    if lm.is_causal:
        # one pass, but the head reads the stream once with each neuron and once without
        needed = length * size.layers * (size.attention + size.mlp)
        needed += size.layers * (size.d_mlp + 1) * size.d_model * size.vocabulary
        fewer = asked[: max(1, n // 8)]
        seconds = timed(functools.partial(log_prob_increase, lm, fewer))[0] / len(fewer)
        floor = needed / statistics.median(rates)
        label = "log-probability increase, no gradient"
        table.append(
            [family, label, seconds, plain / seconds, 2 * needed / 1e9, seconds / floor, None]
        )
    return table


def off(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small models, for a quick check")
    parser.add_argument("--family", choices=SIZES, help="(default: all)")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--cpu", action="store_true", help="CPU seconds of one thread, for a machine that is busy"
    )
    options = parser.parse_args()
    if options.cpu:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    table = []
    for family, size in SIZES.items():
        if options.family not in (None, family):
            continue
        size = SMALL[family] if options.small else size
        table += compare(family, size, options.prompts, options.length, options.repeat)
    print(
        f"{options.prompts} prompts of {options.length} tokens, {torch.get_num_threads()} threads, "
        f"{2 * matrix_rate() / 1e9:.0f} GFLOP/s in one large product\n"
    )
    headers = ["model", "how", "s a prompt", "times faster", "GFLOP left", "x floor", "difference"]
    print(tabulate(table, headers, floatfmt=("", "", ".3f", ".1f", ".1f", ".2f", ".1e")))


if __name__ == "__main__":
    main()
