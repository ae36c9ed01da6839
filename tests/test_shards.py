"""Shards: together they are the whole run, whoever computes which, and merged they equal it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.cases.case import CRITERIA
from kn_bench.cases.sampling import slug
from kn_bench.results import log
from kn_bench.results.files import StoreError
from kn_bench.results.loading import load_runs
from kn_bench.results.manifest import read_manifest, write_manifest
from kn_bench.results.merging import merge
from kn_bench.results.store import RunStore, find_run, find_runs, runs
from kn_bench.testing.node_ids import NodeId, units
from kn_bench.testing.shards import Shard, in_shard, parse_shard
from tests.conftest import PLUGINS, comparable
from tests.made_up import write_run
from tests.test_store import FullDisk

WORKFLOW = Path(__file__).resolve().parents[1] / "docs/examples/shards.yml"
SUITE = ("--pyargs", "kn_bench.suites.test_synonym")
NODE_IDS = st.lists(
    st.builds(
        NodeId,
        st.sampled_from(["reliability", "locality"]),
        st.sampled_from(["rome", "none", "memit"]),
        st.sampled_from(["gpt", "bert"]),
        st.integers(0, 30).map(str),
        st.just(""),
    ),
    unique=True,
)


@given(node_ids=NODE_IDS, count=st.integers(1, 9), per_unit=st.integers(1, 5))
def test_every_test_is_in_exactly_one_shard(node_ids, count, per_unit):
    shards = [
        in_shard(node_ids, Shard(index, count), labels_per_unit=per_unit)
        for index in range(1, count + 1)
    ]
    assert all(sum(kept) == 1 for kept in zip(*shards, strict=True))


@given(node_ids=NODE_IDS, count=st.integers(1, 9))
def test_a_units_tests_stay_together_and_shards_are_of_one_size(node_ids, count):
    units_of = []
    for index in range(1, count + 1):
        kept = in_shard(node_ids, Shard(index, count), labels_per_unit=1)
        mine = [node_id for node_id, is_mine in zip(node_ids, kept, strict=True) if is_mine]
        units_of.append({node_id[1:4] for node_id in mine})
    assert sum(map(len, units_of)) == len(set().union(*units_of))
    assert max(map(len, units_of)) - min(map(len, units_of)) <= 1


@given(node_ids=NODE_IDS, count=st.integers(1, 5), per_unit=st.integers(1, 5), data=st.data())
def test_a_shard_does_not_depend_on_the_order_of_tests(node_ids, count, per_unit, data):
    collected = sorted(node_ids, key=lambda node_id: (node_id.criterion, int(node_id.label)))
    labels = list(map(str, range(31)))
    shuffled = data.draw(st.permutations(collected))

    def mine(order):
        kept = in_shard(order, Shard(1, count), labels_per_unit=per_unit, labels=labels)
        return {node_id for node_id, is_mine in zip(order, kept, strict=True) if is_mine}

    assert mine(shuffled) == mine(collected)
    # units are those of the order of collection: shards that were measured before stay valid
    unit_of = units(collected, labels_per_unit=per_unit)
    here = mine(collected)
    whole = {unit: {n in here for n, of in zip(collected, unit_of, strict=True) if of == unit}
             for unit in unit_of}  # fmt: skip
    assert all(len(sides) == 1 for sides in whole.values())


def test_foreign_tests_are_in_every_shard():
    assert in_shard([None], Shard(2, 3), labels_per_unit=1) == [True]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/4/2", "-1/4"])
def test_what_is_not_a_shard_is_told(text):
    message = f"--shard {text!r}: expected INDEX/COUNT with an index from 1 to the count"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_shard(text)


def test_shards_merge_into_the_run(bench):
    """In any order, one of them twice, the last by two workers."""
    bench.run("-p", "no:xdist", "--limit", "5", "--run", "whole")
    alone = ("-p", "no:xdist")
    shards = {"c": ("3/3", "-n", "2"), "a": ("1/3", *alone), "b": ("2/3", *alone),
              "a2": ("1/3", "-n", "1")}  # fmt: skip
    for run, (shard, *workers) in shards.items():
        result = bench.run(*workers, "--limit", "5", "--run", run, "--shard", shard)
        assert result.ret == 0, result.stdout.str()
    runs = bench.path / "reports/runs"
    folder = merge([runs / run for run in ("c", "a", "b", "a2")], bench.path / "reports", "all")
    assert comparable(without_times(log.rows(folder / log.LOG))) == comparable(
        without_times(log.rows(runs / "whole" / log.LOG))
    )
    merged, whole = read_manifest(folder), read_manifest(runs / "whole")
    assert merged.options == whole.options
    assert merged.finished

    with pytest.raises(StoreError, match=r"shards are missing: 2/3; measure them"):
        merge([runs / "a", runs / "c"], bench.path / "reports", "some")
    with pytest.raises(StoreError, match="whole is a whole run"):
        merge([runs / "whole", runs / "a"], bench.path / "reports", "some")
    other = replace(read_manifest(runs / "b"), seed=7)
    write_manifest(runs / "b", other)
    with pytest.raises(StoreError, match=r"b cannot be merged with a, .* seed: 0 then, 7 now"):
        merge([runs / run for run in "abc"], bench.path / "reports", "some")
    write_manifest(runs / "b", replace(other, seed=0, finished=""))
    with pytest.raises(
        StoreError, match=r"b, shard 2/3: expected a finished run; go on with it by"
    ):
        merge([runs / run for run in "abc"], bench.path / "reports", "some")


each_way = pytest.mark.parametrize(
    "workers",
    [("-p", "no:xdist"), pytest.param(("-n", "2"), marks=pytest.mark.slow)],
    ids=["alone", "workers"],
)
ORDERS = {
    "at random": """
import os, random
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    random.Random(os.environ["ORDER"]).shuffle(items)
""",
    "afterwards": """
import os, random
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    yield
    random.Random(os.environ["ORDER"]).shuffle(items)
""",
}


@pytest.mark.parametrize("order", ["at random", pytest.param("afterwards", marks=pytest.mark.slow)])
def test_shards_measured_in_other_orders_merge_into_the_run(bench, order):
    """As pytest-randomly has it, and --ff; one of them is gone on with in yet another order."""
    bench.pytester.makepyfile(other_order=ORDERS[order])
    # of several chunks, so that the cut could depend on the order
    asked = ("-p", "other_order", "--limit", "15", "-k", "toy_gpt and toy_b")
    bench.run("-p", "no:xdist", *asked, "--run", "whole", ORDER="0")
    a = bench.run("-n", "2", *asked, "--run", "a", "--shard", "1/2", ORDER="1")
    b = bench.run("-p", "no:xdist", *asked, "--run", "b", "--shard", "2/2", ORDER="2",
                  TOY_RAISES="x")  # fmt: skip
    c = bench.run("-p", "no:xdist", *asked, "--resume", "b", "--shard", "2/2", ORDER="3")
    assert (a.ret, b.ret, c.ret) == (0, 1, 0), b.stdout.str()
    runs = bench.path / "reports/runs"
    folder = merge([runs / "a", runs / "b"], bench.path / "reports", "all")
    assert comparable(without_times(log.rows(folder / log.LOG))) == comparable(
        without_times(log.rows(runs / "whole" / log.LOG))
    )


TAKEN_AWAY = """
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    yield
    del items[3:]
"""
NARROWED = {
    "-k": ("-k", "synonym"),
    "a suite": SUITE,
    "after the cut": ("-p", "taken_away"),
}


@pytest.mark.parametrize("words", NARROWED.values(), ids=NARROWED)
def test_shards_cut_from_different_tests_are_not_merged(bench, words):
    bench.pytester.makepyfile(taken_away=TAKEN_AWAY)
    asked = ("-p", "no:xdist", "--limit", "2")
    runs, reports = bench.path / "reports/runs", bench.path / "reports"

    def measure(run, shard, *narrowed):
        suites = narrowed != SUITE
        result = bench.run(*asked, "--run", run, "--shard", shard, *narrowed, suites=suites)
        assert result.ret == 0, result.stdout.str()

    measure("a", "1/2")
    measure("b", "2/2", *words)
    with pytest.raises(StoreError, match=r"b cannot be merged with a, for they were cut from diff"):
        merge([runs / "a", runs / "b"], reports, "all")
    if "taken_away" in words:  # each lacks others then
        return
    measure("c", "1/2", *words)
    assert read_manifest(merge([runs / "b", runs / "c"], reports, "narrow")).selection == ""


@each_way
def test_a_shard_is_not_gone_on_with_by_another_selection(bench, workers):
    asked = (*workers, "--limit", "2", "--shard", "1/2")
    assert bench.run(*asked, "--run", "a").ret == 0
    other = bench.run(*asked, "--resume", "a", "-k", "synonym")
    assert other.ret == pytest.ExitCode.USAGE_ERROR
    other.stderr.fnmatch_lines(["ERROR: --resume a: expected the tests that the shard was cut*"])
    assert bench.run(*asked, "--resume", "a").ret == 0


@each_way
def test_a_shard_without_a_unit_is_a_finished_run(bench, workers):
    """There are more shards than units."""
    asked = (*workers, "--limit", "2", "--method", "toy-a", "--model", "toy-gpt")
    runs = bench.path / "reports/runs"
    for run, options in (("whole", ()), ("a", ("--shard", "1/2")), ("b", ("--shard", "2/2"))):
        result = bench.run(*asked, "--run", run, *options, TOY_BOARD="1")
        assert result.ret == 0, result.stdout.str()
    counts = [read_manifest(runs / run).tests or 0 for run in ("whole", "a", "b")]
    assert sorted(counts[1:]) == [0, counts[0]]
    again = bench.run(*asked, "--resume", "ab"[counts.index(0) - 1], "--shard",
                      f"{counts.index(0)}/2", TOY_BOARD="1")  # fmt: skip
    assert again.ret == 0, again.stdout.str()
    folder = merge([runs / "a", runs / "b"], bench.path / "reports", "all")
    assert read_manifest(folder).tests == counts[0]
    assert comparable(without_times(log.rows(folder / log.LOG))) == comparable(
        without_times(log.rows(runs / "whole" / log.LOG))
    )


def _two_shards(reports: Path) -> list[Path]:
    return [
        write_run(
            reports,
            {method: {c: [1.0, 0.5] for c in CRITERIA}},
            run=run,
            options={"dtype": "float32", "shard": shard},
        )
        for run, shard, method in (("a", "1/2", "rome"), ("b", "2/2", "no-edit"))
    ]


def _first(of: bytes, becomes: bytes):
    return lambda content: content.replace(of, becomes, 1)


def _without_last_line(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


CUT = r"shard 1/2 \(a\): expected the 12 tests it ended with, and its log has {}; continue .* a$"
BY_LINE = r"a/measurements\.jsonl, line 1 is n"
SPOILT = {
    "no last newline": ("measurements.jsonl", lambda c: c[:-1], CUT.format(11)),
    "no last verdict": ("measurements.jsonl", _without_last_line, CUT.format(11)),
    "nothing": ("measurements.jsonl", lambda c: b"", CUT.format(0)),
    "half": ("measurements.jsonl", lambda c: c[: len(c) // 2], CUT.format(r"[5-7]")),
    "more": (
        "measurements.jsonl",
        lambda c: c + c,
        r"shard 1/2 \(a\): .* 12 tests .* has 24; restore it or measure it again",
    ),
    "an open test": (
        "measurements.jsonl",
        lambda c: c + c.splitlines(keepends=True)[0],
        r"a/measurements\.jsonl ends within a test, after 12 whole ones: .* --resume a$",
    ),
    "a score of 5": ("measurements.jsonl", _first(b'"score":1.0', b'"score":5.0'), "holds 5.0"),
    "text for a truth value": (
        "measurements.jsonl", _first(b'"tf_all":false', b'"tf_all":"x"'), BY_LINE
    ),
    "no UTF-8": ("measurements.jsonl", _first(b"Ottawa", b"Ott\xffwa"), BY_LINE),
    "cases without fields": ("cases.jsonl", lambda c: b"{}\n" + c, r"a/cases\.jsonl, line 1"),
    "cases that are no UTF-8": (
        "cases.jsonl", _first(b"Ottawa", b"Ott\xffwa"), r"a/cases\.jsonl, line 1"
    ),
    "exclusions of another kind": ("exclusions.jsonl", lambda c: b"[]\n", r"exclusions\.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "spoil", "sentence"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_shard_is_refused_and_leaves_no_run(tmp_path, file, spoil, sentence):
    folders = _two_shards(tmp_path)
    spoilt = folders[0] / file
    good = spoilt.read_bytes() if spoilt.exists() else b""
    spoilt.write_bytes(spoil(good))
    for order in (folders, folders[::-1]):
        with pytest.raises(StoreError, match=sentence):
            merge(order, tmp_path, "all")
        assert not (tmp_path / "runs/all").exists()
    spoilt.write_bytes(good)
    merged = read_manifest(merge(folders, tmp_path, "all"))
    assert (merged.tests, bool(merged.finished)) == (24, True)
    assert not load_runs([tmp_path / "runs/all"]).cut


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda c: c[:-1], "ends within a test, after 11 whole ones"),
        (lambda c: b"", r"shard 1/2 \(a\): expected the tests it ended with, and its log has 0;"),
        (lambda c: c, ""),
    ],
    ids=["no last newline", "nothing", "whole"],
)
def test_shards_from_before_tests_were_counted(tmp_path, spoil, sentence):
    folders = _two_shards(tmp_path)
    for folder in folders:
        write_manifest(folder, replace(read_manifest(folder), tests=None))
    (folders[0] / log.LOG).write_bytes(spoil((folders[0] / log.LOG).read_bytes()))
    if sentence:
        with pytest.raises(StoreError, match=sentence):
            merge(folders, tmp_path, "all")
    else:
        assert read_manifest(merge(folders, tmp_path, "all")).tests == 24


HUB = "Salesforce/wikitext:wikitext-2-raw-v1, 900 tokens, SHA-256 0123456789ab"
SELF = "self, 900 tokens, SHA-256 0123456789ab"
TEXTS = {
    "the hub's and its own": (HUB, SELF, False),
    "two texts of one name": (HUB, HUB.replace("0123", "4567"), False),
    "one text": (HUB, HUB, True),
    "more of one text": (HUB, HUB.replace("900", "1000"), True),
    "drawn on another kind of machine": (SELF, SELF.replace("0123", "4567"), True),
    "a note of a method's own": ("mine", "yours", True),
}


def _noting(folder: Path, corpus: str) -> None:
    """Note the text of C with the edits of a run."""
    path = folder / log.LOG
    content = path.read_text().replace('"loss":0.1', f'"loss":0.1,"corpus":"{corpus}"')
    assert corpus in content
    path.write_text(content)


@pytest.mark.parametrize(("first", "second", "alike"), TEXTS.values(), ids=TEXTS)
def test_shards_with_c_over_two_texts_are_refused(tmp_path, first, second, alike):
    """Where no text is named, each machine takes the hub's or lets the model write one."""
    folders = _two_shards(tmp_path)
    _noting(folders[0], first)
    _noting(folders[1], second)
    merge(folders, tmp_path, "of-two-methods")
    path = folders[1] / log.LOG
    path.write_text(path.read_text().replace('"no-edit"', '"rome"').replace("P36/c", "P36/d"))
    for order in (folders, folders[::-1]):
        if alike:
            merge(order, tmp_path, f"all-{order[0].name}")
            continue
        last = order[1].name
        sentence = rf"^{last} cannot be merged.* rome on tiny-gpt2: expected C over .* --corpus$"
        with pytest.raises(StoreError, match=sentence):
            merge(order, tmp_path, "all")
        assert not (tmp_path / "runs/all").exists()


@pytest.mark.parametrize(("first", "second", "alike"), TEXTS.values(), ids=TEXTS)
def test_a_run_goes_on_with_c_over_the_same_text(tmp_path, first, second, alike):
    _goes_on(
        tmp_path, first, second, "" if alike else r"expected C over .*, as for the edits before"
    )


@pytest.mark.parametrize("alike", [True, False])
def test_a_run_goes_on_with_the_texts_that_a_method_without_c_reads(tmp_path, alike):
    first, second = (text.replace("tokens", "texts") for text in (HUB, HUB if alike else SELF))
    refusal = r"expected texts of Salesforce/.* and found self; "
    _goes_on(tmp_path, first, second, "" if alike else refusal)


def _goes_on(tmp_path: Path, first: str, second: str, refusal: str) -> None:
    """Append edits that note the text ``second`` to a run of edits that note ``first``."""
    rome, other = _two_shards(tmp_path)
    _noting(rome, first)
    _noting(other, second)
    more = (other / log.LOG).read_text().replace('"no-edit"', '"rome"').replace("P36/c", "P36/d")
    with RunStore.resume(tmp_path, "a", read_manifest(rome)) as store:
        if not refusal:
            store.append(more)
            return
        with pytest.raises(StoreError, match=refusal):
            store.append(more)
    assert log.closed_tests(rome / log.LOG) == 12


def test_a_merge_that_breaks_off_leaves_no_run(tmp_path, monkeypatch):
    folders = _two_shards(tmp_path)

    def full(store, text):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append", full)
        with pytest.raises(StoreError, match="the disk is full"):
            merge(folders, tmp_path, "all")
    assert not (tmp_path / "runs/all").exists()
    merge(folders, tmp_path, "all")
    with pytest.raises(StoreError, match="there is a run 'all'"):
        merge(folders, tmp_path, "all")
    assert read_manifest(tmp_path / "runs/all").tests == 24


KILLED = """
import os, signal, sys
from importlib import import_module
from pathlib import Path

place, number, name, reports, *shards = sys.argv[1:]
module, function = place.split(":")
owner = import_module(module)
*path, function = function.split(".")
for part in path:
    owner = getattr(owner, part)
whole, calls = getattr(owner, function), []

def killed(*given, **named):
    calls.append(function)
    if len(calls) == int(number):
        os.kill(os.getpid(), getattr(signal, name))
    return whole(*given, **named)

setattr(owner, function, killed)
from kn_bench.results.merging import merge
merge([Path(shard) for shard in shards], Path(reports), "all")
"""


@pytest.mark.parametrize(
    ("place", "number", "name"),
    [
        ("kn_bench.results.store:RunStore.append", 1, "SIGTERM"),
        ("kn_bench.results.store:RunStore.append", 2, "SIGKILL"),
        ("kn_bench.results.store:RunStore.append", 2, "SIGINT"),
        ("kn_bench.results.store:RunStore.finish", 1, "SIGKILL"),
        ("pathlib:Path.replace", 3, "SIGKILL"),  # the first manifest, the exclusions and the texts
        ("pathlib:Path.rmdir", 1, "SIGKILL"),
        ("pathlib:Path.replace", 6, "SIGKILL"),  # also the columns, and the manifest at the end
    ],
)
def test_a_merge_that_is_killed_leaves_no_run_and_is_done_again(tmp_path, place, number, name):
    folders = _two_shards(tmp_path)
    words = [place, str(number), name, str(tmp_path), *map(str, folders)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True)
    assert ended.returncode == -getattr(signal, name), ended.stderr
    assert runs(tmp_path) == folders
    for where in (tmp_path, tmp_path / "runs"):
        assert find_runs(tmp_path, [str(where)]) == folders
    with pytest.raises(StoreError, match="there is no run 'all'"):
        find_run(tmp_path, "all")
    folder = merge(folders, tmp_path, "all")
    merge(folders, tmp_path, "other")
    for file in (log.LOG, "cases.jsonl", "exclusions.jsonl"):
        assert (folder / file).read_bytes() == (tmp_path / "runs/other" / file).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (tmp_path / "runs/other").iterdir()
    )
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == [
        "a",
        "all",
        "b",
        "other",
    ]


def test_what_a_killed_merge_of_other_shards_left_is_not_taken_over(tmp_path):
    left = write_run(tmp_path / "runs/.all", {"rome": {c: [1.0] for c in CRITERIA}}, run="all")
    (left / "further.txt").write_text("left")
    folder = merge(_two_shards(tmp_path), tmp_path, "all")
    assert log.closed_tests(folder / log.LOG) == read_manifest(folder).tests == 24
    assert not (folder / "further.txt").exists()
    assert not (tmp_path / "runs/.all").exists()


def test_a_name_is_taken_while_shards_are_merged_into_it(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    folders, said = _two_shards(tmp_path), []
    whole = RunStore.append

    def meanwhile(store, text):
        for begin in (
            lambda: merge(folders, tmp_path, "all"),
            lambda: RunStore.create(tmp_path, replace(read_manifest(folders[0]), run="all")),
        ):
            with pytest.raises(StoreError, match="runs/all is being written by another process"):
                begin()
            said.append(begin)
        whole(store, text)

    monkeypatch.setattr(RunStore, "append", meanwhile)
    merge(folders, tmp_path, "all")
    assert len(said) == 4
    assert read_manifest(tmp_path / "runs/all").tests == 24


def test_a_full_disk_is_no_reason_to_resume_a_merge(tmp_path, monkeypatch):
    create = RunStore.create

    def on_a_full_disk(reports, manifest):
        store = create(reports, manifest)
        store._log = FullDisk(store._log, room=50)  # type: ignore[assignment]
        return store

    folders = _two_shards(tmp_path)
    monkeypatch.setattr(RunStore, "create", on_a_full_disk)
    with pytest.raises(StoreError, match=r"No space left on device\): make room and merge again$"):
        merge(folders, tmp_path, "all")
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["a", "b"]


def test_a_shard_that_was_killed_is_resumed_and_merged(bench):
    asked = ("-p", "no:xdist", "--limit", "2")
    bench.run(*asked, "--run", "whole")
    bench.run(*asked, "--run", "a", "--shard", "1/2")
    here = {row.key for row in bench.verdicts("a")}
    last = [row for row in bench.verdicts("whole") if row.key not in here][-1]
    at = f"test_{last.criterion}[{slug(last.method)}-{slug(last.model)}-{last.case}]"
    killed = bench.run(*asked, "--run", "b", "--shard", "2/2", TOY_KILL_AT=at)
    assert killed.ret == -signal.SIGKILL
    runs = bench.path / "reports/runs"
    left = bench.verdicts("b")
    assert left
    with pytest.raises(
        StoreError, match=r"b, shard 2/2: expected a finished run; go on with it by"
    ):
        merge([runs / "a", runs / "b"], bench.path / "reports", "all")

    other = bench.run(*asked, "--resume", "b", "--shard", "1/2")
    assert other.ret == pytest.ExitCode.USAGE_ERROR
    other.stderr.fnmatch_lines(["*run 'b' cannot be continued*shard 2/2 then, 1/2 now*"])
    assert bench.run(*asked, "--resume", "b", "--shard", "2/2").ret == 0
    assert len(bench.verdicts("b")) > len(left)
    folder = merge([runs / "a", runs / "b"], bench.path / "reports", "all")
    assert comparable(without_times(log.rows(folder / log.LOG))) == comparable(
        without_times(log.rows(runs / "whole" / log.LOG))
    )


def test_the_example_workflow_measures_each_shard_once():
    """As many jobs as the command line says there are shards, and a last one that needs them."""
    flow = yaml.safe_load(WORKFLOW.read_text())
    job = flow["jobs"]["measure"]
    shards = job["strategy"]["matrix"]["shard"]
    (count,) = re.findall(r"--shard \$\{\{ matrix\.shard \}\}/(\d+)", _command(job, "--shard"))
    assert shards == list(range(1, int(count) + 1))
    assert flow["jobs"]["merge"]["needs"] == "measure"
    uploaded = job["steps"][-1]["with"]
    assert uploaded["path"] == f"reports/runs/{uploaded['name']}"
    assert f"--run {uploaded['name']}\n" in _command(job, "--shard")


@pytest.mark.slow
def test_the_commands_of_the_example_workflow_make_one_run(bench):
    """Every command is run as it stands, artifacts are copied as the actions copy them."""
    flow = yaml.safe_load(WORKFLOW.read_text())
    job, joining = flow["jobs"]["measure"], flow["jobs"]["merge"]
    bench.run("-n", "2", "--limit", "5", "--run", "at-once")
    for shard in job["strategy"]["matrix"]["shard"]:
        command = _command(job, "--shard").replace("${{ matrix.shard }}", str(shard))
        _run_step(bench, command)
        artifact = bench.path / "shards" / f"shard-{shard}"
        shutil.copytree(bench.path / "reports/runs" / artifact.name, artifact)
    _run_step(bench, _command(joining, "kn-bench merge"))
    assert comparable(without_times(bench.rows("whole"))) == comparable(
        without_times(bench.rows("at-once"))
    )
    assert "toy-a" in (bench.path / "page.md").read_text()


def _command(job, word):
    (command,) = (step["run"] for step in job["steps"] if word in step.get("run", ""))
    return command


def _run_step(bench, command):
    """Run a step of a workflow as a runner does, on the toy benchmark."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTEST_ADDOPTS": " ".join(PLUGINS),
        "OPTIONS": "--limit 5",
        "GITHUB_STEP_SUMMARY": "page.md",
    }
    result = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=bench.path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def without_times(rows):
    for row in rows:
        record = getattr(row, "record", None)
        yield replace(row, record=replace(record, seconds=0.0)) if record else row
