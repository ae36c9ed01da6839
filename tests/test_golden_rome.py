"""Second moments, ROME and R-ROME against what published code computed on tiny models."""

import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from kn_bench.cases.case import EditRequest
from kn_bench.editing.applying import RowEdits, in_place
from kn_bench.editing.closed_form import Covariance
from kn_bench.editing.edit import LowRankEdit
from kn_bench.editing.rome.encoding import encode_problem
from kn_bench.editing.rome.problem import ValueProblem, ValueRow, ValueSettings
from kn_bench.editing.rome.update import KeyChoice, rank_one
from kn_bench.editing.rome.value import optimise_values
from kn_bench.model.corpus import Texts
from kn_bench.model.second_moment import second_moments
from tests.golden import cases, deviation

MODES: dict[str, tuple[KeyChoice, KeyChoice]] = {
    "random_prefix": ("mean", "mean"),
    "prompt_keys": ("bare", "bare"),
    "original": ("mean", "bare"),
}
"""R-ROME's reference by its own words: which key stands in u, and which in the denominator."""


class PublishedInverse(Covariance):
    """C^-1 k as published: C inverted in float32. Ours solves in float64."""

    def solve(self, keys):
        return keys.double() @ torch.inverse(self.matrix.float()).double().T


def unpacked(triangle, d):
    matrix = torch.zeros(d, d, dtype=torch.float64)
    rows, columns = np.triu_indices(d)
    matrix[rows, columns] = triangle.double()
    return matrix + matrix.triu(1).T


# -- second moments ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("mom2", "mom2_triu"))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-5)])
def test_golden_second_moment(case, dtype, tolerance, close_to):
    lm = case.model(dtype)
    (layer,) = map(int, re.findall(r"\.(\d+)\.", case.manifest["layer_name"]))
    moment = second_moments(lm, [layer], Texts(case.manifest["texts"]))[layer]
    close_to(moment.matrix, unpacked(case.array("mom2_triu"), lm.d_mlp), tolerance)


# -- ROME --------------------------------------------------------------------------------------


def layer_of(case):
    (layer,) = case.manifest["hyperparameters"]["layers"]
    return layer


def settings_of(case):
    h = case.manifest["hyperparameters"]
    names = ("v_lr", "v_num_grad_steps", "v_weight_decay", "clamp_norm_factor", "kl_factor")
    return ValueSettings(**{name: h[name] for name in names})


def request_of(raw):
    return EditRequest(
        id="golden/case",
        task="fact",
        relation="any",
        subject=raw["subject"],
        prompt=raw["prompt"],
        target_true="the truth",
        target_new=raw["target"],
    )


def contexts_of(case):
    stored = case.manifest["context_templates"]
    # MEMIT's are grouped by type: the bare prompt, then the others
    bare, *templates = chain(*stored) if isinstance(stored[0], list) else stored
    assert bare == "{}"
    return [template.removesuffix("{}") for template in templates]


def stored_problem(case):
    """The rows as the reference ran them, without their padding."""
    out = case.outputs
    rows = []
    for ids, targets, at in zip(
        out["v_input_ids"], out["v_rewriting_targets"], out["v_lookup_idxs"], strict=False
    ):
        reads = tuple(i for i, target in enumerate(targets) if target != -100)
        rows.append(
            ValueRow(tuple(ids[: reads[-1] + 1]), at, reads, tuple(targets[i] for i in reads))
        )
    at = out["v_lookup_idxs"][-1]
    anchor = ValueRow(tuple(out["v_input_ids"][-1][: at + 1]), at, (at,))
    return ValueProblem(tuple(rows), anchor)


def looks_up_padding(case):
    """The documented bug: an index of -1 lands on padding, or on the target's own tokens."""
    return min(case.outputs["v_lookup_idxs"]) < 0


def solver_of(case, lm, kind=Covariance):
    if not case.manifest["hyperparameters"]["mom2_adjustment"]:
        return None
    if "C_triu" in case.arrays:
        return kind(unpacked(case.array("C_triu"), lm.d_mlp))
    named = case.outputs.get("C_file") or case.manifest["C_file"]
    place = Path(*Path(named.split(" : ")[0]).parts[1:])
    folder = (case.folder.parents[1] / place).parent
    stored = type(case)(folder)
    matrix = unpacked(stored.array("mom2_triu"), lm.d_mlp)
    # the reference added lambda in float32
    lam = torch.tensor(stored.outputs["lam"], dtype=torch.float32)
    return kind((matrix.float() + lam * torch.eye(lm.d_mlp)).double())


def optimised(case, dtype, problem=None):
    lm = case.model(dtype)
    problem = problem or stored_problem(case)
    (value,) = optimise_values(lm, layer_of(case), [problem], settings_of(case))
    return lm, value


def is_rounded(lm):
    """Whether the architecture computes some of its steps in float32 whatever the weights'."""
    return lm.architecture.down.endswith("down_proj")


ROME_CASES = [
    param
    for param in cases("rome", "u_f64")
    if not param.values[0] or not looks_up_padding(param.values[0])
]


@pytest.mark.parametrize("case", ROME_CASES)
def test_golden_rome_in_float64(case, close_to):
    lm, value = optimised(case, torch.float64)
    solved = rank_one(value, layer_of(case), solver=solver_of(case, lm))
    rounded = is_rounded(lm)
    u, v = solved.update.u[:, 0], solved.update.v[0]
    close_to(u, case.array("u_f64"), 1e-5 if rounded else 1e-9)
    v_star = case.array("v_star_f64")
    close_to(value.v_star, v_star, 1e-4 if rounded else 1e-8)
    # where no update is made v is rounding noise: measured by what it is a difference of
    scale = max(float(case.array("v_f64").abs().max()), float(v_star.abs().max()) / 100)
    error = float((v - case.array("v_f64")).abs().max()) / scale
    assert error < (1e-4 if rounded else 1e-8)
    if "loss_f64" in case.arrays:
        losses = case.array("loss_f64")
        assert len(value.losses) == len(losses) == case.outputs["n_loss_evaluations_f64"]
        assert float((value.losses - losses).abs().max()) < 1e-9


@pytest.mark.parametrize("case", ROME_CASES)
def test_golden_rome_in_float32(case, close_to):
    lm, value = optimised(case, torch.float32)
    solved = rank_one(value, layer_of(case), solver=solver_of(case, lm))
    close_to(solved.update.u[:, 0], case.array("u"), 1e-4)
    close_to(value.v_star, case.array("v_star"), 1e-3)
    assert len(value.losses) == len(case.array("loss")) == case.outputs["n_loss_evaluations"]
    for ours, name in ((value.losses, "loss"), (value.nll, "nll"), (value.kl, "kl")):
        assert float((ours - case.array(name)).abs().max()) < 1e-4
    assert float((value.decay - case.array("wd")).abs().max()) < 1e-4


@pytest.mark.parametrize("case", ROME_CASES)
def test_golden_rome_probabilities_after_the_edit(case):
    """Through our own reading of the text, and the edit applied row by row and in place."""
    lm, value = optimised(case, torch.float64)
    solved = rank_one(value, layer_of(case), solver=solver_of(case, lm))
    edit = LowRankEdit(updates=(solved.update,))
    probes = case.manifest.get("probes") or case.outputs["probes"]
    tolerance = 1e-5 if is_rounded(lm) else 1e-8
    for index, probe in enumerate(probes):
        ids = lm.tensor([lm.tokens.encode(probe).ids])
        with RowEdits(lm, [edit]).on(torch.tensor([0]), torch.ones_like(ids, dtype=torch.bool)):
            ours = lm.forward(ids, torch.tensor([[-1]]))[0, 0].softmax(0)
        exact = case.array("probs_post_f64")
        if index < len(exact):
            assert float((ours - exact[index]).abs().max()) < tolerance
        assert float((ours - case.array("probs_post")[index]).abs().max()) < 1e-4
    with in_place(lm, edit), torch.no_grad():
        edited_in_place = lm.forward(ids, torch.tensor([[-1]]))[0, 0].softmax(0)
    assert torch.allclose(edited_in_place, ours, atol=1e-12)


@pytest.mark.parametrize("case", ROME_CASES)
def test_golden_text_is_read_as_published_28(case):
    """Trap 28: the subject's position in the whole encoded text, BOS and contexts included."""
    if case.manifest["hyperparameters"]["fact_token"] != "subject_last":
        pytest.skip("the reference edits at another token than the subject's last")
    lm = case.model(torch.float64)
    ours = encode_problem(request_of(case.manifest["request"]), lm.tokens, contexts_of(case))
    assert ours == stored_problem(case)


PADDED = [p for p in cases("rome", "u_f64") if not p.values[0] or looks_up_padding(p.values[0])]


@pytest.mark.parametrize("case", PADDED)
def test_golden_documented_bug_is_not_repeated(case):
    """An index on the padding is refused, and the text's own reading gives another update."""
    with pytest.raises(ValueError, match="positions out of order"):
        stored_problem(case)
    lm = case.model(torch.float64)
    problem = encode_problem(request_of(case.manifest["request"]), lm.tokens, contexts_of(case))
    _, value = optimised(case, torch.float64, problem)
    solved = rank_one(value, layer_of(case), solver=solver_of(case, lm))
    assert deviation(solved.update.u[:, 0], case.array("u_f64")) > 1e-2


@pytest.mark.parametrize(
    "case",
    [
        p
        for p in ROME_CASES
        if not p.values[0] or p.values[0].manifest["hyperparameters"]["mom2_adjustment"]
    ],
)
def test_golden_float64_solve_is_within_the_float32_noise_of_the_published_one(case):
    """Trap 30: ours differs from the float32 inverse, and by no more than its rounding."""
    lm = case.model(torch.float64)
    keys = optimised(case, torch.float64)[1].keys.mean(0)[None]
    exact = torch.linalg.solve(solver_of(case, lm).matrix, keys[0])
    ours = solver_of(case, lm).solve(keys)[0]
    published = solver_of(case, lm, PublishedInverse).solve(keys)[0]
    assert deviation(ours, exact) < 1e-10
    assert 1e-9 < deviation(published, exact) < 1e-4


@pytest.mark.parametrize("case", cases("rome", "total_delta_weight"))
def test_golden_two_edits_in_sequence(case, close_to):
    """The second edit is made on the model that the first one changed."""
    lm = case.model(torch.float64)
    contexts = contexts_of(case)
    updates = []

    def edit(raw):
        problem = encode_problem(request_of(raw), lm.tokens, contexts)
        (value,) = optimise_values(lm, layer_of(case), [problem], settings_of(case))
        updates.append(rank_one(value, layer_of(case), solver=None).update)

    first, second = case.manifest["requests"]
    edit(first)
    with in_place(lm, LowRankEdit(updates=tuple(updates))):
        edit(second)
    total = torch.stack([update.u @ update.v for update in updates]).sum(0)
    golden = case.array("total_delta_weight")
    close_to(total if golden.shape == total.shape else total.T, golden, 1e-4)


# -- R-ROME ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("rrome", "u_f64"))
def test_golden_r_rome(case, close_to):
    lm = case.model(torch.float64)
    problem = encode_problem(request_of(case.manifest["request"]), lm.tokens, contexts_of(case))
    (value,) = optimise_values(lm, layer_of(case), [problem], settings_of(case))
    u_from, k_p_from = MODES[case.manifest["hyperparameters"]["mode"]]
    solver = solver_of(case, lm)
    solved = rank_one(value, layer_of(case), solver=solver, u_from=u_from, k_p_from=k_p_from)
    close_to(solved.update.u[:, 0], case.array("u_f64"), 1e-9)
    close_to(solved.update.v[0], case.array("v_f64"), 1e-8)
    edit = LowRankEdit(updates=(solved.update,))
    for index, probe in enumerate(case.manifest["probes"]):
        ids = lm.tensor([lm.tokens.encode(probe).ids])
        with RowEdits(lm, [edit]).on(torch.tensor([0]), torch.ones_like(ids, dtype=torch.bool)):
            ours = lm.forward(ids, torch.tensor([[-1]]))[0, 0].softmax(0)
        assert float((ours - case.array("probs_post")[index]).abs().max()) < 1e-4
