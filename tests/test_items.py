"""Light tests: what pytest would have made, and nothing of it in memory until they run."""

from __future__ import annotations

import json

import pytest

DUMP = """
import json
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    light = [not vars(item) for item in session.items]
    rows = [
        {
            "nodeid": item.nodeid,
            "structured": repr(item.id) if hasattr(item, "id") else "",
            "name": item.name,
            "text": repr(item),
            "originalname": item.originalname,
            "id": item.callspec.id,
            "parameter": str(item.callspec.params["verdict"].node_id),
            "keywords": sorted(map(str, item.keywords)),
            "marks": [mark.name for mark in item.iter_markers()],
            "words": sorted(item.listextrakeywords()),
            "fixtures": list(item.fixturenames),
            "function": item.function.__name__,
            "location": list(item.location),
            "parents": [node.name for node in item.listchain()],
        }
        for item in session.items
    ]
    Path("dump.json").write_text(json.dumps({"light": light, "rows": rows}))


"""
LEFT = """
import json
from pathlib import Path


def pytest_sessionfinish(session):
    whole = [item.nodeid for item in session.items if vars(item) or item._whole]
    Path("left.json").write_text(json.dumps({"tests": len(session.items), "whole": whole}))
"""
WHOLE = """
import kn_bench.testing.session
kn_bench.testing.session.can_stand_for_all = lambda tests: False
"""
MARKED = """
def pytest_itemcollected(item):
    if "P36" in item.name:
        item.add_marker("chosen")
        item.extra_keyword_matches.add("word")
"""


@pytest.fixture
def dumped(bench):
    """Run the toy benchmark with a plug-in that writes down what its tests are like."""
    bench.pytester.makepyfile(dump=DUMP, whole=WHOLE, marked=MARKED)

    def run(*args):
        result = bench.run("-p", "no:xdist", "-p", "dump", "--limit", "2", *args)
        assert result.ret == 0, result.stdout.str()
        return json.loads((bench.path / "dump.json").read_text())

    return run


@pytest.mark.parametrize(
    "asked", [(), ("-p", "marked", "-k", "P36 and not symmetry", "-m", "facts")]
)
def test_a_light_test_is_what_pytest_would_have_made(dumped, asked):
    light = dumped("--collect-only", *asked)
    whole = dumped("--collect-only", "-p", "whole", *asked)
    assert len(light["rows"]) > 30
    assert light["rows"] == whole["rows"]
    assert not any(whole["light"])
    assert all(light["light"]) or asked


@pytest.mark.parametrize(
    "asked",
    [
        (),
        ("--collect-only", "-qqq"),
        ("--collect-only", "-p", "cacheprovider", "--lf", "--nf"),
    ],
    ids=["run", "counted", "chosen"],
)
def test_no_test_is_whole_unless_it_is_running(bench, asked):
    bench.pytester.makepyfile(left=LEFT)
    result = bench.run("-p", "no:xdist", "-p", "left", "--limit", "2", *asked)
    assert result.ret == 0, result.stdout.str()
    left = json.loads((bench.path / "left.json").read_text())
    assert left == {"tests": 144, "whole": []}
