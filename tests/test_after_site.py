"""Rows that join behind their site give what whole runs give, whichever way a family goes on."""

from dataclasses import replace

import pytest
import torch

from kn_bench.model import after_site
from kn_bench.model.after_site import Ways, clean_sites
from tests.tiny_models import FAMILIES, WINDOWED, tiny_model


def clean(lm, n=3, length=6):
    ids = torch.randint(5, 60, (n, length), generator=torch.Generator().manual_seed(0))
    positions = torch.full((n,), length - 1) if lm.is_causal else torch.arange(1, n + 1)
    return clean_sites(lm, ids, positions)


def whole(lm, sites, row, layer, value):
    """The whole model on one row, the value of one site replaced at its position."""
    at = int(sites.positions[row])

    def put(reached, _, values):
        flat = values.reshape(1, sites.run.ids.shape[1], -1).clone()
        flat[0, at] = value
        return flat.reshape(values.shape)

    with torch.no_grad(), lm.site_hooks(put, [layer]):
        options = {"use_cache": False} if lm.is_causal else {}
        return lm.hidden(sites.run.ids[row : row + 1], **options).last_hidden_state[0, at]


@pytest.mark.parametrize("family", [*FAMILIES, *WINDOWED])
def test_changed_rows_equal_whole_runs(family):
    lm = tiny_model(family)
    sites = clean(lm)
    asked = torch.tensor([2, 0, 2])
    rows = dict.fromkeys(range(lm.n_layers), asked)
    generator = torch.Generator().manual_seed(1)
    values = {
        layer: torch.randn(3, lm.d_model, generator=generator, dtype=lm.dtype) for layer in rows
    }
    with torch.no_grad():
        replaced = sites.changed(rows, values)
    for layer in rows:
        for index, row in enumerate(asked.tolist()):
            expected = whole(lm, sites, row, layer, values[layer][index])
            torch.testing.assert_close(replaced[3 * layer + index], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_rows_are_the_clean_run(family):
    lm = tiny_model(family)
    sites = clean(lm)
    rows = {layer: torch.arange(3) for layer in (0, lm.n_layers - 1)}
    values = {layer: sites.values[:, layer] for layer in rows}
    with torch.no_grad():
        replaced = sites.changed(rows, values)
    expected = sites.last_hidden.repeat(2, 1)
    torch.testing.assert_close(replaced, expected, rtol=1e-6, atol=1e-7)
    for layer in range(lm.n_layers):
        by_keys = sites.keys[:, layer] @ lm.weight(layer)
        bias = lm.site(layer).bias
        torch.testing.assert_close(
            sites.values[:, layer], by_keys if bias is None else by_keys + bias
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "after", "narrow"),
    [
        ("gpt2", "added", False),
        ("llama", "added", False),
        ("gptj", "added", False),
        ("bert", "rerun", True),
        ("roberta", "rerun", True),
        ("modernbert", "added", False),
        ("distilbert", "layer", False),
        ("gemma2", "layer", False),
        ("olmo2", "layer", False),
        ("opt", "layer", False),
    ],
)
def test_the_model_is_asked_how_its_layers_go_on(family, after, narrow, dtype):
    lm = tiny_model(family, dtype)
    ways = clean(lm).ways
    if dtype == torch.bfloat16 and after != "layer":
        # rounding may hide that a shortcut holds, never that it does not
        assert ways.after in (after, "layer")
    else:
        assert ways == Ways(after, narrow)


def test_a_way_that_does_not_hold_would_be_wrong():
    """What asking protects from: a norm between MLP and stream, taken for a plain sum."""
    lm = tiny_model("gemma2")
    sites = clean(lm)
    rows = {0: torch.arange(3)}
    values = {0: 2 * sites.values[:, 0]}
    with torch.no_grad():
        true = sites.changed(rows, values)
        naive = replace(sites, ways=Ways("added")).changed(rows, values)
    assert float((true - naive).abs().max()) > 1e-2


def test_the_model_is_asked_once(monkeypatch):
    lm = tiny_model.__wrapped__("gpt2")
    first = clean(lm)
    monkeypatch.delattr(after_site, "_find_ways")
    assert clean(lm).ways is first.ways
