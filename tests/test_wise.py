"""WISE against a brute force: a module of its own in a copy of the model, loops over entries."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kn_bench.editing.composition import CannotCompose, Composition, summed
from kn_bench.editing.memories import SideWeights
from kn_bench.editing.settings import SettingError
from kn_bench.edits.wise import SideMemory, Wise, WiseSettings, ties
from kn_bench.model.corpus import NamedCorpus, Texts
from tests.test_rome import REQUESTS
from tests.tiny_models import tiny_model

SETTINGS = WiseSettings(
    layer=1, n_iter=6, edit_lr=0.5, alpha=0.05, beta=2.0, gamma=1.0, save_freq=2, merge_freq=4
)


def model(family):
    """A tiny model in float64 with other text of its own."""
    lm = tiny_model(family)
    texts = [" ".join(f"w{5 + (i * j) % 59}" for j in range(3, 12)) for i in range(1, 40)]
    lm.corpus = NamedCorpus("made up", Texts(tuple(texts)))
    return lm


class Copied(nn.Module):
    """The module with W' at chosen positions: what the method trains, written out."""

    def __init__(self, module, weight, delta, at):
        super().__init__()
        self.module, self.weight, self.delta, self.at = module, weight, delta, at

    def forward(self, inputs):
        outputs = self.module(inputs)
        shape = outputs.shape
        inputs, outputs = inputs.reshape(-1, inputs.shape[-1]), outputs.reshape(-1, shape[-1])
        rows = []
        for position in range(len(inputs)):
            row = outputs[position]
            if position in self.at:
                row = (
                    row
                    - inputs[position] @ self.weight
                    + inputs[position] @ (self.weight + self.delta)
                )
            rows.append(row)
        return torch.stack(rows).reshape(shape)


def brute_force(lm, h, row, start, mask, others):
    """Gradient descent on W' through a whole copy of the model."""
    delta = start.clone().requires_grad_()
    hf = copy.deepcopy(lm.hf)
    name = lm.weight_name(h.layer).removesuffix(".weight")
    parent, _, last = name.rpartition(".")
    weight = lm.weight(h.layer).detach()
    seen = []
    module = hf.get_submodule(name)
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    setattr(hf.get_submodule(parent), last, Copied(module, weight, delta, set(row.reads)))
    for _ in range(h.n_iter):
        seen.clear()
        logits = hf(torch.tensor([row.ids])).logits[0]
        nll = -sum(
            logits[at].log_softmax(0)[target]
            for at, target in zip(row.reads, row.targets, strict=True)
        ) / len(row.reads)
        keys = seen[0].detach().reshape(len(row.ids), -1)
        distances = [((keys[at] @ delta).square().sum() + 1e-300).sqrt() for at in row.reads]
        edited = sum(distances) / len(distances)
        means = []
        for text in others:
            norms = [((key @ delta).square().sum() + 1e-300).sqrt() for key in text]
            means.append(sum(norms) / len(norms))
        other = sum(means) / len(means)
        zero = torch.zeros((), dtype=delta.dtype)
        loss = nll + torch.maximum(other - h.alpha, zero) + torch.maximum(h.beta - edited, zero)
        loss = loss + torch.maximum(h.gamma - (edited - other), zero)
        (gradient,) = torch.autograd.grad(loss, [delta])
        with torch.no_grad():
            delta -= h.edit_lr * torch.where(mask, gradient, 0.0)
    return delta.detach(), float(loss.detach()), keys[list(row.reads)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_copy_is_what_a_brute_force_gives(family):
    lm = model(family)
    method = Wise(lm, SETTINGS)
    memory = method.empty()
    start = method.no_change()[0]
    for index, request in enumerate(REQUESTS[:3]):
        (row,) = method._rows_of_all([request])
        others = method.other_keys(request.id)
        assert len(others) == SETTINGS.others
        mask = method.mask(index // 2)
        begin = start if index % 2 == 0 else memory.deltas[-1]
        delta, loss, keys = brute_force(lm, SETTINGS, row, begin, mask, others)
        memory, ours = method.learn(memory, row, others)
        torch.testing.assert_close(memory.deltas[-1], delta, rtol=1e-9, atol=1e-12)
        assert ours == pytest.approx(loss, rel=1e-9)
        torch.testing.assert_close(memory.keys[-len(keys) :], keys, rtol=1e-9, atol=1e-12)
        assert not memory.deltas[-1][~mask].any()
        assert memory.deltas[-1][mask].any()
    assert (len(memory.deltas), int(memory.edits)) == (2, 3)


def by_entry(shards, density):
    """TIES entry by entry, on lists."""
    rows = [shard.flatten().tolist() for shard in shards]
    out = int((1 - density) * len(rows[0]))
    for row in rows:
        sizes = [abs(entry) for entry in row]
        for index in sorted(range(len(row)), key=sizes.__getitem__)[:out]:
            row[index] = 0.0
    merged = []
    for entries in zip(*rows, strict=True):
        sign = sum(entries)
        same = [entry for entry in entries if entry * sign > 0]
        merged.append(sum(same) / len(same) if same else 0.0)
    return torch.tensor(merged, dtype=shards.dtype).reshape(shards[0].shape)


@pytest.mark.parametrize("density", [0.2, 0.53, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_ties_entry_by_entry(n, density):
    shards = torch.randn(n, 7, 9, generator=torch.Generator().manual_seed(n)).double()
    torch.testing.assert_close(ties(shards, density), by_entry(shards, density))


def test_every_position_is_routed_by_itself():
    deltas = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    memory = SideWeights(deltas, torch.tensor([1.0, 2.0, 30.0]).double())
    inputs = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1)).double()
    outputs = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2)).double()
    replaced = memory.replaced(inputs, outputs)
    used = set()
    for row in range(2):
        for position in range(6):
            changes = [inputs[row, position] @ delta for delta in deltas]
            past = [
                (float(change.norm()), i)
                for i, (change, epsilon) in enumerate(zip(changes, memory.epsilons, strict=True))
                if change.norm() >= epsilon
            ]
            expected = outputs[row, position]
            if past:
                used.add(max(past)[1])
                expected = expected + changes[max(past)[1]]
            torch.testing.assert_close(replaced[row, position], expected)
    assert used == {0, 1}  # the third is never far enough


def test_shards_and_merging():
    """Edits 1 and 2 share a shard, 3 and 4 the next; then there is one, and 5 goes on from it."""
    method = Wise(model("gpt2"), SETTINGS)
    memory, sizes = method.empty(), []
    before: SideMemory = memory
    for index in range(5):
        request = REQUESTS[index % len(REQUESTS)]
        (row,) = method._rows_of_all([request])
        before, (memory, _) = memory, method.learn(memory, row, method.other_keys(request.id))
        sizes.append(len(memory.deltas))
        if index == 3:
            shards = method.learn(before, row, method.other_keys(request.id))[0]
            assert torch.equal(shards.deltas, memory.deltas)
            assert set(memory.owner.tolist()) == {0}
    assert sizes == [1, 1, 2, 1, 2]
    grown = memory.deltas[1] - memory.deltas[0]
    assert not grown[~method.mask(2)].any()
    weights = memory.weights()
    for key, owner in zip(memory.keys, memory.owner, strict=True):
        assert (key @ memory.deltas[owner]).norm() > weights.epsilons[owner]


def test_an_edit_knows_nothing_of_the_memory_in_force():
    """In a sequence the memory of the steps before is open while the next one is trained."""
    lm = model("gpt2")
    method = Wise(lm, SETTINGS)
    edit, state = method.edit_together(REQUESTS[:1], method.begin())
    _, alone = method.edit_together(REQUESTS[1:2], state)
    with Composition(lm) as sequence:
        sequence.add([edit])
        _, inside = method.edit_together(REQUESTS[1:2], state)
    for name, tensor in alone.items():
        torch.testing.assert_close(inside[name], tensor, msg=name)
    with pytest.raises(CannotCompose):
        summed([edit, edit])


def test_shards_that_do_not_fill_a_merge_are_refused():
    with pytest.raises(SettingError, match="merge_freq 3: expected a multiple of save_freq 2"):
        replace(SETTINGS, merge_freq=3).check(tiny_model("gpt2"))
