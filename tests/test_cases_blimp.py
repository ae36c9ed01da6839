"""BLiMP: from a folder, from the hub (a local repository), from the cache; all 67 paradigms."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from kn_bench.cases import sources
from kn_bench.cases.building.paradigms import AGREEMENT, BLIMP
from kn_bench.cases.building.spans import Analysis, analyse
from kn_bench.cases.case import Selection
from kn_bench.cases.sources import blimp

SHARED = os.environ.get("KN_BENCH_SHARED")
REAL = Path(SHARED or ".") / "data" / "blimp"
needs_files = pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with BLiMP")
BY_ID = {p.id: p for p in BLIMP}
DN1, DN2 = "determiner_noun_agreement_1", "determiner_noun_agreement_2"
ROWS = {
    DN1: [
        ("Ann sold this cup.", "Ann sold this cups."),
        ("Bo saw these cups.", "Bo saw these cup."),
        ("Cy likes this lamp.", "Cy likes this lamps."),
    ],
    DN2: [("The men saw these cups.", "The men saw this cups.")],
    "matrix_question_npi_licensor_present": [("Had Ann ever left?", "Ann had ever left.")],
}


@pytest.fixture
def folder(tmp_path):
    for name, pairs in ROWS.items():
        lines = [
            json.dumps({"sentence_good": good, "sentence_bad": bad, "pairID": str(i), "UID": name})
            for i, (good, bad) in enumerate(pairs)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_folder_becomes_cases_and_exclusions(folder):
    selection = blimp.load(folder)
    assert {c.id for c in selection.cases} == {
        f"blimp/{DN1}/0", f"blimp/{DN1}/1", f"blimp/{DN1}/2", f"blimp/{DN2}/0",
    }  # fmt: skip
    (left_out,) = selection.exclusions
    assert left_out.case == "blimp/matrix_question_npi_licensor_present/0"
    assert left_out.detail == "Had Ann ever left? | Ann had ever left."


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_may_begin_with_a_byte_order_mark(folder, encoding, end):
    plain = blimp.load(folder)
    for path in folder.rglob("*.jsonl"):
        path.write_bytes(path.read_text().replace("\n", end).encode(encoding))
    assert blimp.load(folder) == plain
    path.write_bytes(path.read_bytes()[2:])
    with pytest.raises(
        ValueError, match=rf"^{path.name}(, line 1)?: expected UTF-8 text, .*; save it"
    ):
        blimp.load(folder)


def test_a_paradigm_comes_with_what_its_probes_need(folder):
    (case,) = blimp.load(folder, relations=[DN2]).cases
    (probe,) = (p for p in case.probes if p.criterion == "symmetry")
    assert (probe.cloze.left, probe.expected) == ("Ann sold this", "cups")
    case = next(c for c in blimp.load(folder, relations=[DN1]).cases if c.id.endswith("/0"))
    (probe,) = (p for p in case.probes if p.criterion == "symmetry")
    assert (probe.cloze.right, probe.expected) == ("cups.", "this")


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        ("nonsense", r"^paradigm 'nonsense': expected one of BLiMP's: adjunct_island, "),
        ("adjunct_island", r"expected adjunct_island\.jsonl in it; add it"),
    ],
)
def test_a_paradigm_that_is_not_there_is_named(folder, relation, message):
    with pytest.raises(ValueError, match=message):
        blimp.load(folder, relations=[relation])


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected BLiMP's files, one a paradigm"):
        blimp.load(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"^determiner_noun_agreement_1\.jsonl, line 4: expected one JSON object \(Expecting"),
        ("[]", r"line 4: expected one JSON object, such as .*, not a list"),
        (
            json.dumps(
                {
                    "sentence_good": "Di has this hat.",
                    "sentence_bad": "Di has this hats.",
                    "pairID": "-1",
                }
            ),
            r"pairID '-1': expected an id of its own, '1' is another pair's; rename one",
        ),
        ('{"sentence_good": "a"}', r"line 4: expected .*; add sentence_bad and pairID\|pair_id"),
    ],
)
def test_a_malformed_line_is_named(folder, line, message):
    with (folder / f"{DN1}.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        blimp.load(folder)


@pytest.mark.parametrize(
    ("paradigm", "good", "bad", "word"),
    [
        (DN1, "That man sold this old cup.", "That man sold this old cups.", "this"),
        (DN2, "That man sold this movie theater.", "That man sold these movie theater.", "theater"),
        ("distractor_agreement_relational_noun", "A sister of the men has left.",
         "A sister of the men have left.", "sister"),
        ("distractor_agreement_relational_noun", "The movie theater near men is big.",
         "The movie theater near men are big.", "theater"),
        ("distractor_agreement_relative_clause", "Men who saw Ann have left.",
         "Men who saw Ann has left.", "Men"),
        ("regular_plural_subject_verb_agreement_1", "A lot of men run.", "A lot of men runs.",
         "men"),
        ("regular_plural_subject_verb_agreement_2", "The men run off.", "The man run off.", "run"),
        ("anaphor_number_agreement", "Ann's sisters saw themselves.", "Ann's sisters saw herself.",
         "sisters"),
        ("anaphor_gender_agreement", "Mary Smith can't help herself.",
         "Mary Smith can't help himself.", "Smith"),
        ("principle_A_domain_1", "These men say that Ann saw them.",
         "These men say that Ann saw themselves.", "men"),
        ("principle_A_domain_2", "Ann was thinking about Bob hurting himself.",
         "Ann was thinking about Bob hurting herself.", "Bob"),
        ("principle_A_domain_3", "Ann says Bob hurt himself.", "Bob says Ann hurt himself.",
         "himself"),
        ("npi_present_1", "Ann has really left.", "Ann has ever left.", ""),
    ],
)  # fmt: skip
def test_the_word_that_governs(paradigm, good, bad, word):
    start, end = blimp.governing(BY_ID[paradigm], good, bad)
    assert good[start:end] == word


def write_hub(root: Path) -> None:
    """A data set repository as the hub has it: one configuration a paradigm, split train."""
    configs = []
    for name, pairs in ROWS.items():
        (root / name).mkdir(parents=True)
        rows = [
            {"sentence_good": good, "sentence_bad": bad, "UID": name, "pair_id": i}
            for i, (good, bad) in enumerate(pairs)
        ]
        (root / name / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        configs.append(
            f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*"
        )
    (root / "README.md").write_text("---\nconfigs:\n" + "\n".join(configs) + "\n---\n")


def test_the_hub_gives_what_a_folder_gives_and_is_asked_once(folder, tmp_path_factory, monkeypatch):
    hub, cache = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("cache")
    write_hub(hub / "blimp")
    monkeypatch.setenv("KN_BENCH_CACHE", str(cache))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache / "datasets"))
    kept = cache / "blimp" / blimp.REVISION
    for name in ROWS:
        blimp.fetch(name, kept / f"{name}.jsonl", repository=str(hub / "blimp"), revision=None)
    monkeypatch.setattr(blimp, "fetch", None)  # from here on the cache has to do
    monkeypatch.setattr(blimp, "BLIMP", tuple(p for p in BLIMP if p.id in ROWS))
    assert same(blimp.load(), blimp.load(folder))


def same(left: Selection, right: Selection) -> bool:
    return {c.id: c for c in left.cases} == {c.id: c for c in right.cases} and set(
        left.exclusions
    ) == set(right.exclusions)


def test_offline_and_not_in_the_cache_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^BLiMP's adjunct_island is not in the cache") as error:
        blimp.load(relations=["adjunct_island"])
    assert "connect once, or give a folder of its files with --cases blimp=FOLDER" in str(
        error.value
    )
    assert not list(tmp_path.rglob("*.jsonl"))


# -- the real files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Selection:
    return sources.load(f"blimp={REAL}")


@needs_files
def test_every_real_pair_is_a_case_or_excluded_with_a_reason(real):
    assert len(real.cases) + len(real.exclusions) == 67_000
    assert Counter(e.reason for e in real.exclusions) == {
        "the two sentences share no word around the differing span": 1000,
        "the two sentences are the same": 7,
    }
    assert Counter(c.relation for c in real.cases)[DN1] == 1000
    assert len({c.id for c in real.cases}) == len(real.cases)


@needs_files
def test_real_sentences_come_back_from_their_parts(real):
    texts = {}
    for paradigm in BLIMP:
        for pair in blimp.read_pairs(REAL / f"{paradigm.id}.jsonl", paradigm):
            texts[f"blimp/{paradigm.id}/{pair.id}"] = (pair.good, pair.bad)
    for case in real.cases:
        cloze = case.request.cloze
        assert (cloze.fill(case.request.target_true), cloze.fill(case.request.target_new)) == texts[
            case.id
        ]


@needs_files
def test_our_table_says_what_the_files_say():
    """BLiMP's own fields, which we do not read: methods, families, and the critical word."""
    for paradigm in BLIMP:
        for line in (REAL / f"{paradigm.id}.jsonl").read_text().splitlines()[:200]:
            row = json.loads(line)
            assert (paradigm.scoring == "gap") == row["one_prefix_method"]
            assert row["two_prefix_method"] or paradigm.scoring != "two_prefix"
            assert paradigm.family == row["linguistics_term"]
            minimal = blimp.minimal_pair(paradigm, "0", row["sentence_good"], row["sentence_bad"])
            parts = analyse(minimal, paradigm.family)
            if not isinstance(parts, Analysis):
                continue
            if row["one_prefix_method"]:
                # a compound's first part is shared, so it stands before our gap
                assert row["one_prefix_word_good"].split()[0] in f"{parts.cloze.left} {parts.good}"
                assert parts.cloze.left.startswith(row["one_prefix_prefix"])
            if paradigm.scoring == "two_prefix":
                assert parts.cloze.right.startswith(row["two_prefix_word"].strip())
                assert row["two_prefix_prefix_good"].endswith(parts.good)
                assert row["two_prefix_prefix_bad"].endswith(parts.bad)


@needs_files
def test_agreement_is_marked_for_number_and_shared_by_pairs(real):
    of_agreement = [c for c in real.cases if BY_ID[c.relation].family in AGREEMENT]
    assert len(of_agreement) == 16_000
    with_opposite = sum(
        any(p.kind == "opposite_number" for p in c.probes) for c in of_agreement
    )  # fmt: skip
    assert with_opposite == len(of_agreement)
    shared = sum("generality" not in c.not_applicable for c in of_agreement)
    assert shared / len(of_agreement) > 0.9
    determiners = [c for c in of_agreement if c.relation == DN1]
    assert {c.request.subject.lower() for c in determiners} == {"this", "that", "these", "those"}
    assert all(any(p.criterion == "symmetry" for p in c.probes) for c in determiners)


@needs_files
def test_a_limit_draws_from_the_same_cases(real):
    by_id = {case.id: case for case in real.cases}
    some = sources.load(f"blimp={REAL}", limit=3)
    assert len(some.cases) == 3 * 66
    assert all(by_id[case.id] == case for case in some.cases)
    assert len(some.exclusions) == 3 + 5
