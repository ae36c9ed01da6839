"""A plug-in, given by ``-p``, that ends the session once its command line has been checked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kn_bench.results.manifest import Manifest, differences, read_manifest
from kn_bench.results.merging import without_shard
from kn_bench.testing.launching import BEGUN, SELECTED
from kn_bench.testing.plugin import controller_of


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the session: its controller has refused by now what cannot be measured.

    Raises:
        pytest.UsageError: for shards that were begun with other arguments.
    """
    begun = [Path(folder) for folder in json.loads(os.environ.get(BEGUN, "[]"))]
    _refuse_other_tests(begun, _selected(session.config))
    if begun:
        now = controller_of(session.config).manifest()
        for folder in begun:
            _refuse_unlike(folder, now)
    pytest.exit("the command line can be run", returncode=0)


def _selected(config: pytest.Config) -> str:
    """Return what of the command line chooses among tests, which no manifest has."""
    names = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "--grain")
    return json.dumps([config.args, *(config.getoption(name, None) for name in names)])


def _refuse_other_tests(begun: list[Path], selected: str) -> None:
    """Write down which tests are asked for, or refuse others than those of shards ``begun``."""
    file = os.environ.get(SELECTED)
    if not file:
        return
    if not begun:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(selected, "utf-8")
    elif Path(file).is_file() and Path(file).read_text("utf-8") != selected:
        raise pytest.UsageError(_sentence(begun[0], "the suites, --grain, -k, -m or --deselect"))


def _refuse_unlike(folder: Path, now: Manifest) -> None:
    clauses = differences(without_shard(read_manifest(folder)), without_shard(now))
    if clauses:
        raise pytest.UsageError(_sentence(folder, "; ".join(clauses)))


def _sentence(folder: Path, what: str) -> str:
    return (
        f"{folder.name} was begun by an earlier launch with something else ({what}), and could "
        "not be merged with what is launched now; launch the same again, or choose another --run"
    )
