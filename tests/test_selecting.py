"""Which cases a run asks: known ones are drawn until the limit is full; defaults by model."""

import re
import shutil
from dataclasses import replace

import pytest

from kn_bench.cases import sources
from kn_bench.cases.sources import blimp, defaults, embedded, pararel
from kn_bench.cases.sources.defaults import default_specs
from kn_bench.measure.engine import Engine
from kn_bench.measure.known import known_ids, shown_by
from kn_bench.model import hub
from kn_bench.model.embedded import facts as taught
from kn_bench.model.loading import load_model
from kn_bench.testing.options import EMBEDDED_LIMIT, Options
from kn_bench.testing.plan import make_plan
from kn_bench.testing.selecting import BLOCKS, select_known, settled
from kn_bench.testing.worker_config import WorkerConfig, pack, unpack
from tests.conftest import outcomes

RELATIONS = ("P36", "determiner_noun_agreement_1")


def every_third(cases):
    """An unedited model that knows the third of all cases, by their ids alone."""
    return {case.id for case in cases if sum(case.id.encode()) % 3 == 0}


def test_known_cases_are_drawn_until_each_relation_has_as_many_as_the_limit():
    asked: list[str] = []

    def known(cases):
        asked.extend(case.id for case in cases)
        return every_third(cases)

    chosen, counts = select_known(Options(relations=RELATIONS, limit=6), known)
    assert [sum(case.relation == name for case in chosen) for name in RELATIONS] == [6, 6]
    assert every_third(chosen) == {case.id for case in chosen}
    assert len(asked) == len(set(asked)) == sum(counts.values())
    assert counts["fact"] >= 24  # the first pool of each relation, at least


def test_a_larger_limit_of_known_cases_contains_a_smaller_one():
    few, many = (
        {c.id for c in select_known(Options(relations=RELATIONS, limit=n), every_third)[0]}
        for n in (2, 7)
    )
    assert few < many


def shows_by_id(cases):
    """How many criteria a case can show, by its id alone."""
    return {case.id: len(case.id) % 3 for case in cases}


def test_of_more_known_cases_than_the_limit_those_come_first_that_show_more():
    options = Options(relations=("P36",), limit=2)
    first, _ = select_known(options, every_third, shows_by_id)
    more, _ = select_known(replace(options, limit=5), every_third, shows_by_id)
    pool = sources.load("embedded", limit=BLOCKS[0], relations=["P36"]).cases
    best = sorted(shows_by_id([c for c in pool if c.id in every_third(pool)]).values())
    assert sorted(shows_by_id(first).values()) == best[-2:]
    assert sorted(shows_by_id(more).values()) == best[-5:]
    assert {case.id for case in first} < {case.id for case in more}


def test_cases_are_compared_only_where_there_is_a_choice():
    two = {case.id for case in sources.load("embedded", limit=2, relations=["P36"]).cases}
    options = Options(relations=("P36",), limit=2)
    chosen, _ = select_known(options, lambda cases: two & {c.id for c in cases}, _never)
    assert {case.id for case in chosen} == two


def _never(cases):
    raise AssertionError(cases)


def test_a_relation_with_too_few_known_cases_gives_those_it_has():
    everything = sources.load("embedded", relations=["P30"]).cases
    two = {case.id for case in everything[:2]}
    options = Options(relations=("P30",), limit=5)
    chosen, counts = select_known(options, lambda cases: two & {case.id for case in cases})
    assert ({case.id for case in chosen}, counts["fact"]) == (two, len(everything))


def test_a_worker_plans_the_cases_that_the_controller_found_known():
    chosen, _ = select_known(Options(relations=RELATIONS, limit=3), every_third)
    config = WorkerConfig(
        "cpu", {}, None, frozenset(), 1, cases=("embedded",), limit=3,
        known=tuple(case.id for case in chosen),
    )  # fmt: skip
    received = unpack(pack(config))
    assert (received.cases, received.limit, received.known) == (("embedded",), 3, config.known)
    plan = make_plan(received.applied(Options(cases=(), relations=RELATIONS, limit=9)))
    planned = {case.id for cases in plan.labels.values() for case in cases}
    assert planned == set(config.known)


@pytest.mark.slow
def test_what_is_known_is_what_the_suite_counts_as_known(bench):
    """One run of a real model: every case that --known chose is known in the verdicts, too."""
    bench.pytester.makeconftest("")  # no toys
    result = bench.run(
        "--model=tiny-gpt2", "--method=none", "--known", "--limit=2", "--relation=P36",
        "--paradigm=determiner_noun_agreement_1", "-k", "reliability",
    )  # fmt: skip
    assert outcomes(result) == {"deselected": 20, "missed": 4}
    header = re.search(r"kn_bench: known to tiny-gpt2: (.*)", result.stdout.str())
    assert header
    assert header[1] == "2 of 64 facts asked, 2 of 64 pairs asked"
    # each test's verdict, and that of its control beside it
    assert [row.verdict.known_before for row in bench.verdicts()] == [True] * 8


def test_a_model_of_ones_own_is_asked_real_data_where_it_can_be_had(monkeypatch):
    for module in (pararel, blimp):
        monkeypatch.setitem(sources.SOURCES, module.SOURCE, _source(module, in_cache=True))
    assert default_specs(["tiny-gpt2", "tiny-bert"]) == (("embedded",), "")
    assert default_specs(["tiny-gpt2", "gpt2"]) == (("pararel", "blimp"), "")
    options, lines = settled(Options(models=("gpt2",), cases=()))
    assert (options.cases, options.limit, lines) == (("pararel", "blimp"), EMBEDDED_LIMIT, [])


def test_without_cache_or_hub_it_is_asked_what_is_real_and_told_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in (pararel, blimp):
        monkeypatch.setitem(sources.SOURCES, module.SOURCE, _source(module, in_cache=False))
    specs, line = default_specs(["gpt2"])
    assert specs == ("real-world",)
    assert "real-world part of the embedded facts" in line
    assert "give --cases pararel=FOLDER --cases blimp=FOLDER" in line
    invented = {row["name"] for row in taught.people()} & taught.invented()
    real = sources.load("real-world", relations=["P103", *RELATIONS]).cases
    assert invented
    assert not invented & {case.request.subject for case in real}
    everything = embedded.load(only=["P103", *RELATIONS]).cases
    assert len(real) == len([case for case in everything if case.request.subject not in invented])


def test_one_of_the_two_alone_is_used_and_the_other_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sources.SOURCES, "pararel", _source(pararel, in_cache=False))
    monkeypatch.setitem(sources.SOURCES, "blimp", _source(blimp, in_cache=True))
    specs, line = default_specs(["gpt2"])
    assert specs == ("blimp",)
    assert line.endswith("neither cache nor hub: give --cases pararel=FOLDER")


@pytest.mark.parametrize(("answers", "had", "fetches"), [
    (True, defaults.REAL, [1, 1]),
    (False, ("pararel",), [1]),  # which does not come from the hub
])  # fmt: skip
def test_what_is_missing_is_fetched_from_where_it_can_be_had(monkeypatch, answers, had, fetches):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "is_reachable", lambda: answers)
    fetched = []
    for module in (pararel, blimp):
        source = _source(module, in_cache=False, load=lambda limit: fetched.append(limit))
        monkeypatch.setitem(sources.SOURCES, module.SOURCE, source)
    specs, line = default_specs(["gpt2"])
    assert (specs, fetched) == (had, fetches)
    assert line.endswith("" if answers else "give --cases blimp=FOLDER")


def _source(module, *, in_cache, load=None):
    return sources.Source(load or module.load, module.relation_ids, in_cache=lambda: in_cache)


@pytest.mark.parametrize("models", [(), ("tiny-gpt2",)])
def test_embedded_models_keep_the_embedded_cases(models):
    options = Options(models=models)
    assert settled(options) == (options, [])


@pytest.mark.slow
def test_a_folder_of_ones_own_runs_as_the_readme_says(bench, tmp_path):
    """Cases, C and known facts by default, on a model that no table knows; offline."""
    from kn_bench.model import embedded as packaged

    bench.pytester.makeconftest("")  # no toys
    own = tmp_path / "own"
    shutil.copytree(packaged.folder("tiny-gpt2"), own)
    result = bench.run(
        f"--model={own}", "--method=rome", "--known", "--limit=1", "--relation=P36",
        "--paradigm=determiner_noun_agreement_1",
        HF_HUB_OFFLINE="1", KN_BENCH_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    text = result.stdout.str()
    assert "kn_bench: cases: the real-world part of the embedded facts and pairs" in text
    assert "1 of 64 facts asked, 1 of 64 pairs asked" in text
    assert "kn_bench: 1 process with " in text
    edits = [row for row in bench.rows() if hasattr(row, "record")]
    assert edits
    assert all(row.record.notes["corpus"].startswith("self, ") for row in edits)


def test_what_a_case_can_show_is_asked_though_its_prompt_was_asked_before():
    """One engine asks a part of a case's probes, then others: neither stands for the other."""
    cases = sources.load("embedded", limit=6, relations=["P36"]).cases
    engine, fresh = (Engine(load_model("tiny-gpt2")) for _ in range(2))
    known = known_ids(engine, cases)
    assert known
    counts = shown_by(engine, cases)
    assert counts == shown_by(fresh, cases)
    assert all(counts[id] for id in known)
