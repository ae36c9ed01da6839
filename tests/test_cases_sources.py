"""Sources of cases by name, and the sentences for names that are none."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kn_bench.cases import sources
from kn_bench.cases.sources import forms

SHARED = os.environ.get("KN_BENCH_SHARED")
ALLOWED = (
    "embedded, real-world, blimp, pararel, blimp=FOLDER, pararel=FOLDER, mpararel=FOLDER, "
    "mquake=FILE, counterfact=FILE, ripple=FILE, knowedit=FILE, zsre=FILE, wikibigedit=FILE, "
    "qaedit=FILE, hallueditbench=FILE, jsonl=PATH, or a file of facts or minimal pairs"
)
ABSENT = f"expected a file or folder that exists; give {ALLOWED}"
FACT = {"subject": "Canada", "prompt": "The capital of {} is", "target_true": "Ottawa",
        "target_new": "Paris"}  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{**FACT, "relation": "R1"}, {**FACT, "relation": "R2"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_what_is_allowed_is_listed():
    assert sources.allowed() == ALLOWED


@pytest.mark.parametrize("form", ["{}", "jsonl={}"])
def test_a_path_is_your_own_facts(mine, form):
    selection = sources.load(form.format(mine))
    assert {case.id for case in selection.cases} == {"mine/R1/Canada", "mine/R2/Canada"}
    assert len(sources.load(form.format(mine.parent)).cases) == 2


def test_relations_are_kept(mine):
    assert [c.relation for c in sources.load(str(mine), relations=["R2"]).cases] == ["R2"]


def test_a_relation_of_another_source_is_passed_over(mine):
    assert not sources.load(str(mine), relations=["P36", "anaphor_number_agreement"]).cases
    assert len(sources.load(str(mine), relations=["P36", "R1"]).cases) == 1


@pytest.mark.parametrize(
    ("spec", "relation"),
    [("embedded", "P36"), ("real-world", "anaphor_number_agreement"), ("{mine}", "R1")],
)
def test_a_relation_named_twice_is_loaded_once(mine, spec, relation):
    spec = spec.format(mine=mine)
    once = sources.load(spec, relations=[relation], limit=3)
    assert once.cases
    assert sources.load(spec, relations=[relation, relation], limit=3) == once
    assert sources.load_all([spec, spec], relations=[relation] * 2, limit=3) == [*once.cases]


def test_sources_with_a_case_of_the_same_id_are_refused_together(mine):
    with pytest.raises(ValueError, match="two cases are called mine/R1/Canada: expected an id"):
        sources.load_all([str(mine), f"jsonl={mine}"])


def test_an_unknown_relation_is_told_those_known(mine):
    with pytest.raises(ValueError, match=r"^relation or paradigm 'P3': expected one of R1, R2, "):
        sources.load(str(mine), relations=["P3"])
    with pytest.raises(ValueError, match=r"expected one of P36, .*determiner_noun_agreement_1"):
        sources.load("embedded", relations=["capital"])


def test_a_limit_is_of_each_relation():
    selection = sources.load("embedded", limit=2, relations=["P36", "P103"])
    assert sorted(case.relation for case in selection.cases) == ["P103", "P103", "P36", "P36"]
    more = sources.load("embedded", limit=3, relations=["P36", "P103"])
    assert {c.id for c in selection.cases} < {c.id for c in more.cases}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bilmp", f"--cases 'bilmp': expected {ALLOWED}"),
        ("no/x.jsonl", f"--cases no/x.jsonl: {ABSENT}"),
        ("blimp=nowhere", f"--cases blimp=nowhere: {ABSENT}"),
        ("jsonl=", f"--cases jsonl=: {ABSENT}"),
        ("zsre=", f"--cases zsre=: {ABSENT}"),
        ("", f"--cases '': expected {ALLOWED}"),
        ("x" * 300, f"--cases '{'x' * 300}': expected {ALLOWED}"),
        (f"jsonl={'x' * 300}", f"--cases jsonl={'x' * 300}: {ABSENT}"),
        (f"a/{'x' * 300}.json", f"--cases a/{'x' * 300}.json: {ABSENT}"),
        ("~nobody_at_all/x.json", f"--cases ~nobody_at_all/x.json: {ABSENT}"),
        ("embedded=x", f"--cases 'embedded=x': expected {ALLOWED}"),
        *(
            (f"{name}={path}", f"--cases {name}={path}: expected no path, {name} has data of its "
             f"own; give --cases {name}")
            for name in ("embedded", "real-world") for path in ("{folder}", "{json}", "no/where")
        ),
        *(
            (f"bilmp={path}", f"--cases bilmp={path}: expected a source before '=', 'bilmp' is "
             f"none; give {ALLOWED}")
            for path in ("{folder}", "{json}", "no/where")
        ),
        ("no/a=b.jsonl", f"--cases no/a=b.jsonl: {ABSENT}"),
        *(
            (f"{name}={{folder}}", f"--cases {name}={{folder}}: expected a file, it is a folder; "
             f"give each of its files, --cases {name}=FILE")
            for name in forms.SOURCES
        ),
        ("zsre", "--cases zsre: expected a path, zsre has no data of its own; give --cases zsre="
         "FILE"),
        ("{json}", "facts.json: expected records, it holds none; give a fact or a minimal pair a "
         "record"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_told(tmp_path, spec, message):
    path = tmp_path / "facts.json"
    path.write_text("[]")
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence is compared
        sources.load(spec.format(json=path, folder=tmp_path))
    assert str(error.value) == message.format(json=path, folder=tmp_path)


@pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with the real files")
def test_a_folder_is_known_by_what_it_holds():
    data = Path(SHARED or ".") / "data"
    for name, relation in (("blimp", "anaphor_number_agreement"), ("pararel", "P36")):
        selection = sources.load(str(data / name), limit=1, relations=[relation])
        assert [case.source for case in selection.cases] == [name]


def test_garbage_is_collected_again_afterwards(mine):
    assert gc.isenabled()
    sources.load(str(mine))
    assert gc.isenabled()
    mine.write_text("{")
    with pytest.raises(ValueError, match="expected one JSON object"):
        sources.load(str(mine))
    assert gc.isenabled()


def test_cases_are_text_and_need_no_torch():
    code = (
        "import sys; from kn_bench.cases import sources; sources.load('embedded', limit=1); "
        "sys.exit(str({'torch', 'transformers', 'datasets', 'pooch'} & set(sys.modules) or ''))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == ""
