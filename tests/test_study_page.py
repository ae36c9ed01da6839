"""What a study writes: sections that are kept, tables, figures, and one page."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import matplotlib.colors as mc
import numpy as np
import pytest

from kn_bench.measure.statistics import Interval
from kn_bench.study.html import index_html
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable
from kn_bench.study.plots import (
    COLOURS,
    MARKS,
    TASK,
    bars,
    heat_map,
    panels,
    render,
    short,
    whiskers,
)
from kn_bench.study.runner import Part, StudyStep, origin_of, run_study, section_key
from kn_bench.study.writing import cell, csv_text, read_section, write_section
from tests.made_up_study import SETTINGS, made_up_cases
from tests.tiny_models import tiny_model

# --- the runner --------------------------------------------------------------------------------


def counted_part(calls, folder):
    source = folder / "section.py"
    source.write_text("one")

    def run(material):
        calls.append(material)
        return Section(
            "made_up",
            "Made up?",
            "A question.",
            ("One finding.",),
            (SectionTable("t", "A table.", ("a", "b"), ((1, Interval(0.5, 0.4, 0.6, 9)),)),),
            (SectionFigure("f", "A figure.", lambda: panels(1)[0]),),
        )

    return Part("made_up", "Made up?", run, (source,))


def test_a_study_resumes_where_all_is_as_it_was(tmp_path, material):
    calls: list[Material] = []
    steps: list[StudyStep] = []
    part = counted_part(calls, tmp_path)
    out = tmp_path / "out"
    first = run_study(material, [part], out, tell=steps.append)
    again = run_study(material, [part], out, tell=steps.append)
    assert [step.state for step in steps] == ["begins", "done", "kept"]
    assert len(calls) == 1
    assert [dataclasses.replace(section, seconds=0) for section in first] == [
        dataclasses.replace(section, seconds=0) for section in again
    ]
    part.sources[0].write_text("two")
    run_study(material, [part], out)
    run_study(material, [part], out, again=True)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["section.json", "t.csv", "f.svg", "f.png"])
def test_a_section_without_one_of_its_files_is_made_anew(name, tmp_path, material):
    calls: list[Material] = []
    part = counted_part(calls, tmp_path)
    run_study(material, [part], tmp_path / "out")
    (tmp_path / "out" / "made_up" / name).unlink()
    run_study(material, [part], tmp_path / "out")
    assert len(calls) == 2
    assert (tmp_path / "out" / "made_up" / name).is_file()


def test_a_section_depends_on_model_cases_and_settings(material, tmp_path):
    cases = made_up_cases()
    part = counted_part([], tmp_path)
    others = [
        Material(tiny_model("gpt2"), cases, SETTINGS),
        Material(material.lm, cases[:-1], SETTINGS),
        Material(material.lm, cases, dataclasses.replace(SETTINGS, seed=1)),
    ]
    keys = {section_key(origin_of(changed), part) for changed in (material, *others)}
    assert len(keys) == 4
    in_another_order = Material(material.lm, cases[::-1], SETTINGS)
    assert section_key(origin_of(in_another_order), part) in keys


def test_a_section_depends_on_what_the_corpus_says_not_on_its_place(material, tmp_path):
    first, moved = tmp_path / "first.txt", tmp_path / "moved.txt"

    def basis(path):
        settings = dataclasses.replace(SETTINGS, corpus=path)
        return origin_of(Material(material.lm, material.cases, settings)).basis

    first.write_text("These dogs bark.\n")
    before = basis(first)
    assert before not in (basis(None), basis(moved))
    first.rename(moved)
    assert basis(moved) == before
    moved.write_text("This dogs bark.\n")
    assert basis(moved) != before


def another_part(folder):
    made_up = counted_part([], folder)
    return dataclasses.replace(
        made_up, id="another", run=lambda _: Section("another", "", "B?", ())
    )


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["tiny", "made_up/tiny"])
@pytest.mark.parametrize("same_section", [False, True])
def test_a_folder_holds_the_study_of_one_model(tmp_path, material, same_section, name, again):
    """Other weights are another model, whatever their name, and nothing is computed or written."""
    out = tmp_path / "out"
    part = counted_part([], tmp_path)
    run_study(material, [part], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tiny_model("gpt2")
    other.name = material.lm.name if name == "tiny" else name
    chosen = dataclasses.replace(
        part if same_section else another_part(tmp_path), run=lambda _: pytest.fail("computed")
    )
    with pytest.raises(ValueError, match="name another folder") as refused:
        run_study(Material(other, material.cases, SETTINGS), [chosen], out, again=again)
    assert str(refused.value) == (
        f"{out}: expected the study of {other.name} (weights {other.content_hash[:12]}), and its "
        f"section made_up is of {material.lm.name} (weights {material.lm.content_hash[:12]}); "
        "name another folder"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def pages(folder):
    return [(folder / name).read_text() for name in ("README.md", "index.html")]


EARLIER = "This section is of an earlier run: its cases, settings or code are not the last&#39;s."


@pytest.mark.parametrize(
    ("cases", "settings", "is_said"),
    [
        (slice(None), SETTINGS, False),
        (slice(1), SETTINGS, True),
        (slice(None), dataclasses.replace(SETTINGS, seed=1), True),
    ],
    ids=["as it was", "fewer cases", "another seed"],
)
def test_a_section_of_other_cases_or_settings_says_so(tmp_path, material, cases, settings, is_said):
    part = counted_part([], tmp_path)
    run_study(material, [part], tmp_path / "out")
    now = Material(material.lm, material.cases[cases], settings)
    run_study(now, [another_part(tmp_path)], tmp_path / "out")
    for text in pages(tmp_path / "out"):
        assert "One finding." in text
        assert (EARLIER in text.replace("'", "&#39;")) == is_said
    run_study(now, [part], tmp_path / "out")  # the other one is of this run's origin
    for text in pages(tmp_path / "out"):
        assert "of an earlier run" not in text


def test_a_section_that_names_no_model_is_shown_as_such(tmp_path, material):
    """Those that an earlier version wrote are read, and neither lost nor taken for this model's."""
    out, part = tmp_path / "out", counted_part([], tmp_path)
    run_study(material, [part], out)
    written = json.loads((out / "made_up" / "section.json").read_text())
    del written["origin"]
    (out / "made_up" / "section.json").write_text(json.dumps(written))
    run_study(material, [another_part(tmp_path)], out)
    for text in pages(out):
        assert "One finding." in text
        assert "which recorded neither its model nor its cases" in text


def test_what_a_section_writes(tmp_path, material):
    run_study(material, [counted_part([], tmp_path)], tmp_path / "out")
    folder = tmp_path / "out" / "made_up"
    names = {path.name for path in folder.iterdir()}
    assert names == {"t.csv", "f.svg", "f.png", "section.json"}
    assert (folder / "t.csv").read_text() == "a,b,b low,b high,b n\n1,0.5,0.4,0.6,9\n"
    assert (folder / "f.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_computed_takes_its_place_on_the_page(tmp_path, material):
    def run(material):
        raise NothingToShow("There is nothing.")

    part = Part("empty", "Empty?", run, ())
    (written,) = run_study(material, [part], tmp_path)
    assert written.notes == ("There is nothing.",)
    assert "There is nothing." in (tmp_path / "index.html").read_text()


# --- the page ----------------------------------------------------------------------------------


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if tag == "section" else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.sources += [attributes["src"]] if "src" in attributes else []
        assert tag not in ("link", "iframe")


def test_the_page_is_one_file_with_all_sections(tmp_path, material):
    section = Section(
        "a", "A <b>?", "Q", ("x < y",), (), (SectionFigure("f", "c", lambda: panels(1)[0]),)
    )
    written = [
        write_section(dataclasses.replace(section, id=name), tmp_path / name, "key", 1.0)
        for name in ("one", "two")
    ]
    text = index_html(material, written, tmp_path)
    page = Reader()
    page.feed(text)
    assert page.ids == ["one", "two"]
    assert page.links == ["#one", "#two"]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert len(page.sources) == 2
    assert "A &lt;b&gt;?" in text
    assert "http://" not in re.sub(r"data:[^\"]+", "", text)


def test_the_page_in_markdown_points_at_its_figures(tmp_path, material):
    run_study(material, [counted_part([], tmp_path)], tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    (shown,) = re.findall(r"!\[.*\]\((.+)\)", text)
    assert (tmp_path / "out" / shown).read_bytes().startswith(b"\x89PNG")
    assert "0.50 [0.40, 0.60] n=9" in text
    assert f"# What the knowledge neurons of {material.lm.name} are" in text


def test_a_broken_section_is_no_section(tmp_path):
    assert read_section(tmp_path) is None
    (tmp_path / "section.json").write_text("{")
    assert read_section(tmp_path) is None


# --- tables and figures ------------------------------------------------------------------------


def test_cells():
    assert cell(None) == "–"
    assert cell(True) == "yes"
    assert cell(0.1234, 3) == "0.123"
    assert cell(0.0004) == "4.0e-04"
    assert cell(0.0) == "0.00"
    assert cell(float("nan")) == "–"
    assert cell(Interval(0.5, 0.25, 0.75, 8)) == "0.50 [0.25, 0.75] n=8"
    table = SectionTable("t", "c.", ("a", "b"), (("x", None), ("y", Interval(1.0, 0.0, 2.0, 3))))
    assert csv_text(table).splitlines()[1:] == ["x,,,,", "y,1,0,2,3"]


def test_colours_can_be_told_apart_by_the_colour_blind():
    """After the deuteranope's confusion of red and green (Vienot et al. 1999), and in grey."""
    rgb = np.array([mc.to_rgb(colour) for colour in COLOURS]) ** 2.2
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714],
                       [0.0299566, 0.184309, 1.46709]])  # fmt: skip
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    seen = rgb @ (np.linalg.inv(to_lms) @ blind @ to_lms).T
    seen = np.clip(seen, 0, 1) ** (1 / 2.2)
    for i in range(4):
        for j in range(i):
            assert np.abs(seen[i] - seen[j]).max() > 0.15


@pytest.mark.parametrize("task", TASK)
def test_captions_name_the_marks_as_they_are_drawn(task):
    colour, marker, _ = TASK[task]
    red, green, blue = mc.to_rgb(colour)
    is_drawn_in = {"blue": blue > max(red, green), "red": red > 2 * max(green, blue)}
    shapes = {"circles": "o", "squares": "s"}
    name, shape = MARKS[task].split()
    assert is_drawn_in[name]
    assert shapes[shape] == marker


def test_figures_are_the_same_bytes_every_time():
    def draw():
        figure, (left, right) = panels(2)
        whiskers(left, [0, 1], [Interval(1.0, 0.5, 2.0, 4), Interval(np.nan, np.nan, np.nan, 0)])
        bars(left, [0], [Interval(1.0, 0.5, 2.0, 4)])
        values = np.array([[0.5, np.nan], [-0.5, -0.0001]])
        heat_map(
            right, values, rows=["a", "b"], columns=["c", "d"], two_sided=True, numbers=2, rotate=45
        )
        assert [text.get_text() for text in right.texts] == ["0.50", "-0.50", "0.00"]
        return figure

    assert render(draw) == render(draw)


def test_paradigms_have_short_names():
    assert short("determiner_noun_agreement_with_adj_irregular_2") == "det-noun adj irreg 2"
    assert short("irregular_plural_subject_verb_agreement_1") == "irreg subj-verb 1"
    assert short("P36") == "P36"
