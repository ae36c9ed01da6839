"""Golden numbers of published knowledge-neuron code: attribution, selection, interventions, edits.

Where published code attributes something else than the paper's neurons (activations before the
non-linearity, an answer's later tokens without the earlier ones), both sides are shown: the plain
brute force gives the published numbers when it does as published, and ours are others.
"""

import re

import numpy as np
import pytest
import torch

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRankEdit, NeuronEdit
from kn_bench.edits.kn import EraseKN, RewriteKN, _scales
from kn_bench.localise.attribution import attribute
from kn_bench.localise.integration import Rule
from kn_bench.localise.measures import r1_squared
from kn_bench.localise.queries import TokenQuestion
from kn_bench.localise.scaling import Rows, ask
from kn_bench.localise.selection import (
    Neuron,
    adaptive,
    coarse,
    refined,
)
from tests.brute_force import Place, integrated_gradients
from tests.golden import cases, deviation, hook_point, is_our_neuron
from tests.published_selection import compounding, dai_bag

FLOAT32, FLOAT64 = 2e-4, 1e-9
NORM_IN_FLOAT32 = 2e-5
"""Of float64 runs of families whose norm computes in float32 whatever it is given."""


class Query:
    """A prompt as a manifest stores it."""

    def __init__(self, ids, answer_position, answer_ids):
        self.ids, self.answer_position = tuple(ids), answer_position
        self.answer_ids = tuple(answer_ids)


def queries_of(case, lm):
    manifest = case.manifest
    return [
        Query(
            prompt["input_ids"],
            prompt["position"] if "position" in prompt else mask_place(lm, prompt["input_ids"]),
            prompt.get("target_ids") or plain_ids(lm, manifest["target"]),
        )
        for prompt in manifest["prompts"]
    ]


def mask_place(lm, ids):
    return ids.index(lm.tokens.mask_id)


def plain_ids(lm, text):
    return [i for i in lm.tokens.encode(text).ids if i not in lm.tokens.special_ids]


def rule_of(case):
    parameters = case.manifest["hyperparameters"]
    both_ends = "(steps-1)" in parameters.get("quadrature", "(steps-1)")
    return Rule("linspace" if both_ends else "riemann", parameters["steps"])


def tolerance(lm):
    normed = any(type(module).__name__.endswith("RMSNorm") for module in lm.hf.modules())
    return NORM_IN_FLOAT32 if normed else FLOAT64


def neurons_in(selected):
    return {tuple(neuron) for neuron in selected}


def is_ours(case, lm, query):
    return is_our_neuron(
        lm, hook_point(case.manifest["hook_module"]), list(query.ids), query.answer_position
    )


def hooked(lm, case, query, token=None, ids=None, position=None):
    """Brute force at the place the reference hooks: ``[n_layers, n]``."""
    hook = hook_point(case.manifest["hook_module"])
    assert hook is not None
    nodes = rule_of(case).on_unit_interval()
    ids = torch.tensor(query.ids if ids is None else ids)
    position = query.answer_position if position is None else position
    token = query.answer_ids[0] if token is None else token
    return torch.stack(
        [
            integrated_gradients(
                lm.hf,
                ids,
                token,
                Place(hook.module(lm, layer), position, output=hook.is_output),
                nodes,
            )
            for layer in range(lm.n_layers)
        ]
    )


# -- attribution ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("kn_attribution", "scores_f64"))
def test_attribution_in_float64_is_golden(case, close_to):
    lm = case.model(torch.float64)
    golden = case.array("scores_f64")
    queries = queries_of(case, lm)[: len(golden)]
    ours = torch.stack(
        [attribution.scores for attribution in attribute(lm, queries, rule=rule_of(case))]
    )
    if is_ours(case, lm, queries[0]):
        close_to(ours, golden, tolerance(lm))
    else:
        as_published = torch.stack([hooked(lm, case, query) for query in queries])
        close_to(as_published, golden, tolerance(lm))
        assert ours.shape != golden.shape or deviation(ours, golden) > 1e-3


@pytest.mark.parametrize("case", cases("kn_attribution", "scores", "prob_path"))
def test_attribution_in_float32_is_golden(case, close_to):
    lm = case.model(torch.float32)
    golden, queries = case.array("scores"), queries_of(case, lm)
    if not is_ours(case, lm, queries[0]):
        # the reference's own neurons, on one prompt
        close_to(hooked(lm, case, queries[0]), golden[0], FLOAT32)
        return
    ours = torch.stack(
        [attribution.scores for attribution in attribute(lm, queries, rule=rule_of(case))]
    )
    close_to(ours, golden, FLOAT32)


@pytest.mark.parametrize("case", cases("kn_attribution", "scores", "prob_path"))
def test_probabilities_along_the_path_are_golden(case):
    lm = case.model(torch.float64)
    queries = queries_of(case, lm)
    if not is_ours(case, lm, queries[0]):
        pytest.skip("the reference scales something else than the site's input")
    golden = case.array("prob_path")
    n_layers, n_steps = golden.shape[1:]
    for query, expected in zip(queries, golden, strict=True):
        ids, position = query.ids, query.answer_position
        if lm.is_causal:
            ids = ids[: position + 1]
        asked = ask(lm, [TokenQuestion(ids, position, query.answer_ids[0])])
        layer = np.arange(n_layers).repeat(n_steps)
        rows = Rows(np.zeros_like(layer), layer, np.tile(np.linspace(0, 1, n_steps), n_layers))
        measured = asked.run(rows, gradient=False).probability
        assert float((measured.reshape(expected.shape) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("case", cases("kn_attribution", "scores", "prob_path"))
def test_ours_converges_and_is_nowhere_less_complete_than_the_published_rule(case):
    """Whatever the cases: the published rule may happen to converge on some of them."""
    lm = case.model(torch.float64)
    queries = queries_of(case, lm)[:2]
    if not is_ours(case, lm, queries[0]):
        pytest.skip("the reference scales something else than the site's input")
    published = attribute(lm, queries, rule=rule_of(case))
    for ours, theirs in zip(attribute(lm, queries), published, strict=True):
        assert bool(ours.converged.all())
        # in units of what is allowed; within it, one is as good as the other
        excess = (theirs.completeness / theirs.allowed).clamp_min(1)
        assert bool((ours.completeness / ours.allowed <= excess).all())


@pytest.mark.parametrize("case", cases("kn_attribution", "scores_per_token_same_position"))
def test_published_code_attributes_later_tokens_without_the_earlier_ones(case, close_to):
    lm = case.model(torch.float64)
    manifest = case.manifest
    ids, targets = manifest["input_ids"], manifest["target_ids"]
    query = Query(ids, len(ids) - 1, targets)
    same_place = torch.stack([hooked(lm, case, query, token=token) for token in targets])
    close_to(same_place, case.array("scores_per_token_same_position"), FLOAT32)
    close_to(same_place.mean(0), case.array("scores_gpt2"), FLOAT32)

    along_the_answer = [
        hooked(lm, case, query, token, [*ids, *targets[:k]], len(ids) - 1 + k)
        for k, token in enumerate(targets)
    ]
    proper = torch.stack(along_the_answer).mean(0)
    assert deviation(proper, case.array("scores_gpt2")) > FLOAT32
    # ours asks the same questions, of the site's own neurons
    rule = rule_of(case)
    nodes = rule.on_unit_interval()
    expected = [
        torch.stack(
            [
                integrated_gradients(
                    lm.hf,
                    torch.tensor([*ids, *targets[:k]]),
                    token,
                    Place(lm.site(layer), len(ids) - 1 + k),
                    nodes,
                )
                for layer in range(lm.n_layers)
            ]
        )
        for k, token in enumerate(targets)
    ]
    (ours,) = attribute(lm, [query], rule=rule)
    assert deviation(ours.scores, torch.stack(expected).mean(0)) < FLOAT64


@pytest.mark.parametrize("case", cases("kn_attribution", "scores_target_given_prompt_plus_greedy"))
def test_a_target_with_bos_is_refused(case):
    lm = case.model(torch.float32)
    manifest = case.manifest
    as_encoded = lm.tokens.encode(manifest["target"]).ids
    prompt = lm.tokens.encode(manifest["prompts"][0]["prompt"]).ids
    with pytest.raises(ValueError, match="expected ordinary tokens, got special token"):
        attribute(lm, [Query(prompt, len(prompt) - 1, as_encoded)])
    # half of the published scores are those of BOS: the answer's own are others
    answer = plain_ids(lm, manifest["target"])
    (ours,) = attribute(lm, [Query(prompt, len(prompt) - 1, answer)], rule=rule_of(case))
    assert deviation(ours.scores, case.array("scores")[0]) > FLOAT32


# -- selection -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*cases("kn_selection"), *cases("kn_attribution", "scores")])
def test_selection_on_stored_scores_is_golden(case, close_to):
    outputs, scores = case.outputs, case.array("scores")
    published = outputs.get("selection", outputs)
    checks = []
    if "run_kn_alg" in published:
        checks += [(published["run_kn_alg"], scores, published["run_kn_alg"]["args"])]
    if "run_kn_alg_0_3" in published:
        checks += [(published["run_kn_alg_0_3"], scores, {"adaptive_threshold": 0.3, "p": 0.5})]
    for expected, values, arguments in checks:
        selected = adaptive(
            [coarse(value, arguments["adaptive_threshold"]) for value in values],
            arguments["p"],
            low=arguments.get("kn_num_min", 2),
            high=arguments.get("kn_num_max", 5),
        )
        assert selected.neurons == neurons_in(expected["neurons"])
        assert selected.tau == expected["p_returned"]
    if "coarse_020" in outputs:
        expected = [neurons_in(value) for value in outputs["coarse_020"]]
        assert [coarse(value, 0.2) for value in scores] == expected
    if "refined_at_p07" in outputs:
        selected = refined([coarse(value, 0.2) for value in scores], 0.7)
        assert selected.neurons == neurons_in(outputs["refined_at_p07"])
    if "fix_p_neuron" in published:
        fixed = published["fix_p_neuron"]
        fixed = fixed["neurons"] if isinstance(fixed, dict) else fixed
        assert compounding(scores, 0.2, 0.7) == neurons_in(fixed)
    for name in ("dai_bag", "dai_bag_070"):
        if name in outputs:
            assert dai_bag(scores) == neurons_in(outputs[name])
    if "R1_squared" in published:
        expected, likeness = published["R1_squared"], r1_squared(scores)
        if expected is None:
            assert np.isnan(likeness)
        else:
            close_to(torch.tensor(likeness), torch.tensor(expected), 1e-5, absolute=True)


@pytest.mark.parametrize("case", cases("kn_attribution", "scores", "prob_path"))
def test_selection_on_our_scores_is_golden(case):
    lm = case.model(torch.float64)
    queries = queries_of(case, lm)
    if not is_ours(case, lm, queries[0]) or "selection_f64" not in case.outputs:
        pytest.skip("no float64 selection over the site's neurons")
    scores = torch.stack([f.scores for f in attribute(lm, queries, rule=rule_of(case))])
    expected = case.outputs["selection_f64"]
    assert abs(r1_squared(scores) - expected["R1_squared"]) < max(1e-9, tolerance(lm))
    arguments = expected["run_kn_alg"]["args"]
    t = arguments["adaptive_threshold"]
    selected = adaptive(
        [coarse(score, t) for score in scores],
        arguments["p"],
        low=arguments["kn_num_min"],
        high=arguments["kn_num_max"],
    )
    for neuron in selected.neurons ^ neurons_in(expected["run_kn_alg"]["neurons"]):
        # only rounding at the threshold may tell them apart
        highest = scores.amax((1, 2))
        gap = (scores[:, neuron[0], neuron[1]] / highest - t).abs().min()
        assert gap < 1e-4


# -- interventions -------------------------------------------------------------------------


def probabilities(lm, ids, position, edit):
    ids = torch.tensor([ids])
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, position] = True
    with torch.no_grad(), RowEdits(lm, [edit]).on(torch.tensor([0]), where):
        return lm.forward(ids, torch.tensor([[position]]))[0, 0].softmax(-1)


@pytest.mark.parametrize("case", cases("kn_intervene"))
def test_interventions_are_golden(case, close_to):
    lm = case.model(torch.float32)
    manifest = case.manifest
    prompts = manifest["prompts"]
    neurons = [Neuron(*place) for place in manifest["neurons"]]
    first = prompts[0]
    ours = is_our_neuron(
        lm, hook_point(manifest["hook_module"]), first["input_ids"], first["position"]
    )
    for name, factor in (("base", 1.0), ("suppress", 0.0), ("enhance", 2.0)):
        edit = NeuronEdit(_scales(frozenset(neurons), factor))
        golden = case.array(f"probs_{name}")
        for index, prompt in enumerate(prompts):
            place = prompt["input_ids"], prompt["position"]
            measured = (
                probabilities(lm, *place, edit)
                if ours or name == "base"
                else scaled_at_hook(lm, manifest["hook_module"], *place, neurons, factor)
            )
            if index < len(golden):
                close_to(measured, golden[index], 1e-5, absolute=True)
            target = torch.tensor(case.outputs[f"target_prob_{name}"][index], dtype=torch.float64)
            close_to(measured[manifest["target_id"]], target, 1e-5, absolute=True)


def scaled_at_hook(lm, text, ids, position, neurons, factor):
    """What published code does when it scales something before the non-linearity."""
    hook = hook_point(text)
    assert hook is not None
    handles = []
    for layer in {neuron.layer for neuron in neurons}:
        units = [neuron.unit for neuron in neurons if neuron.layer == layer]

        def scale(_, inputs, output, units=units):
            output = output.clone()
            flat = output.reshape(len(ids), -1)
            flat[position, units] *= factor
            return flat.reshape(output.shape)

        handles.append(hook.module(lm, layer).register_forward_hook(scale))
    with torch.no_grad():
        logits = lm.hf(input_ids=torch.tensor([ids])).logits[0, position]
    for handle in handles:
        handle.remove()
    return logits.softmax(-1)


# -- edits ---------------------------------------------------------------------------------


def edit_of(case, lm):
    """The reference's answer-changing edit through ours: what, and the two embeddings."""
    manifest = case.manifest
    parameters = manifest["hyperparameters"]
    old = manifest.get("original_argmax_id", case.outputs.get("original_argmax_id"))
    new = manifest.get("target_new_ids") or [manifest["target_new_id"]]
    embeddings = lm.input_embeddings
    if "norm_lambda1" in parameters:
        weights = parameters["norm_lambda1"], parameters["norm_lambda2"]
    else:
        match = re.search(r"-(\d+)\*E\[argmax token\] \+ (\d*)", parameters["edit"])
        assert match is not None
        weights = float(match[1]), float(match[2] or 1)
    method = RewriteKN(
        lm, lambda_1=weights[0], lambda_2=weights[1], relative="norm_lambda1" in parameters
    )
    return method, embeddings[old], embeddings[new].sum(0)


def check_edit(case, lm, updates, name, close_to):
    """The edited values, and the probabilities that they lead to."""
    manifest = case.manifest
    neurons = [Neuron(*place) for place in manifest["neurons"]]
    ids = manifest["input_ids"]
    position = manifest.get("position", len(ids) - 1)
    by_layer = {up.layer: up.u @ up.v for up in updates}
    values = torch.stack([(lm.weight(n.layer) + by_layer[n.layer])[n.unit] for n in neurons])
    stored = next(iter({f"columns_{name}", f"rows_{name}"} & case.arrays))
    close_to(values, case.array(stored), 1e-5)
    measured = probabilities(lm, ids, position, LowRankEdit(updates))
    close_to(measured, case.array(f"probs_{name}"), 1e-5, absolute=True)


@pytest.mark.parametrize("case", cases("kn_edit", "probs_edit"))
def test_kn_edit_is_golden(case, close_to):
    lm = case.model(torch.float32)
    method, old, new = edit_of(case, lm)
    neurons = frozenset(Neuron(*place) for place in case.manifest["neurons"])
    check_edit(case, lm, method.updates(neurons, old, new), "edit", close_to)


@pytest.mark.parametrize("by", ["zero", "unk"])
@pytest.mark.parametrize("case", cases("kn_edit", "probs_erase_zero", "probs_erase_unk"))
def test_erasing_is_golden(case, by, close_to):
    lm = case.model(torch.float32)
    neurons = frozenset(Neuron(*place) for place in case.manifest["neurons"])
    updates = EraseKN(lm, by=by).updates(neurons, "case")
    check_edit(case, lm, updates, f"erase_{by}", close_to)
