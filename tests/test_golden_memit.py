"""MEMIT and AlphaEdit against what published code computed on tiny models."""

import re
from pathlib import Path

import pytest
import torch

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRankEdit
from kn_bench.editing.rome import remembered
from kn_bench.editing.rome.encoding import encode_problem
from kn_bench.editing.rome.spread import group_keys, null_space
from kn_bench.editing.rome.update import SecondMomentSolver
from kn_bench.edits.alphaedit import AlphaEdit, AlphaEditHyperparameters, History
from kn_bench.edits.memit import Memit, MemitHyperparameters
from tests.golden import GoldenCase, cases
from tests.test_golden_rome import contexts_of, request_of, unpacked


def moments_of(case, lm):
    """C of every layer the manifest names: its own triangle, or a second moment plus lambda."""
    root = case.folder.parents[1]
    named = case.manifest["C_file"]
    folder = (root / Path(*Path(named.split(" : ")[0]).parts[1:])).parent
    stored = GoldenCase(folder)
    found = {
        int(name[1]): unpacked(stored.array(name[0]), lm.d_mlp)
        for name in map(re.compile(r"C_layer(\d+)_triu").fullmatch, stored.arrays)
        if name
    }
    for key, text in stored.outputs.items():
        layer = re.fullmatch(r"C_layer(\d+)", key)
        if layer:
            plain = GoldenCase(root / text.split(":")[0])
            lam = torch.tensor(plain.outputs["lam"], dtype=torch.float32)
            matrix = unpacked(plain.array("mom2_triu"), lm.d_mlp).float()
            found[int(layer[1])] = (matrix + lam * torch.eye(lm.d_mlp)).double()
    return found


SHARED = ("v_lr", "v_num_grad_steps", "v_weight_decay", "clamp_norm_factor", "kl_factor")


@pytest.fixture
def stored(monkeypatch):
    """Let the methods read the case's contexts and second moments in place of their own."""

    def prepare(case, lm):
        moments = moments_of(case, lm)
        monkeypatch.setattr(remembered, "contexts", lambda lm, **_: tuple(contexts_of(case)))
        for module in ("kn_bench.edits.memit", "kn_bench.edits.alphaedit"):
            monkeypatch.setattr(
                f"{module}.solver_of", lambda lm, layer, *_: SecondMomentSolver(moments[layer])
            )
        return moments

    return prepare


def hyperparameters_of(case):
    h = case.manifest["hyperparameters"]
    return {
        "layers": tuple(h["layers"]),
        "mom2_update_weight": float(h["mom2_update_weight"]),
        **{name: h[name] for name in SHARED},
    }


def probabilities(lm, edit, probes):
    found = []
    for probe in probes:
        ids = lm.tensor([lm.tokens.encode(probe).ids])
        with RowEdits(lm, [edit]).on(torch.tensor([0]), torch.ones_like(ids, dtype=torch.bool)):
            found.append(lm.forward(ids, torch.tensor([[-1]]))[0, 0].softmax(0))
    return torch.stack(found).detach()


@pytest.mark.parametrize("case", cases("memit", "zs_f64"))
def test_golden_memit(case, stored, close_to):
    lm = case.model(torch.float64)
    stored(case, lm)
    method = Memit(lm, MemitHyperparameters(**hyperparameters_of(case)))
    requests = [request_of(raw) for raw in case.manifest["requests"]]
    problems = [encode_problem(one, lm.tokens, contexts_of(case)) for one in requests]
    h = method.hyperparameters
    values = remembered.values_of(lm, h.layers[-1], problems, h.value_settings, place="block")
    ours = torch.stack([values[problem].v_star for problem in problems])
    close_to(ours, case.array("zs_f64"), 1e-8)
    for index, problem in enumerate(problems):
        losses = torch.tensor(case.outputs["losses"][index])
        assert float((values[problem].losses - losses).abs().max()) < 1e-4
    edit = method.edit_together(requests)
    for update in edit.updates:
        nothing = [LowRankEdit(updates=())]
        (keys,) = group_keys(lm, [problems], nothing, update.layer)
        close_to(keys, case.array(f"ks_layer{update.layer}"), 1e-5)
        # the reference's model was float32 here, its solve float64
        close_to(update.u, case.array(f"adj_k_layer{update.layer}"), 1e-3)
        close_to(update.v.T, case.array(f"resid_layer{update.layer}"), 1e-3)
    after = probabilities(lm, edit, case.manifest["probes"])
    assert float((after - case.array("probs_post")).abs().max()) < 1e-4


@pytest.mark.parametrize("case", cases("alphaedit", "probs_post_batch0_f64run"))
def test_golden_alphaedit(case, stored, close_to):
    lm = case.model(torch.float64)
    moments = stored(case, lm)
    h = case.manifest["hyperparameters"]
    chosen = AlphaEditHyperparameters(
        **hyperparameters_of(case), L2=h["L2"], nullspace_threshold=h["nullspace_threshold"]
    )
    for index, layer in enumerate(chosen.layers):
        basis = null_space(moments[layer], chosen.nullspace_threshold)
        assert basis.shape[1] == case.outputs["P_rank"][index]
        close_to((basis @ basis.T).diagonal(), case.array("P_diag")[index], 5e-2)
    method, history = AlphaEdit(lm, chosen), History()
    for index, batch in enumerate(case.manifest["request_batches"]):
        history = method.after(history, [request_of(raw) for raw in batch])
        after = probabilities(lm, history.edit, case.manifest["probes"])
        golden = case.array(f"probs_post_batch{index}_f64run")
        assert float((after - golden).abs().max()) < 1e-6
        for update in history.edit.updates:
            norms = case.outputs[f"delta_norms_layer{update.layer}_f64"]
            assert float((update.u @ update.v).norm()) == pytest.approx(norms[index], rel=1e-6)
    for index, layer in enumerate(chosen.layers):
        keys = history.keys[layer].square().sum(0)
        close_to(keys, case.array("cache_c_diag")[index], 1e-2)
