"""The study: sections on a small random model, what is written, resuming, the page, the commands.

Slow parts use random models and a handful of cases: what the figures say is not tested here, the
statistics behind them are (tests of localisation, modifiers, controls and tracing).
"""

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from kn_bench.cases import embedded
from kn_bench.cases.case import Case, Cloze, EditRequest, Probe, Query
from kn_bench.commands import studying
from kn_bench.editing.edit import NoEdit
from kn_bench.localise.selection import Neuron
from kn_bench.measure.statistics import Interval
from kn_bench.results.files import StoreError
from kn_bench.study.html import index_html
from kn_bench.study.material import Material, Settings
from kn_bench.study.page import Figure, NothingToShow, Section, Table
from kn_bench.study.plots import COLOURS, bars, heat_map, panels, render, short, whiskers
from kn_bench.study.runner import Part, Step, run_study, section_key
from kn_bench.study.sections import CONTROLS, SECTIONS, parts
from kn_bench.study.writing import cell, csv_text, markdown_text, read_section, write_section
from tests.tiny_models import tiny_model

SETTINGS = Settings(
    facts=2,
    prompts=4,
    gaps=6,
    traced=1,
    samples=2,
    edited=2,
    sampled=2,
    sampled_prompts=2,
    draws=3,
    permutations=2,
    resamples=10,
)


def fact(number, relation, subject, true, new):
    queries = tuple(Query(Cloze(f"w{i} {subject} w{i + 1}"), true) for i in (20, 30, 40))
    request = EditRequest(
        f"t/{relation}/{number}", "fact", relation, subject, "w20 {} w21", true, new, "",
        queries=queries,
    )  # fmt: skip
    probes = (
        Probe("reliability/0", "reliability", request.cloze, new, true),
        Probe("synonym/0", "synonym", queries[1].cloze, new, true),
    )
    return Case(request, probes, subject, "t")


def pair(number, subject, prompt, suffix, good, bad, paradigm):
    request = EditRequest(
        f"t/{paradigm}/{number}", "pair", paradigm, subject, prompt, good, bad, suffix
    )
    probe = Probe("reliability/0", "reliability", request.cloze, bad, good, task="pair")
    return Case(request, (probe,), subject, "t")


DETERMINERS = {"this": "w50", "that": "w51", "these": "w52", "those": "w53"}


def made_up_cases():
    """Facts of two relations, and pairs of two paradigms, in the words of the tiny tokenizer."""
    found = [
        fact(i, relation, f"w{5 + i}", f"w{60 + i % 3}", f"w{57 + i % 2}")
        for relation in ("P1", "P2")
        for i in range(3)
    ]
    for i in range(3):
        noun = f"w{10 + i}"
        found.append(pair(i, noun, f"w{25 + i} w7", f"{{}} w{35 + i}", "w50", "w52",
                          "determiner_noun_agreement_2"))  # fmt: skip
        found.append(pair(i, "w51", f"w{25 + i} {{}}", "w9", noun, f"w{13 + i}",
                          "determiner_noun_agreement_1"))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def cases():
    return made_up_cases()


@pytest.fixture(scope="module")
def material(cases):
    return Material(tiny_model("bert"), cases, SETTINGS)


# --- sections ----------------------------------------------------------------------------------

ALWAYS = sorted(set(SECTIONS) - {"determiners", "modifiers", "generations", "invariance"})


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", ALWAYS)
def test_sections_run_on_any_model(name, family, cases):
    made = Material(tiny_model(family), cases, SETTINGS)
    try:
        section = parts([name])[0].run(made)
    except NothingToShow as reason:
        assert name == "tracing"  # a random model knows nothing
        assert "are not answered rightly" in str(reason)  # noqa: PT017
        return
    assert section.id == name
    assert section.findings
    assert section.tables
    for table in section.tables:
        assert all(len(row) == len(table.headers) for row in table.rows)
        assert table.caption.endswith(".")
        markdown_text(table)
    for figure in section.figures:
        assert figure.caption
        ET.fromstring(render(figure.draw).svg)


def test_all_figures_of_the_paper_have_a_section():
    """Figures 10 and 11 are tables; the others are drawn by these sections."""
    from pathlib import Path

    folder = Path(__file__).parent.parent / "kn_bench" / "study" / "sections"
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    assert {int(n) for n in re.findall(r'"Figure (\d+)"', text)} == {*range(1, 10), 11}
    assert "Figure 10" in text
    assert len(CONTROLS) == 8


def test_what_is_missing_is_said(cases):
    facts = [case for case in cases if case.task == "fact"]
    made = Material(tiny_model("bert"), facts, SETTINGS)
    for name, reason in [
        ("modifiers", "No case has a gap where a determiner stands"),
        ("determiners", "No pair asks for this or that or these or those"),
    ]:
        with pytest.raises(NothingToShow, match=reason):
            parts([name])[0].run(made)
    with pytest.raises(ValueError, match="there is no section 'figure1'; known are determiners"):
        parts(["figure1"])


def test_a_model_that_no_case_fits_has_nothing_to_show():
    """Each section says so: all words of the embedded cases are unknown to the tiny tokenizer."""
    made = Material(tiny_model("gpt2"), embedded.load(limit=1).cases, SETTINGS)
    for part in parts(sorted(set(SECTIONS) - {"invariance"})):
        with pytest.raises(NothingToShow, match=r"^No .+"):
            part.run(made)


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
            (Table("t", "A table.", ("a", "b"), ((1, Interval(0.5, 0.4, 0.6, 9)),)),),
            (Figure("f", "A figure.", lambda: panels(1)[0]),),
        )

    return Part("made_up", "Made up?", run, (source,))


def test_a_study_resumes_where_all_is_as_it_was(tmp_path, material):
    calls: list[Material] = []
    steps: list[Step] = []
    part = counted_part(calls, tmp_path)
    out = tmp_path / "out"
    first = run_study(material, [part], out, tell=steps.append)
    again = run_study(material, [part], out, tell=steps.append)
    assert [step.state for step in steps] == ["begins", "done", "kept"]
    assert len(calls) == 1
    assert [dataclasses.replace(one, seconds=0) for one in first] == [
        dataclasses.replace(one, seconds=0) for one in again
    ]
    (out / "made_up" / "f.svg").unlink()  # a section that is not whole is made anew
    run_study(material, [part], out)
    part.sources[0].write_text("two")
    run_study(material, [part], out)
    run_study(material, [part], out, again=True)
    assert len(calls) == 4


def test_a_section_depends_on_model_cases_and_settings(material, cases, tmp_path):
    part = counted_part([], tmp_path)
    others = [
        Material(tiny_model("gpt2"), cases, SETTINGS),
        Material(material.lm, cases[:-1], SETTINGS),
        Material(material.lm, cases, dataclasses.replace(SETTINGS, seed=1)),
    ]
    keys = {section_key(one, part) for one in (material, *others)}
    assert len(keys) == 4
    assert section_key(Material(material.lm, cases[::-1], SETTINGS), part) in keys


def test_what_a_section_writes(tmp_path, material):
    run_study(material, [counted_part([], tmp_path)], tmp_path / "out")
    folder = tmp_path / "out" / "made_up"
    names = {path.name for path in folder.iterdir()}
    assert names == {"t.csv", "t.md", "f.svg", "f.png", "section.json"}
    assert (folder / "t.csv").read_text() == "a,b,b low,b high,b n\n1,0.5,0.4,0.6,9\n"
    assert "0.50 [0.40, 0.60] n=9" in (folder / "t.md").read_text()
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
        found = dict(attrs)
        self.ids += [found["id"]] if tag == "section" else []
        self.links += [found["href"]] if tag == "a" else []
        self.sources += [found["src"]] if "src" in found else []
        assert tag not in ("link", "iframe")


def test_the_page_is_one_file_with_all_sections(tmp_path, material):
    section = Section("a", "A <b>?", "Q", ("x < y",), (), (Figure("f", "c", lambda: panels(1)[0]),))
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
    table = Table("t", "c.", ("a", "b"), (("x", None), ("y", Interval(1.0, 0.0, 2.0, 3))))
    assert csv_text(table).splitlines()[1:] == ["x,,,,", "y,1,0,2,3"]


def test_colours_can_be_told_apart_by_the_colour_blind():
    """After the deuteranope's confusion of red and green (Vienot et al. 1999), and in grey."""
    import matplotlib.colors as mc

    rgb = np.array([mc.to_rgb(colour) for colour in COLOURS]) ** 2.2
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714],
                       [0.0299566, 0.184309, 1.46709]])  # fmt: skip
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    seen = rgb @ (np.linalg.inv(to_lms) @ blind @ to_lms).T
    seen = np.clip(seen, 0, 1) ** (1 / 2.2)
    for i in range(4):
        for j in range(i):
            assert np.abs(seen[i] - seen[j]).max() > 0.15


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


# --- material ----------------------------------------------------------------------------------


def test_samples_spread_over_relations(material):
    chosen = material.sample
    assert len(chosen) <= 4
    facts = [one.group.relation for one in chosen if one.group.task == "fact"]
    assert sorted(facts) == ["P1", "P2"]
    assert all(len(one.fitted) == len(one.attributions) == 2 for one in chosen)


def test_windows_follow_the_depth(material):
    assert material.window == 1
    wide = Material(material.lm, (), dataclasses.replace(SETTINGS, window=7))
    assert wide.window == 7


# --- commands ----------------------------------------------------------------------------------


def test_neurons_are_named_by_layer_and_number():
    assert studying.neurons(["9:1094", "0:2"]) == (Neuron(9, 1094), Neuron(0, 2))
    assert studying.neurons(None) == ()
    with pytest.raises(ValueError, match=r"'9\.1094' names no neuron: write LAYER:NUMBER"):
        studying.neurons(["9.1094"])


def test_a_neuron_that_the_model_has_not_is_refused():
    from kn_bench.commands import modifiers

    result = CliRunner().invoke(modifiers.app, ["tiny-bert", "--neuron", "9:1094"])
    assert str(result.exception) == (
        "tiny-bert has no neuron 9:1094: its layers are 0 to 2, the neurons of each 0 to 511"
    )


@pytest.mark.parametrize("name", ["localise", "modifiers", "trace", "control", "study"])
def test_commands_explain_themselves(name):
    from importlib import import_module

    app = import_module(f"kn_bench.commands.{name}").app
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "model" in result.output


def test_a_section_that_is_not_known_is_refused_before_anything_is_loaded():
    from kn_bench.commands.control import app

    result = CliRunner().invoke(app, ["figure1", "no-such-model"])
    assert isinstance(result.exception, ValueError)
    assert "there is no section 'figure1'" in str(result.exception)


@pytest.mark.parametrize("name", ["localise", "modifiers", "trace", "study"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(name, tmp_path):
    from importlib import import_module

    (tmp_path / "file").touch()
    app = import_module(f"kn_bench.commands.{name}").app
    result = CliRunner().invoke(app, ["no-such-model", "-o", str(tmp_path / "file")])
    assert isinstance(result.exception, StoreError)
    assert "file cannot be written (File exists)" in str(result.exception)


def test_a_command_prints_findings_and_keeps_the_page(tmp_path, monkeypatch, material):
    monkeypatch.setattr(studying, "material", lambda *_, **__: material)
    from kn_bench.commands.control import app

    result = CliRunner().invoke(app, ["dose", "any", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "how many neurons hold an answer" in result.output
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "dose" / "needed.csv").is_file()


# --- on an embedded model ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["determiners", "modifiers", "generations", "invariance"])
def test_sections_that_need_words_run_on_an_embedded_model(name):
    from kn_bench.cases import sources
    from kn_bench.model.loading import load_model

    wanted = ["P36", "determiner_noun_agreement_1", "determiner_noun_agreement_2"]
    found = sources.load("embedded", relations=wanted, limit=30).cases
    settings = dataclasses.replace(SETTINGS, facts=1, corpus_lines=300)
    made = Material(load_model("tiny-bert"), found, settings)
    section = parts([name])[0].run(made)
    assert section.findings
    assert all(table.rows for table in section.tables)
    for figure in section.figures:
        ET.fromstring(render(figure.draw).svg)


def test_number_neurons_may_be_named(cases):
    from kn_bench.study.sections.determiners import number_neurons

    named = dataclasses.replace(SETTINGS, neurons=(Neuron(1, 3),))
    made = Material(tiny_model("bert"), cases, named)
    assert number_neurons(made) == {"given 1:3": Neuron(1, 3)}


def test_overturned_answers_are_counted_as_one_would_by_hand(material):
    from kn_bench.localise.interventions import answers, suppress
    from kn_bench.study.sections.overturn import overturn

    for one in overturn(material, material.profiles):
        edit = suppress(material.neurons(one.profile))
        wrong = [query for query in material.rejected(one.profile) if query is not None]
        true = list(one.profile.fitted)
        assert len(wrong) == len(true)
        before, after = (answers(material.lm, true, [e]) for e in (NoEdit(), edit))
        rival = [answers(material.lm, wrong, [e]).log_prob for e in (NoEdit(), edit)]
        for i in range(len(true)):
            had, has = before.log_prob[i] > rival[0][i], after.log_prob[i] > rival[1][i]
            assert one.pair[i] == (not has) if had else np.isnan(one.pair[i])
            assert one.back[i] == has if not had else np.isnan(one.back[i])
            lost = 1 - after.probability[i] / before.probability[i]
            assert one.shift[i] == pytest.approx(lost)
