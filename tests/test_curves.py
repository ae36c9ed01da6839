"""The figures of sequences: what can be read off them."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from kn_bench.results.curves import _panel


@pytest.mark.parametrize("last", [6.5, 60.0, 5e3, 8e7, 1e30])
def test_a_logarithmic_axis_has_ticks_whatever_it_spans(last):
    edits = [0, 1, 10, 100]
    curves = pd.DataFrame(
        {
            "run": "one",
            "method": "rome",
            "variant": "",
            "step": edits,
            "sequence": 0,
            "checkpoint_edits": edits,
            "checkpoint_perplexity": [5.6, 5.7, 5.9, last],
        }
    )
    panel = Figure(figsize=(10, 5.6)).subplots(2, 3)[1, 0]
    _panel(panel, curves, "checkpoint_perplexity", "perplexity", "log")
    low, high = panel.get_ylim()
    labels = [
        panel.yaxis.get_major_formatter()(tick)
        for tick in panel.yaxis.get_major_locator()()
        if low <= tick <= high
    ]
    assert len(list(filter(None, labels))) >= 1 + (last > 10)
