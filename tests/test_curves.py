"""The figures of sequences: what can be read off them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from kn_bench.results.curves import PANELS, _panel, _points


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


@pytest.mark.parametrize("column", [column for column, *_ in PANELS])
@pytest.mark.parametrize("sequences", [1, 4])
def test_the_band_of_sequences_that_agree_is_as_wide_as_they_are_few(column, sequences):
    """Shares have bounds that a further sequence may reach; a perplexity has none."""
    curves = pd.DataFrame({"checkpoint_edits": 10, column: [1.0] * sequences})
    ((edits, mean, low, high),) = _points(curves, column).T
    assert (edits, mean) == (10, 1.0)
    if sequences == 1:
        assert np.isnan([low, high]).all()
        return
    share = column in ("checkpoint_retained", "checkpoint_known", "checkpoint_blimp")
    end = stats.beta.ppf(0.025, sequences, 1) if share else 1.0
    assert (low, high) == pytest.approx((end, 1.0))
