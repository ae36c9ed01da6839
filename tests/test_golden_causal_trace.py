"""Causal traces by the authors' own code, given its noise: the same numbers, state by state."""

import dataclasses

import numpy as np
import pytest
import torch

from kn_bench.localise.corruption import Kind, TracePrompt, corrupt, embedding_std
from kn_bench.localise.patching import Patch, PatchedRun, restore
from kn_bench.localise.tracing import trace
from tests.golden import cases

KINDS: dict[str | None, Kind] = {None: "hidden", "mlp": "mlp", "attn": "attention"}
PRECISIONS = [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-12)]
precisions = pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), PRECISIONS, ids=["float32", "float64"]
)
golden = pytest.mark.parametrize("case", cases("causal_trace"))


def prompt_of(case):
    manifest = case.manifest
    ids = tuple(manifest["input_ids"])
    start, stop = manifest["subject_range"]
    return TracePrompt(ids, len(ids) - 1, (start, stop), manifest["answer_id"])


def noise_std(case, lm):
    """The reference takes the spread of the embeddings in the model's own precision."""
    tokens = [i for text in case.manifest["std_subjects"] for i in lm.tokens.encode(text).ids]
    return case.manifest["hyperparameters"]["noise_multiplier"] * embedding_std(lm, tokens)


def noise_of(case, lm, settings):
    name = "noise_raw"
    name += "_uniform" if settings.get("uniform_noise") else ""
    name += "_samples3" if settings.get("samples") else ""
    return case.array(name) * noise_std(case, lm)


@golden
@precisions
def test_golden_traces(case, dtype, suffix, tolerance, close_to):
    lm, prompt = case.model(dtype), prompt_of(case)
    compared = 0
    for name, settings in case.manifest["hyperparameters"]["configs"].items():
        (trace_of_prompt,) = trace(
            lm,
            [prompt],
            [noise_of(case, lm, settings)],
            kinds=[KINDS[settings["kind"]]],
            window=settings.get("window", 10),
            replace=settings.get("replace", False),
        )
        expected = case.array(f"scores_{name}{suffix}").to(dtype)
        scores = trace_of_prompt.scores[0]
        if settings.get("token_range") == "subject_last":
            scores = scores[prompt.subject[1] - 1 : prompt.subject[1]]
        assert scores.shape == expected.shape
        close_to(scores, expected, tolerance, absolute=True)
        compared += 1
        if not settings.get("replace"):  # the reference's baseline is there without `replace`
            low = case.outputs[f"low_score{suffix}"][name]
            assert trace_of_prompt.corrupted == pytest.approx(low, abs=tolerance)
        assert trace_of_prompt.clean == pytest.approx(case.outputs["high_score"], abs=1e-5)
    assert compared > 5


@golden
@precisions
def test_golden_sets_of_states(case, dtype, suffix, tolerance, close_to):
    lm, prompt = case.model(dtype), prompt_of(case)
    tokens = {"subject_last": prompt.subject[1] - 1, "lasttoken": prompt.position}
    patches = []
    for token, module in case.outputs["multi_states"]:
        layer = int("".join(c for c in module.removeprefix("transformer.h.") if c.isdigit()))
        kind: Kind = "mlp" if module.endswith("mlp") else "hidden"
        patches.append(Patch(kind, layer, tokens[token]))
    corrupted = corrupt(lm, [prompt], [noise_of(case, lm, {})])
    (restored,) = restore(corrupted, [PatchedRun(0, tuple(patches))])
    expected = torch.tensor(case.outputs[f"multi_state_prob{suffix}"], dtype=torch.float64)
    close_to(restored.mean(), expected, tolerance, absolute=True)


@golden
@precisions
def test_golden_severed_mlps(case, dtype, suffix, tolerance, close_to):
    lm, prompt = case.model(dtype), prompt_of(case)
    token = prompt.subject[1] - 1
    runs = [
        PatchedRun(
            0,
            (
                Patch("hidden", layer, token),
                *(Patch("mlp", above, token, clean=False) for above in range(layer, lm.n_layers)),
            ),
        )
        for layer in range(lm.n_layers)
    ]
    shape = case.array("noise_raw").shape
    generator = np.random.RandomState(1)
    first, second = (torch.from_numpy(generator.randn(*shape)) for _ in range(2))
    assert torch.equal(first, case.array("noise_raw"))
    # the reference draws new noise for its second pass: what it freezes is from the first
    frozen, run = (corrupt(lm, [prompt], [n * noise_std(case, lm)]) for n in (first, second))
    regained = restore(dataclasses.replace(run, mlp=frozen.mlp), runs).mean(1)
    expected = case.array(f"repatch_severed_mlp{suffix}").to(dtype)
    close_to(regained, expected, tolerance, absolute=True)


@golden
def test_golden_spread_of_embeddings(case):
    expected = case.manifest["hyperparameters"]["noise_std"]
    assert noise_std(case, case.model(torch.float32)) == pytest.approx(expected, rel=1e-6)
