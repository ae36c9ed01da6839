"""Causal tracing against one forward pass a state, as published code does it.

    python benchmarks/tracing.py            a random model of GPT-2 small's size
    python benchmarks/tracing.py --small    a tenth of it, in seconds

Both give the same numbers, which is checked. Of the brute force a sample of states is timed, and
the rest reckoned from it: its passes are all alike. ``--all`` times every one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.common import TENTH, random_gpt2
from kn_bench.localise.corruption import TracePrompt, noise
from kn_bench.localise.tracing import KINDS, trace, windowed
from kn_bench.model.attention import attention_output

SAMPLES, WINDOW = 10, 10


def one_pass(lm, prompt, added, patches) -> float:
    """Return P(answer) with one state restored, from a full pass over clean and noisy rows."""
    ids = torch.tensor([prompt.ids] * (1 + len(added)))

    def corrupted(_, __, embedded):
        embedded[1:, slice(*prompt.subject)] += added.to(embedded.dtype)
        return embedded

    handles = [lm.hf.get_input_embeddings().register_forward_hook(corrupted)]
    for patch in patches:

        def put(_, __, output, token=patch.token):
            state = output[0] if isinstance(output, tuple) else output
            state[1:, token] = state[0, token]
            return output

        modules = {"hidden": lm.layers.__getitem__, "mlp": lm.site}
        of = modules.get(patch.kind, lambda layer: attention_output(lm, layer))
        handles.append(of(patch.layer).register_forward_hook(put))
    with torch.no_grad():
        logits = lm.hf(input_ids=ids, use_cache=False).logits[1:, -1]
    for handle in handles:
        handle.remove()
    return float(logits.softmax(-1)[:, prompt.answer].mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a tenth of the size")
    parser.add_argument("--all", action="store_true", help="time every pass of the brute force")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    lm = random_gpt2(**TENTH) if options.small else random_gpt2()
    ids = torch.randint(5, lm.vocabulary, (options.tokens,)).tolist()
    prompt = TracePrompt(tuple(ids), options.tokens - 1, (2, 5), answer=9)
    added = noise(prompt, 0.1, lm.d_model, samples=SAMPLES)
    print(
        f"{lm.n_layers} layers, d_model {lm.d_model}, {options.tokens} tokens, "
        f"{SAMPLES} samples, {torch.get_num_threads()} threads"
    )
    print(
        f"{'state':10} {'states':>6} {'one pass each':>14} {'this library':>13} {'ratio':>6}"
        f" {'difference':>11}"
    )
    for kind in KINDS:
        cells = [(t, layer) for t in range(options.tokens) for layer in range(lm.n_layers)]
        sample = cells if options.all else cells[:: max(1, len(cells) // 12)]
        times, values = [], []
        for token, layer in sample:
            patches = windowed(kind, layer, token, lm.n_layers, WINDOW)
            started = time.perf_counter()
            values.append(one_pass(lm, prompt, added, patches))
            times.append(time.perf_counter() - started)
        brute = statistics.median(times) * len(cells)
        ours = []
        for _ in range(options.repeats):
            started = time.perf_counter()
            (traced,) = trace(lm, [prompt], [added], kinds=[kind], window=WINDOW)
            ours.append(time.perf_counter() - started)
        worst = max(
            abs(float(traced.scores[0, t, layer]) - value) / value
            for (t, layer), value in zip(sample, values, strict=True)
        )
        mine = statistics.median(ours)
        print(
            f"{kind:10} {len(cells):6} {brute:12.2f} s {mine:11.2f} s {brute / mine:6.1f}"
            f" {worst:11.1e}"
        )


if __name__ == "__main__":
    main()
