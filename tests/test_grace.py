"""GRACE: the published codebooks, and what a codebook does."""

import re

import pytest
import torch

from kn_bench.editing.memories import Codebook
from kn_bench.edits.grace import Grace, GraceSettings
from tests.golden import cases
from tests.test_golden_rome import request_of
from tests.test_rome import REQUESTS
from tests.tiny_models import tiny_model


def method_of(case, lm):
    h = case.manifest["hyperparameters"]
    (named,) = h["inner_params"]
    module = re.sub(r"\[(\d+)\]", r".\1", named).removesuffix(".weight")
    names = ("eps", "edit_lr", "n_iter", "val_init", "replacement", "eps_expand")
    return Grace(lm, GraceSettings(layer=h["layer"], module=module, **{n: h[n] for n in names}))


@pytest.mark.parametrize("case", cases("grace", "keys_edit0_f64"))
def test_golden_grace(case, close_to):
    """Keys, radii, values and what the edited model answers, edit after edit."""
    lm = case.model(torch.float64)
    method = method_of(case, lm)
    codebook = method.empty()
    reversed_labels = case.folder.name.split("__")[1].startswith("easyedit")
    on_the_edge = {(edge["edit"], edge["probe"]) for edge in case.outputs["probes_on_the_boundary"]}
    for index, raw in enumerate(case.manifest["requests"]):
        stored = case.outputs["edits"][index]
        if reversed_labels and stored["nkeys"] > len(codebook.keys) and index == 4:
            break  # documented: labels stored in reverse compare the wrong one
        prompt = {"prompt": "{}" + raw["prompt"][len(raw["prompt"].split()[0]) :],
                  "subject": raw["prompt"].split()[0], "target": raw["target"]}  # fmt: skip
        (row,) = method._rows([request_of(prompt)])
        assert [*row.ids, row.targets[-1]] == stored["input_ids"]
        assert row.reads[0] == stored["key_id"]
        cold = f"value_init_edit{index}_f64"
        draw = case.array(cold) if cold in case.arrays else codebook.values.new_zeros(1)
        codebook, losses, chosen = method.learn(codebook, row, draw)
        of = f"_edit{index}_f64"
        close_to(codebook.keys, case.array(f"keys{of}"), 1e-8)
        close_to(codebook.epsilons, case.array(f"epsilons{of}"), 1e-8)
        close_to(codebook.values, case.array(f"values{of}"), 1e-6)
        assert chosen == stored["chosen_key"]
        golden = torch.tensor(stored["losses"], dtype=torch.float64)
        assert float((losses - golden).abs().max()) < 1e-8
        logits = case.array(f"logits{of}")
        for probe, ids in enumerate(case.outputs["probe_ids"][: len(logits)]):
            if (index, probe) in on_the_edge:
                continue
            ours = answered(method, codebook, lm, ids)
            assert float((ours - logits[probe]).abs().max()) < 1e-8 * float(logits.abs().max())


def answered(method, codebook, lm, ids):
    """Logits at the last token, with the last token alone as the key: as the probes were asked."""
    module = lm.hf.get_submodule(method.name)

    def last_only(_, args, output):
        if method.settings.replacement == "replace_prompt":
            return codebook.replaced(args[0][None] if args[0].ndim == 2 else args[0],
                                     output[None] if output.ndim == 2 else output,
                                     before_last=True).reshape(output.shape)  # fmt: skip
        rows = output.reshape(len(ids), -1).clone()
        keys = args[0].reshape(len(ids), -1)
        rows[-1:] = codebook.replaced(keys[None, -1:], rows[None, -1:])[0]
        return rows.reshape(output.shape)

    handle = module.register_forward_hook(last_only)
    try:
        with torch.no_grad():
            return lm.forward(lm.tensor([ids]), torch.tensor([[-1]]))[0, 0]
    finally:
        handle.remove()


SETTINGS = GraceSettings(layer=1, n_iter=30, edit_lr=1.0, eps=0.5)


def test_a_codebook_is_a_value_of_its_sequence():
    """Carried, saved and taken up again, it gives the same next step."""
    lm = tiny_model("gpt2")
    method = Grace(lm, SETTINGS)
    _, first = method.edit_together(REQUESTS[:2], method.begin())
    _, second = method.edit_together(REQUESTS[2:3], first)
    reloaded = {name: tensor.clone() for name, tensor in first.items()}
    _, again = Grace(lm, SETTINGS).edit_together(REQUESTS[2:3], reloaded)
    assert second.keys() == {"keys", "values", "epsilons", "answers"}
    for name, tensor in second.items():
        assert torch.equal(again[name], tensor), name
    assert method.begin() == {}
    _, together = method.edit_together(REQUESTS[:3], method.begin())
    torch.testing.assert_close(together["values"], second["values"])


def test_an_edge_belongs_to_its_ball():
    codebook = Codebook(
        torch.zeros(1, 2).double(), torch.ones(1, 3).double(), torch.tensor([5.0]).double(),
        torch.tensor([[7, -1]]),
    )  # fmt: skip
    inputs = torch.tensor([[[3.0, 4.0], [3.0, 4.1]]]).double()
    assert codebook.replaced(inputs, torch.zeros(1, 2, 3).double())[0, :, 0].tolist() == [1.0, 0.0]
    assert codebook.same_answer(0, torch.tensor([7]))
    assert not codebook.same_answer(0, torch.tensor([7, 8]))
