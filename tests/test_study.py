"""The sections of the study on small random models, and what they are made of.

Slow parts use a handful of cases: what the figures say is not tested here, the statistics behind
them are (tests of localisation, modifiers, controls and tracing).
"""

import dataclasses
import itertools
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from kn_bench.cases.case import Cloze, Query
from kn_bench.cases.sources import embedded
from kn_bench.editing.edit import NoEdit
from kn_bench.localise.selection import Neuron
from kn_bench.measure.statistics import Interval
from kn_bench.model.corpus import NamedCorpus, Texts
from kn_bench.model.loading import load_model
from kn_bench.study import plots
from kn_bench.study.edited import knowledge_neurons
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow
from kn_bench.study.plots import render
from kn_bench.study.sections import CONTROLS, SECTIONS, generations, invariance, parts, place
from kn_bench.study.sections.direction import directed
from kn_bench.study.writing import cell
from tests.made_up_study import SETTINGS, fact, made_up_cases, pair
from tests.tiny_models import _CONFIGS, tiny_model


def cells(table):
    return " ".join(cell(value, table.digits) for row in table.rows for value in row)


def asked(case):
    """Return a case's request with what neurons are located over, and a background."""
    own = Query(case.request.cloze, case.request.target_true)
    return dataclasses.replace(
        case.request,
        queries=(own, *case.request.queries, Query(Cloze("w3"), "w4")),
        background=((Query(Cloze("w1"), "w2"),), (Query(Cloze("w9"), "w8"),)),
    )


# --- sections ----------------------------------------------------------------------------------

ALWAYS = sorted(set(SECTIONS) - {"determiners", "modifiers", "generations", "invariance"})


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", ALWAYS)
def test_sections_run_on_any_model(name, family):
    leading = pair(9, "w51", "{}", "w9", "w10", "w13", "determiner_noun_agreement_1")
    first = pair(8, "w10", "", "{} w35", "w50", "w52", "determiner_noun_agreement_2")
    material = Material(tiny_model(family), [*made_up_cases(), leading, first], SETTINGS)
    try:
        section = parts([name])[0].run(material)
    except NothingToShow as reason:
        assert name == "tracing"  # a random model knows nothing
        assert "are not answered rightly" in str(reason)  # noqa: PT017
        return
    assert SECTIONS[name].on_groups == ("profiles" in vars(material))
    left_out = [note for note in section.notes if "1 with nothing before the gap" in note]
    says_so = SECTIONS[name].on_groups or name == "direction"
    assert len(left_out) == (says_so and family == "gpt2")
    assert section.id == name
    assert section.findings
    assert section.tables
    for table in section.tables:
        assert all(len(row) == len(table.headers) for row in table.rows)
        assert table.caption.endswith(".")
        assert cells(table)
    for figure in section.figures:
        assert figure.caption
        ET.fromstring(render(figure.draw).svg)


def test_all_figures_of_the_paper_have_a_section():
    """Figures 10 and 11 are tables; the others are drawn by these sections."""
    from pathlib import Path

    folder = Path(__file__).parent.parent / "kn_bench" / "study" / "sections"
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    assert {int(n) for n in re.findall(r'"Figure (\d+)"', text)} == {*range(1, 10), 11}
    assert "Figure 10" in text
    assert len(CONTROLS) == 8


def test_what_is_missing_is_said():
    facts = [case for case in made_up_cases() if case.task == "fact"]
    material = Material(tiny_model("bert"), facts, SETTINGS)
    for name, reason in [
        ("modifiers", "No case has a gap where a determiner stands"),
        ("determiners", "No pair asks for this or that or these or those"),
    ]:
        with pytest.raises(NothingToShow, match=reason):
            parts([name])[0].run(material)
    with pytest.raises(ValueError, match="section 'figure1': expected one of determiners"):
        parts(["figure1"])


def test_one_fact_has_no_intervals_and_the_text_no_nan():
    one_fact = embedded.load(only=["P36"], limit=1).cases
    material = Material(load_model("tiny-gpt2"), one_fact, SETTINGS)
    for part in parts(["overturn", "tracing", "matched", "dose", "activators", "selectivity"]):
        section = part.run(material)
        text = " ".join([*section.findings, *map(cells, section.tables)])
        assert section.findings
        assert "nan" not in text


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::scipy.stats.ConstantInputWarning")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("factor", [0.0, 1000.0])
def test_findings_of_a_model_that_is_sure_of_all_or_of_nothing_hold_no_nan(factor, family):
    """Where no effect varies, no answer is right, or no perplexity can be held."""
    lm = tiny_model.__wrapped__(family, seed=3)
    lm.output_embeddings.data.mul_(factor)
    if family == "bert":
        lm.hf.cls.predictions.decoder.bias.data.zero_()
    material = Material(lm, made_up_cases(), SETTINGS)
    names = ["overturn", "matched", "dose", "erasing", "choice", "selectivity", "activators"]
    for part in parts(names):
        findings = part.run(material).findings
        assert findings
        assert not re.search(r"\b(nan|inf|None)\b|x(nan|inf)|nan%", " ".join(findings)), part.id


ROME_S_TEXT = Texts(
    tuple(" ".join(f"w{5 + (i * j * j + 7 * j) % 59}" for j in range(9)) for i in range(60))
)


@pytest.mark.parametrize(
    ("wide", "silent"),
    [(True, (2,)), (True, (1,)), (False, ()), (False, (1,)), (False, (0, 1, 2))],
)
@pytest.mark.parametrize("name", ["place", "direction"])
def test_what_a_model_cannot_be_edited_by_is_left_out_and_said(name, wide, silent, monkeypatch):
    """Embeddings narrower than the layers, and layers whose C has no inverse."""
    monkeypatch.setitem(_CONFIGS, "opt", {"ffn_dim": 24, "word_embed_proj_dim": 16 if wide else 12})
    lm = tiny_model.__wrapped__("opt", seed=10 * wide + sum(silent))
    lm.corpus = NamedCorpus("made up", ROME_S_TEXT)
    for layer in silent:  # its first neuron never fires
        dict(lm.layers[layer].named_parameters())["fc1.bias"].data[0] = -1e4
    cases = [dataclasses.replace(case, request=asked(case)) for case in made_up_cases()]
    part, material = parts([name])[0], Material(lm, cases, SETTINGS)
    edited = {"kn-edit"} if wide else set()
    places = range(3) if name == "place" else [1]
    edited |= {"rome"} if set(places) - set(silent) else set()
    if not edited:
        with pytest.raises(NothingToShow, match=r"Left out of kn-edit: .*Left out of rome: "):
            part.run(material)
        return
    section = part.run(material)
    assert {row[0] for row in section.tables[0].rows} == edited
    told = " ".join(section.notes)
    assert wide == ("output embeddings of width 12 and layers of width 16" not in told)
    assert ("the text never activates 1 of its 24 neurons" in told) == bool(
        set(places) & set(silent)
    )
    if name == "place":
        shown = {str(row[1]).split(" (")[0] for row in section.tables[0].rows}
        for layer in range(3):
            assert (f"layer {layer}" in shown) == (layer not in silent)
        assert ("last word" in shown) == (1 not in silent)


def test_a_model_that_no_case_fits_has_nothing_to_show():
    """Each section says so: all words of the embedded cases are unknown to the tiny tokenizer."""
    material = Material(tiny_model("gpt2"), embedded.load(limit=1).cases, SETTINGS)
    for part in parts(sorted(set(SECTIONS) - {"invariance"})):
        with pytest.raises(NothingToShow, match=r"^No .+"):
            part.run(material)


# --- material ----------------------------------------------------------------------------------


def test_samples_spread_over_relations(material):
    chosen = material.sample
    assert len(chosen) <= 4
    facts = [profile.group.relation for profile in chosen if profile.group.task == "fact"]
    assert sorted(facts) == ["P1", "P2"]
    assert all(len(profile.encoded) == len(profile.attributions) == 2 for profile in chosen)


def test_windows_follow_the_depth(material):
    assert material.window == 1
    wide = Material(material.lm, (), dataclasses.replace(SETTINGS, window=7))
    assert wide.window == 7


# --- on an embedded model ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["determiners", "modifiers", "generations", "invariance"])
def test_sections_that_need_words_run_on_an_embedded_model(name):
    from kn_bench.cases import sources

    wanted = ["P36", "determiner_noun_agreement_1", "determiner_noun_agreement_2"]
    chosen = sources.load("embedded", relations=wanted, limit=30).cases
    settings = dataclasses.replace(SETTINGS, facts=1, corpus_lines=300)
    material = Material(load_model("tiny-bert"), chosen, settings)
    section = parts([name])[0].run(material)
    assert SECTIONS[name].on_groups == ("profiles" in vars(material))
    assert section.findings
    assert all(table.rows for table in section.tables)
    for figure in section.figures:
        ET.fromstring(render(figure.draw).svg)


def test_what_an_edit_may_not_change_is_read_off_the_texts(monkeypatch):
    """Also where neither text gives a known answer; the old inverse is to be revoked."""
    monkeypatch.setattr(generations, "methods", lambda lm: [("kn", knowledge_neurons(lm))])
    (case,) = embedded.load(only=["P36"], limit=1).cases
    probes = [p for p in case.probes if p.kind == "old_inverse"]
    for probe in case.probes:
        if probe.kind == "same_relation" and len(probes) == 1:
            probes.append(probe._replace(expected="Atlantis", rejected="Nowhere"))
    cases = [dataclasses.replace(case, probes=(case.probes[0], *probes))]
    _, *rows = generations.run(Material(load_model("tiny-gpt2"), cases, SETTINGS)).tables[0].rows
    (*_, is_text, became, wanted, given) = map(str, rows[0])
    assert (wanted, given) == (f"not {case.request.subject}", "yes")
    assert is_text.startswith(case.request.subject)
    assert not became.startswith(case.request.subject)
    (*_, is_text, became, wanted, given) = map(str, rows[1])
    assert is_text.split()[0] != became.split()[0]
    assert (wanted, given) == ("as before", "no")


def test_only_an_inverse_that_was_known_is_revoked(monkeypatch):
    """Of two inverses that are asked, the model never gave the second."""
    monkeypatch.setattr(invariance, "methods", lambda lm: [("kn", knowledge_neurons(lm))])
    (case,) = embedded.load(only=["P36"], limit=1).cases
    never = [p._replace(expected="Atlantis") if p.kind == "old_inverse" else p for p in case.probes]
    request = dataclasses.replace(case.request, id="t/never")
    cases = [case, dataclasses.replace(case, request=request, probes=tuple(never))]
    table = invariance.run(Material(load_model("tiny-gpt2"), cases, SETTINGS)).tables[1]
    (row,) = (dict(zip(table.headers, row, strict=True)) for row in table.rows)
    assert (row["cases"], row["old known"], row["old revoked"]) == (2, 1, 1)


@pytest.mark.parametrize("section", [generations, invariance])
def test_facts_that_cannot_be_put_to_a_model_are_counted(section):
    """A masked model fills no gap with several word pieces."""
    loaded = embedded.load(only=["P1376", "P36"])
    lm = load_model("tiny-bert")
    (unfit,) = (case for case in loaded.cases if case.id == "embedded/P1376/Szczecin")
    fitting = next(case for case in loaded.cases if case.relation == "P36")
    (note,) = section.run(Material(lm, [unfit, fitting], SETTINGS)).notes
    assert re.fullmatch(r"Left out of kn-edit: 1 of 2 facts, as .*\w.*\.", note)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("words", "is_drawn"),
    [((), False), (("those",), True), (("these", "this", "every", "many", "few", "no"), True)],
)
def test_a_corpus_may_have_few_of_the_modifiers_or_none(words, is_drawn, tmp_path):
    """What it has none of is not drawn, and the text says so and holds no nan."""
    from kn_bench.cases import sources

    wanted = ["determiner_noun_agreement_1", "determiner_noun_agreement_2"]
    chosen = sources.load("embedded", relations=wanted, limit=8).cases
    noun = next(c.request.target_true for c in chosen if c.relation == wanted[0])
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"We saw {word} {noun} there.\n" for word in words or ["silent"]))
    settings = dataclasses.replace(SETTINGS, corpus=corpus, neurons=(Neuron(1, 3),))
    section = parts(["modifiers"])[0].run(Material(load_model("tiny-bert"), chosen, settings))
    assert ("co_occurrence" in [figure.name for figure in section.figures]) == is_drawn
    assert any("figure of co-occurrence is left out" in note for note in section.notes) != is_drawn
    assert "nan" not in " ".join(section.findings)
    for figure in section.figures:
        ET.fromstring(render(figure.draw).svg)
        assert not any("nan" in axes.get_title() for axes in figure.draw().axes)


def test_shares_of_a_number_neuron_are_counted_also_where_it_is_not_listed():
    """The table leaves out what recurs seldom; the sentence gives its shares all the same."""
    from kn_bench.study.sections.determiners import LEAST, determiner_sets

    cases = embedded.load(only=["determiner_noun_agreement_2"], limit=24).cases
    settings = dataclasses.replace(SETTINGS, prompts=6)
    material = Material(load_model("tiny-bert"), cases, settings)
    sets = determiner_sets(material)
    shares = {
        neuron: [sum(neuron in pair for pair in pairs) / len(pairs) for pairs in sets.values()]
        for neuron in {neuron for pairs in sets.values() for pair in pairs for neuron in pair}
    }
    seldom = next(n for n in sorted(shares) if max(shares[n]) < LEAST)
    often = max(sorted(shares), key=lambda n: min(shares[n]))
    never = Neuron(0, next(i for i in range(material.lm.d_mlp) if Neuron(0, i) not in shares))
    for neuron in (seldom, often, never):
        material.settings = dataclasses.replace(settings, neurons=(neuron,))
        told = parts(["determiners"])[0].run(material).findings[0]
        percent = [int(n) for n in re.findall(r"(\d+)% of the", told)]
        assert percent == [round(100 * s) for s in shares.get(neuron, [0] * 4)]


@pytest.mark.parametrize("name", ["place", "direction"])
def test_intervals_over_subjects_or_nouns_resample_the_clusters_of_the_cases(name, monkeypatch):
    """Not the word that governs: many pairs of one paradigm have the same determiner."""
    from kn_bench.measure.statistics import mean_interval

    cases = [
        dataclasses.replace(case, cluster=f"cluster of {case.id}", request=asked(case))
        for case in made_up_cases()
    ]
    resampled = set()

    def noted(values, clusters, **options):
        resampled.update(clusters)
        return mean_interval(values, clusters, **options)

    monkeypatch.setattr("kn_bench.study.edited.mean_interval", noted)
    parts([name])[0].run(Material(tiny_model("bert"), cases, SETTINGS))
    assert resampled <= {case.cluster for case in cases}
    assert {case.task for case in cases if case.cluster in resampled} == {"fact", "pair"}


def test_number_neurons_may_be_named():
    from kn_bench.study.sections.determiners import number_neurons

    named = dataclasses.replace(SETTINGS, neurons=(Neuron(1, 3),))
    material = Material(tiny_model("bert"), made_up_cases(), named)
    assert number_neurons(material) == {"given 1:3": Neuron(1, 3)}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_turning_an_edit_round_changes_its_answers_alone(family):
    """The neurons that a relation shares are left out in both directions."""
    given = {case.id: asked(case) for case in made_up_cases()}
    cases = [dataclasses.replace(case, request=given[case.id]) for case in made_up_cases()]
    turned = [
        request
        for direction, request in directed(Material(tiny_model(family), cases, SETTINGS))[0]
        if direction == "wrong to right"
    ]
    assert {request.task for request in turned} == {"fact", "pair"}
    for request in turned:
        own = given[request.id]
        answers = {own.target_true: own.target_new}
        assert request == dataclasses.replace(
            own,
            target_true=own.target_new,
            target_new=own.target_true,
            queries=tuple(Query(c, answers.get(a, a)) for c, a in own.queries),
        )
        assert request.background == own.background  # which equality may leave out


def test_the_probability_of_an_answer_is_that_of_all_its_tokens():
    """The mean of its tokens' probabilities stood there."""
    lm = tiny_model("gpt2")
    facts = [fact(i, "P1", f"w{5 + i}", "w60 w61", "w57") for i in range(2)]
    section = parts(["levels"])[0].run(Material(lm, facts, SETTINGS))
    (table,) = (table for table in section.tables if table.name == "neurons_by_prompt")
    for _, prompt, probability, *_ in table.rows:
        left, right = str(prompt).split(" [w60 w61]")
        assert not right
        text = f"{left} w60 w61"
        ids = lm.tokens.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            following = lm.hf(input_ids=ids).logits[0].double().softmax(-1)
        own = following[-3, ids[0, -2]] * following[-2, ids[0, -1]]
        assert probability == pytest.approx(float(own), rel=1e-4)


def test_overturned_answers_are_counted_as_one_would_by_hand(material):
    from kn_bench.localise.interventions import answers, suppress
    from kn_bench.study.sections.overturn import overturn

    (table,) = parts(["overturn"])[0].run(material).tables
    (row,) = (row for row in table.rows if row[0] == "all facts")
    ns = [interval.n for interval in row if isinstance(interval, Interval)]
    counted = np.zeros(4, dtype=int)  # lost, was preferred, was not preferred, was the argmax
    for outcome in overturn(material, material.profiles):
        edit = suppress(material.neurons(outcome.profile))
        wrong = [query for query in material.rejected(outcome.profile) if query is not None]
        true = list(outcome.profile.encoded)
        assert len(wrong) == len(true)
        before, after = (answers(material.lm, true, [e]) for e in (NoEdit(), edit))
        rival = [answers(material.lm, wrong, [e]).log_prob for e in (NoEdit(), edit)]
        for i in range(len(true)):
            had, has = before.log_prob[i] > rival[0][i], after.log_prob[i] > rival[1][i]
            assert outcome.pair[i] == (not has) if had else np.isnan(outcome.pair[i])
            assert outcome.back[i] == has if not had else np.isnan(outcome.back[i])
            lost = 1 - after.probability[i] / before.probability[i]
            assert outcome.shift[i] == pytest.approx(lost)
            if outcome.profile.group.task == "fact":
                counted += (1, had, not had, before.right[i])
    assert ns == counted.tolist()
    assert "turned right among those that were wrong; means over prompts" in table.caption


@pytest.mark.parametrize("name", ["place", "direction"])
@pytest.mark.parametrize(("corpus", "rome"), [(True, "rome"), (False, "rome-no-c")])
def test_rome_is_called_by_what_it_is_made_with(name, corpus, rome, monkeypatch, tmp_path):
    monkeypatch.setenv("KN_BENCH_CORPUS", str(tmp_path / "nowhere"))
    lm = tiny_model.__wrapped__("gpt2", seed=5)
    lm.corpus = NamedCorpus("made up", ROME_S_TEXT) if corpus else None
    section = parts([name])[0].run(Material(lm, made_up_cases(), SETTINGS))
    assert {row[0] for row in section.tables[0].rows} == {"kn-edit", rome}


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 9, 10, 11, 30, 48])
def test_rome_is_made_at_its_own_layer_and_at_ten_others_from_the_first_to_the_last(n_layers):
    chosen = n_layers // 3
    layers = place.layers_beside(chosen, n_layers)
    assert layers == sorted({*layers})
    assert {0, chosen, n_layers - 1} <= {*layers}
    assert n_layers > 10 or layers == list(range(n_layers))
    assert len(layers) <= 11
    gaps = [below - above for above, below in itertools.pairwise(layers)]
    assert max(gaps, default=0) <= math.ceil((n_layers - 1) / 9)


@pytest.mark.parametrize("n", [1, 4, 12, 13, 30, 48])
def test_layers_are_labelled_so_that_no_label_lies_on_another(n):
    places = plots.ticked(n)
    assert len(places) <= 12
    assert places[0] == 0
    assert n > 12 or places == list(range(n))
    figure = Figure()
    axes = figure.subplots()
    plots.heat_map(axes, np.zeros((2, n)), rows=["a", "b"], columns=[str(i) for i in range(n)])
    assert [int(label.get_text()) for label in axes.get_xticklabels()] == places


def test_what_stands_in_for_what_is_missing_is_said():
    """One relation has no unrelated text: the group's own stood under that name."""
    cases = [case for case in made_up_cases() if case.task == "fact"]
    cases = [case for case in cases if case.relation == cases[0].relation]
    material = Material(tiny_model("gpt2"), cases, SETTINGS)
    material.__dict__["without_neurons"] = ("none selected",)
    section = parts(["erasing"])[0].run(material)
    unrelated = [row[4] for row in section.tables[0].rows]
    assert {cell.n for cell in unrelated if isinstance(cell, Interval)} == {0}
    assert "no text is unrelated" in " ".join(section.notes)
    assert "none selected" in section.notes
    assert "none selected" not in parts(["dose"])[0].run(material).notes


def test_a_share_that_all_groups_agree_on_has_an_interval():
    material = Material(tiny_model("gpt2"), made_up_cases(), SETTINGS)
    rows = parts(["dose"])[0].run(material).tables[0].rows
    for row in rows:
        for accuracy in row[4:6]:
            assert isinstance(accuracy, Interval)
            assert accuracy.n < 2 or accuracy.high - accuracy.low > 0


@pytest.mark.parametrize(("objects", "alone"), [(("w60", "w60"), 2), (("w60", "w61"), 0)])
def test_facts_that_nothing_is_compared_with_have_no_p(objects, alone):
    cases = [fact(i, "P1", f"w{5 + i}", true, "w57") for i, true in enumerate(objects)]
    section = parts(["activators"])[0].run(Material(tiny_model("gpt2"), cases, SETTINGS))
    rows = section.tables[0].rows
    assert [row[2].n for row in rows if isinstance(row[2], Interval)] == [2 - alone] * 7
    assert all((row[4] is None) == bool(alone) for row in rows)
    note = f"as no other of their relation has another object: {alone}."
    assert (note in " ".join(section.notes)) == bool(alone)


def test_groups_of_a_single_prompt_are_not_measured_and_named():
    first, *facts = [case for case in made_up_cases() if case.task == "fact"]
    request = dataclasses.replace(first.request, queries=first.request.queries[:1])
    cases = [dataclasses.replace(first, request=request), *facts]
    settings = dataclasses.replace(SETTINGS, facts=3)
    (note,) = parts(["levels"])[0].run(Material(tiny_model("gpt2"), cases, settings)).notes
    assert note.startswith("Of 6 facts and classes these have a single prompt and are not measured")
    assert note.endswith(f": {first.id}.")


@pytest.mark.parametrize("name", ["choice", "erasing", "levels"])
def test_a_section_that_needs_two_prompts_says_so(name):
    cases = [case for case in made_up_cases() if case.task == "fact"]
    single = [
        dataclasses.replace(
            case, request=dataclasses.replace(case.request, queries=case.request.queries[:1])
        )
        for case in cases
    ]
    with pytest.raises(NothingToShow, match="No fact or class has two prompts"):
        parts([name])[0].run(Material(tiny_model("gpt2"), single, SETTINGS))
