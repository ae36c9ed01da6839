"""Resuming from a layer and a position gives what whole runs give, on every architecture."""

import pytest
import torch

from kn_bench.model.resuming import clean_run, resume
from tests.tiny_models import FAMILIES, WINDOWED, tiny_model


def whole_run(lm, row, layer, position, factor):
    """Brute force: one row through the whole model, its neurons scaled at one place."""

    def scale(at, keys, values):
        keys = keys.reshape(1, len(row), -1)
        change = torch.zeros_like(values).reshape(1, len(row), -1)
        change[:, position] = (factor - 1) * keys[:, position] @ lm.weight(at)
        return values + change.reshape(values.shape)

    with lm.site_hooks(scale, [layer]), torch.no_grad():
        return lm.hidden(lm.tensor([row]), **lm._no_cache).last_hidden_state[0]


@pytest.mark.parametrize("family", [*FAMILIES, *WINDOWED])
def test_resumed_rows_equal_whole_runs_in_every_family(family):
    lm = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    position = 6 if lm.is_causal else 3
    start = position if lm.is_causal else 0
    clean = clean_run(lm, ids)
    joins = {layer: torch.tensor([0, 2, 1]) for layer in range(lm.n_layers)}

    def scale(layer, keys, values):
        new = values.clone()
        keys = keys.reshape(values.shape[0], -1, lm.d_mlp)
        new[-3:, position - start] += (0.25 - 1) * keys[-3:, position - start] @ lm.weight(layer)
        return new

    with torch.no_grad():
        hidden = resume(lm, clean, joins=joins, start=start, hook=scale)
    assert len(hidden) == 3 * lm.n_layers
    for layer in range(lm.n_layers):
        for index, row in enumerate((0, 2, 1)):
            expected = whole_run(lm, ids[row].tolist(), layer, position, 0.25)[start:]
            torch.testing.assert_close(hidden[3 * layer + index], expected, rtol=1e-9, atol=1e-10)
