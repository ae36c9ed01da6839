"""PARAREL: from a folder, from its pinned files (a server on this machine), from the cache."""

import hashlib
import http.server
import json
import os
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from kn_bench.cases import downloads, sources
from kn_bench.cases.building.tables import one_to_one
from kn_bench.cases.case import Selection
from kn_bench.cases.sources import pararel

SHARED = os.environ.get("KN_BENCH_SHARED")
REAL = Path(SHARED or ".") / "data" / "pararel"
needs_files = pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with PARAREL")
PATTERNS = {
    "P36": ["The capital of [X] is [Y] .", "[X]'s capital city is [Y]."],
    "P1376": ["[X] is the capital of [Y]."],
    "P30": ["[X] is located in [Y]."],
    "P37": ["The official language of [X] is [Y]."],
}
FACTS = {
    "P36": [("Canada", "Ottawa"), ("France", "Paris"), ("Peru", "Lima")],
    "P1376": [("Ottawa", "Canada"), ("Paris", "France")],
    "P30": [("Canada", "America"), ("Peru", "America"), ("France", "Europe")],
    "P37": [("Peru", "Spanish"), ("France", "French")],
    "P31": [("Rhine", "river")],
}


@pytest.fixture
def folder(tmp_path):
    for kind in ("patterns", "facts"):
        (tmp_path / kind).mkdir()
    for id, patterns in PATTERNS.items():
        write(tmp_path / "patterns" / f"{id}.jsonl", [{"pattern": p} for p in patterns])
    for id, facts in FACTS.items():
        rows = [{"sub_label": s, "obj_label": o, "uuid": "x"} for s, o in facts]
        write(tmp_path / "facts" / f"{id}.jsonl", rows)
    return tmp_path


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_may_begin_with_a_byte_order_mark(folder, encoding, end):
    plain = pararel.load(folder)
    for path in folder.rglob("*.jsonl"):
        path.write_bytes(path.read_text().replace("\n", end).encode(encoding))
    assert pararel.load(folder) == plain
    path.write_bytes(path.read_bytes()[2:])
    with pytest.raises(
        ValueError, match=rf"^{path.name}(, line 1)?: expected UTF-8 text, .*; save it"
    ):
        pararel.load(folder)


def test_a_folder_becomes_cases(folder):
    selection = pararel.load(folder)
    assert len(selection.cases) == 10
    (left_out,) = selection.exclusions
    assert (left_out.case, left_out.reason) == (
        "pararel/P31", "PARAREL has facts but no patterns for the relation",
    )  # fmt: skip
    case = next(c for c in selection.cases if c.id == "pararel/P36/Canada")
    assert (case.source, case.request.prompt) == ("pararel", "The capital of {} is")
    kinds = Counter(p.kind for p in case.probes)
    assert kinds["new_inverse"] == kinds["old_inverse"] == 1
    assert kinds["other_relation"] == kinds["other_task"] == 2
    assert [p.cloze.left for p in case.probes if p.criterion == "synonym"] == [
        "The seat of government of Canada is the city of",
        "The city where Canada has its government is",
        "The parliament of Canada meets in the city of",
    ]


def test_a_relation_comes_with_what_its_probes_need(folder):
    everything = {case.id: case for case in pararel.load(folder).cases}
    alone = pararel.load(folder, relations=["P36"])
    assert [c.relation for c in alone.cases] == ["P36"] * 3
    assert all(everything[case.id] == case for case in alone.cases)
    assert not alone.exclusions


def test_unknown_relations_and_folders_are_named(folder, tmp_path_factory):
    with pytest.raises(
        ValueError, match=r"^relation 'P99': expected one of PARAREL's: P1001, P101, "
    ):
        pararel.load(folder, relations=["P99"])
    with pytest.raises(ValueError, match=r"P19\.jsonl cannot be read: No such file or directory"):
        pararel.load(folder, relations=["P19"])
    with pytest.raises(ValueError, match=r"expected PARAREL's files, facts/P36\.jsonl and pa"):
        pararel.load(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def server(folder, monkeypatch, tmp_path_factory):
    """The folder behind HTTP, its files pinned; yields what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    handler = partial(Handler, directory=str(folder))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.jsonl")
    }
    monkeypatch.setattr(downloads, "checksums", lambda source: digests)
    monkeypatch.setattr(pararel, "FOLDERS", {"patterns": "patterns", "facts": "facts"})
    monkeypatch.setattr(pararel, "BASE_URL", f"http://127.0.0.1:{httpd.server_port}/")
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield asked
    httpd.shutdown()


def test_pinned_files_are_fetched_once_and_only_those_needed(server, folder):
    selection = pararel.load(relations=["P36"])
    assert selection == pararel.load(folder, relations=["P36"])
    needed = [f"/{kind}/{id}.jsonl" for id in ("P36", "P1376", "P37", "P30")
              for kind in ("patterns", "facts")]  # fmt: skip
    assert sorted(server) == sorted(needed)
    assert pararel.load(relations=["P36"]) == selection
    assert len(server) == len(needed)


def test_a_file_that_is_not_the_pinned_one_is_refused(server, folder):
    (folder / "facts" / "P36.jsonl").write_text('{"sub_label": "a", "obj_label": "b"}\n')
    with pytest.raises(
        ValueError, match=r"^pararel's facts/P36\.jsonl from 127\.0\.0\.1:\d+ is not"
    ):
        pararel.load(relations=["P36"])
    kept = list(Path(os.environ["KN_BENCH_CACHE"]).rglob("P36.jsonl"))
    assert [path.parent.name for path in kept] == ["patterns"]


def test_offline_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(pararel, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^pararel's patterns/P36\.jsonl is not in the cache and"
    ) as e:
        pararel.load(relations=["P36"])
    assert str(e.value).endswith(
        "connect once, or give a folder of its files with --cases pararel=FOLDER"
    )


def test_every_relation_has_partners_that_exist_and_are_not_its_inverse():
    for id in pararel.relation_ids():
        related = pararel._related()[id]
        partners = related["partners"].split()
        assert len(set(partners)) == 2
        assert set(partners) <= set(pararel.relation_ids()) - {id, related.get("inverse")}


def test_every_file_is_pinned():
    names = downloads.checksums("pararel")
    patterns = [n for n in names if n.startswith("patterns/")]
    assert (len(patterns), len(names)) == (39, 80)
    assert {Path(n).stem for n in patterns} == set(pararel.relation_ids())
    assert all(len(digest) == 64 for digest in names.values())


# -- the real files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Selection:
    return sources.load(f"pararel={REAL}")


@needs_files
def test_the_real_files_are_the_pinned_ones():
    for name, digest in downloads.checksums("pararel").items():
        assert hashlib.sha256((REAL / name).read_bytes()).hexdigest() == digest


@needs_files
def test_every_real_fact_is_a_case_or_excluded_with_a_reason(real):
    lines = sum(
        len((REAL / "facts" / f"{id}.jsonl").read_text().splitlines())
        for id in pararel.relation_ids()
    )
    reasons = Counter(e.reason for e in real.exclusions)
    assert reasons == {
        "the same fact is listed again": 17,
        "PARAREL has facts but no patterns for the relation": 2,
    }
    assert len(real.cases) + 17 == lines == 27_610
    assert len({case.id for case in real.cases}) == len(real.cases)
    assert len({case.relation for case in real.cases}) == 39
    assert "pararel/P36/Canada" in {case.id for case in real.cases}


@needs_files
def test_all_329_patterns_are_read():
    tables = [pararel.read_relation(id, REAL) for id in pararel.relation_ids()]
    assert sum(len(table.patterns) for table in tables) == 329


@needs_files
def test_one_to_one_counts_on_the_real_files():
    p36, p1376 = (pararel.read_facts(id, REAL) for id in ("P36", "P1376"))
    assert (len(p36), len(one_to_one(p36))) == (471, 158)
    assert (len(p1376), len(one_to_one(p1376))) == (179, 150)
    inverted = {(f.object, f.subject) for f in p1376}
    assert len({(f.subject, f.object) for f in p36} & inverted) == 61


@needs_files
def test_real_symmetry_is_asked_of_unique_pairs(real):
    pairs = {(f.subject, f.object) for f in pararel.read_facts("P36", REAL)}
    pairs |= {(f.object, f.subject) for f in pararel.read_facts("P1376", REAL)}
    capitals, countries = Counter(s for s, _ in pairs), Counter(o for _, o in pairs)
    asked = [c for c in real.cases if c.relation == "P36"
             and any(p.criterion == "symmetry" for p in c.probes)]  # fmt: skip
    assert len(asked) > 100
    for case in asked:
        for object in (case.request.target_true, case.request.target_new):
            assert countries[object] == 1
        assert capitals[case.request.subject] == 1
        displaced = {p.rejected for p in case.probes if p.criterion == "symmetry"}
        assert {(name, case.request.target_new) for name in displaced} <= pairs


@needs_files
def test_no_real_target_is_a_no_op(real):
    true: dict[tuple[str, str], set[str]] = {}
    for id in pararel.relation_ids():
        for fact in pararel.read_facts(id, REAL):
            true.setdefault((id, fact.subject), set()).add(fact.object)
    for case in real.cases:
        assert case.request.target_new not in true[case.relation, case.request.subject]


@needs_files
def test_real_prompts_end_in_their_answers_and_have_an_agreeing_article(real):
    for case in real.cases:
        assert case.request.cloze.answer_is_last
        for probe in case.probes:
            if probe.cloze.left.endswith((" a", " an")) and probe.criterion != "locality":
                sound = probe.expected[:2].lower()
                if sound[0] not in "uh" and sound != "eu":  # "a Ukrainian", "an umbrella"
                    assert probe.cloze.left.endswith(" an") == (sound[0] in "aeio")


@needs_files
def test_real_synonyms_and_generality_do_not_overlap(real):
    for case in real.cases[::50]:
        asked = Counter(p.cloze for p in case.probes
                        if p.criterion in ("reliability", "generality", "synonym")
                        and p.kind != "answer")  # fmt: skip
        assert max(asked.values()) == 1, case.id


@needs_files
def test_a_limit_draws_from_the_same_cases(real):
    by_id = {case.id: case for case in real.cases}
    some = sources.load(f"pararel={REAL}", limit=4)
    assert len(some.cases) == 4 * 39
    assert all(by_id[case.id] == case for case in some.cases)
