"""Every choice that is offered can be chosen: no relation, model or method is out of reach."""

import os
from pathlib import Path

import pytest

from kn_bench.cases import sources
from kn_bench.cases.sources import embedded as embedded_cases
from kn_bench.editing import builtin
from kn_bench.model import embedded
from kn_bench.model.loading import load_model

SHARED = os.environ.get("KN_BENCH_SHARED")
needs_data = pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder of data files")


@pytest.mark.parametrize("name", sources.SOURCES["embedded"].relation_ids(None))
def test_every_embedded_relation_and_paradigm_gives_two_cases(name):
    assert len(embedded_cases.load(only=[name], limit=2).cases) == 2


@needs_data
@pytest.mark.parametrize("source", [pytest.param("blimp", marks=pytest.mark.slow), "pararel"])
def test_every_relation_of_the_real_files_is_reached_by_its_name(source):
    spec = f"{source}={Path(SHARED or '') / 'data' / source}"
    reached = {
        name: len(selection.cases) + len(selection.exclusions)
        for name in sources.SOURCES[source].relation_ids(sources.parse(spec)[1])
        if (selection := sources.load(spec, limit=2, relations=[name]))
    }
    assert reached
    assert all(reached.values())


@pytest.mark.parametrize("name", embedded.NAMES)
def test_every_embedded_model_loads(name):
    assert load_model(name).name == name


def test_the_documented_methods_are_those_that_there_are():
    documented = (Path(__file__).parent.parent / "docs/methods.md").read_text()
    assert [name for name in builtin.names() if f"`{name}" not in documented] == []
    assert builtin.on_request() < set(builtin.names())
