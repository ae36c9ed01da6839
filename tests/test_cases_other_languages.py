"""Other languages than English: mPARAREL, and the relatives of BLiMP in their published columns."""

import json

import pytest

from kn_bench.cases import sources
from kn_bench.cases.sources import jsonl, mpararel

PATTERNS = {
    "de": {
        "P36": ["[Y], die hauptstadt von [X]", "die hauptstadt von [X] ist [Y]", "[X]s kapital"],
        "P1376": ["[X] ist die hauptstadt von [Y]"],
    },
    "ja": {"P36": ["[X]の首都は[Y]", "[Y]は[X]の首都です"], "P1376": ["[X]は首都で、その国は[Y]"]},
}
FACTS = {
    "de": {"P36": {"Kanada": "Ottawa", "Italien": "Rom", "Kuba": "Havanna"}},
    "ja": {
        "P36": {"カナダ": "オタワ", "イタリア": "ローマ", "キューバ": "ハバナ"},
        "P1376": {"オタワ": "カナダ"},
    },
}
PAIRS = {
    "zhoblimp.jsonl": (
        {
            "paradigm": "ba_deletion",
            "phenomenon": "BA",
            "sentence_good": "张三把书看完了。",
            "sentence_bad": "张三把看完了。",
        },
        "ba_deletion",
    ),
    "jblimp.jsonl": (
        {
            "type": "agreement",
            "phenomenon": "argument structure",
            "paradigm": "accusative",
            "good_sentence": "太郎が本を読んだ。",
            "bad_sentence": "太郎が本に読んだ。",
        },
        "accusative",
    ),
    "blimp_nl.jsonl": (
        {
            "sentence_good": "De jongen slaapt hier.",
            "sentence_bad": "De jongen slapen hier.",
            "linguistic_phenomenon": "agreement",
        },
        "agreement",
    ),
    "multiblimp.tsv": (
        {
            "phenomenon": "SV-#",
            "sen": "Die Katzen schlafen heute.",
            "wrong_sen": "Die Katzen schläft heute.",
            "prefix": "Die Katzen",
            "verb": "schlafen",
        },
        "SV-#",
    ),
}


@pytest.fixture
def folder(tmp_path):
    """mPARAREL's folder with two relations in two languages."""
    for language, relations in PATTERNS.items():
        for id, texts in relations.items():
            rows = [{"pattern": text, "checked-by-human": False} for text in texts]
            _write(tmp_path / "patterns" / language / f"{id}.jsonl", rows)
    for language, facts in FACTS.items():
        for id, pairs in facts.items():
            rows = [
                {"sub_uri": "Q1", "obj_uri": "Q2", "sub_label": s, "obj_label": o, "lineid": i}
                for i, (s, o) in enumerate(pairs.items())
            ]
            _write(tmp_path / "tuples" / language / f"{id}.jsonl", rows)
    return tmp_path


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_mpararel_is_recognised_and_keeps_languages_apart(folder):
    bare, named = sources.load(str(folder)), sources.load(f"mpararel={folder}")
    assert bare == named
    assert {case.source for case in bare.cases} == {"mpararel-de", "mpararel-ja"}
    german = sources.load(str(folder / "tuples" / "de"))
    assert german.cases == tuple(case for case in bare.cases if case.source == "mpararel-de")
    own = set(FACTS["de"]["P36"]) | set(FACTS["de"]["P36"].values())
    for case in german.cases:
        assert case.request.target_new in own
        assert case.id.startswith("mpararel/de/P36/")


def test_mpararel_asks_the_inverse_in_the_same_language(folder):
    cases = {case.request.subject: case for case in sources.load(str(folder)).cases}
    canada = cases["Kanada"]
    assert canada.request.prompt == "die hauptstadt von {} ist"
    asked = [probe for probe in canada.probes if probe.criterion == "symmetry"]
    assert [probe.kind for probe in asked] == ["new_inverse", "old_inverse"]
    new = canada.request.target_new
    assert asked[0].cloze.fill("Kanada") == f"{new} ist die hauptstadt von Kanada"
    assert asked[0].rejected == {"Rom": "Italien", "Havanna": "Kuba"}[new]
    assert asked[1].cloze.fill("Kanada") == "Ottawa ist die hauptstadt von Kanada"
    # no English rewording is asked of a German fact, and the other pattern is a paraphrase
    assert not [probe for probe in canada.probes if probe.criterion == "synonym"]
    (paraphrase,) = [probe for probe in canada.probes if probe.criterion == "generality"]
    assert paraphrase.cloze.right == ", die hauptstadt von Kanada"
    japanese = cases["カナダ"]
    assert japanese.request.cloze.fill("オタワ") == "カナダの首都はオタワ"


def test_what_a_translation_lost_is_excluded_with_its_reason(folder):
    exclusions = sources.load(str(folder), relations=["P36"]).exclusions
    lost = [e for e in exclusions if e.detail == "[X]s kapital"]
    assert [e.reason for e in lost] == [
        "the translated pattern lost the place of its subject or answer"
    ]


def test_a_folder_without_a_language_is_refused(tmp_path):
    for kind in ("patterns", "tuples"):
        (tmp_path / kind / "de").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"expected mPARAREL's folder, with patterns/de/P36.jsonl"):
        mpararel.languages(tmp_path)


@pytest.mark.parametrize("name", PAIRS)
def test_relatives_of_blimp_in_their_published_columns(tmp_path, name):
    row, paradigm = PAIRS[name]
    path = tmp_path / name
    if name.endswith(".tsv"):
        path.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n", encoding="utf-8")
    else:
        _write(path, [row])
    (case,) = sources.load(str(path)).cases
    good, bad = (
        next(text for column, text in row.items() if column in columns)
        for columns in zip(*jsonl.RELATIVES, strict=True)
    )
    assert case.relation == paradigm
    reliability = case.probes[0]
    assert reliability.scoring == "sentence"  # as the authors score
    assert reliability.cloze.fill(reliability.rejected) == good
    assert reliability.cloze.fill(reliability.expected) == bad


def test_paradigms_that_differ_in_a_sign_are_told_apart(tmp_path):
    columns = ("phenomenon", "sen", "wrong_sen")
    rows = [("SV-#", "Sie schlafen.", "Sie schläft."), ("SV+#", "Er schläft.", "Er schlafen.")]
    text = "\n".join("\t".join(row) for row in (columns, *rows))
    path = tmp_path / "各語.tsv"
    path.write_text(text, encoding="utf-8")
    cases = sources.load(str(path)).cases
    assert {case.relation for case in cases} == {"SV-#", "SV+#"}
    folders = {case.id.rpartition("/")[0] for case in cases}
    assert len(folders) == 2
    assert all("/SV.SV." in folder for folder in folders)
