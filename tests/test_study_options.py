"""The options that say how much a study looks at: each reaches the study, and does what it says."""

import re
import shutil
from dataclasses import replace
from importlib import import_module

import pytest
from typer.testing import CliRunner

import kn_bench as kn
from kn_bench.commands import runner
from kn_bench.commands import study as study_command
from kn_bench.localise.selection import Neuron
from kn_bench.measure.statistics import Interval
from kn_bench.model import embedded
from kn_bench.model.loading import load_model
from kn_bench.study.material import Material, StudySettings
from kn_bench.study.plots import TASK
from kn_bench.study.sections import parts, place, selectivity
from kn_bench.study.sections.direction import directed
from kn_bench.study.sections.tracing import traced
from kn_bench.study.sizes import PARADIGMS, SIZES, sample_of, settings_for
from tests.made_up_study import SETTINGS, fact, made_up_cases, pair
from tests.tiny_models import tiny_model


@pytest.fixture
def asked_for(monkeypatch):
    """What a command asks ``run_sections`` for."""
    calls = []

    def record(names, request, settings, **options):
        calls.append((request, settings))

    for name in ("study", "trace", "localise"):
        monkeypatch.setattr(import_module(f"kn_bench.commands.{name}"), "run_sections", record)
    return calls


@pytest.mark.parametrize("name", ["facts", "prompts", "edited", "traced", "samples", "sampled"])
def test_a_number_reaches_the_study_and_is_positive(name, asked_for, tmp_path):
    arguments = ["tiny-bert", "-o", str(tmp_path), f"--{name}"]
    result = CliRunner().invoke(study_command.app, [*arguments, "17"])
    assert result.exit_code == 0, result.output
    ((request, settings),) = asked_for
    assert vars(settings) == vars(StudySettings()) | {name: 17}
    assert request.known is None
    assert CliRunner().invoke(study_command.app, [*arguments, "0"]).exit_code == 2
    assert len(asked_for) == 1


@pytest.mark.parametrize("name", ["study", "trace", "localise"])
def test_known_reaches_the_request(name, asked_for, tmp_path):
    app = import_module(f"kn_bench.commands.{name}").app
    for flag in ("--known", "--no-known"):
        result = CliRunner().invoke(app, ["any", "-o", str(tmp_path), flag])
        assert result.exit_code == 0, result.output
    assert [request.known for request, _ in asked_for] == [True, False]


def material(**settings):
    return Material(tiny_model("bert"), made_up_cases(), replace(SETTINGS, **settings))


@pytest.mark.parametrize("n", [1, 3])
def test_facts_edited_and_sampled_count_what_they_say(n):
    of_relation = {"P1": n, "P2": n}
    groups = [profile.group.relation for profile in material(facts=n).of_task("fact")]
    assert {relation: groups.count(relation) for relation in groups} == of_relation
    requests = [request.relation for request in material(edited=n).requests("fact")]
    assert {relation: requests.count(relation) for relation in requests} == of_relation
    sample = material(facts=3, sampled=n).sample
    assert sum(profile.group.task == "fact" for profile in sample) == n


def test_levels_say_how_many_groups_and_prompts_are_sampled():
    """Three groups of each task at most, though each of two relations has three facts."""
    section = parts(["levels"])[0].run(material(facts=3, sampled=3, sampled_prompts=2))
    captions = [
        next(shown.caption for shown in section.tables if shown.name == "levels_by_method"),
        next(shown.caption for shown in section.figures if shown.name == "methods"),
    ]
    for caption in captions:
        assert "6 prompts of 3 facts and 2 prompts of 1 class of pairs" in caption


def test_traced_and_samples_are_those_of_the_traces():
    lm = load_model("tiny-gpt2")
    cases = kn.load_cases("embedded", relation=["P36", "P103"], limit=6)
    few, more = (
        traced(Material(lm, cases, StudySettings(traced=n, samples=n)), "fact") for n in (1, 2)
    )
    assert sorted(case.relation for case in few.cases) == ["P103", "P36"]
    assert sorted(case.relation for case in more.cases) == ["P103", "P103", "P36", "P36"]
    assert {case.id for case in few.cases} < {case.id for case in more.cases}
    # another number of samples of the noise is another mean
    of_case = {case.id: trace for case, trace in zip(more.cases, more.study.traces, strict=True)}
    for case, trace in zip(few.cases, few.study.traces, strict=True):
        assert trace.clean == pytest.approx(of_case[case.id].clean, abs=1e-6)
        assert trace.corrupted != pytest.approx(of_case[case.id].corrupted, abs=1e-6)


def test_known_keeps_the_facts_that_the_model_answers_and_all_pairs(capsys):
    lm = load_model("tiny-gpt2")
    cases = [
        *kn.load_cases("embedded", relation=["P36"], limit=8),
        *kn.load_cases("embedded", relation=["determiner_noun_agreement_1"], limit=2),
    ]
    wrong = replace(
        cases[0],
        request=replace(cases[0].request, id="t/wrong", target_true="Nowhere"),
        probes=tuple(probe._replace(rejected="Nowhere") for probe in cases[0].probes),
    )
    kept = runner.known_facts(lm, [*cases, wrong], seed=0)
    answered = {
        case.id
        for case in cases
        if case.task == "pair"
        or lm.generate(case.request.cloze.left).strip().startswith(case.request.target_true)
    }
    assert {case.id for case in kept} == answered
    assert re.search(r"tiny-gpt2 knows \d of 9 facts asked", capsys.readouterr().err)
    with pytest.raises(ValueError, match="--known: tiny-gpt2 answers none of 1 facts; name other"):
        runner.known_facts(lm, [wrong], seed=0)
    assert runner.known_facts(lm, [wrong], seed=0, needed=False) == [wrong]
    assert runner.known_facts(lm, cases[8:], seed=0) == cases[8:]


# --- what is edited -----------------------------------------------------------------------------

TWICE = [  # the second is the first to a causal model, and the third has nothing before its gap
    ("w25 w7", "{} w35"),
    ("w25 w7", "{} w36"),
    ("", "{} w35"),
    ("w26 w7", "{} w35"),
]


def said_twice():
    """Pairs of one class, fewer to a causal model, and a fact that asks it nothing."""
    pairs = [
        pair(i, "w10", prompt, suffix, "w50", "w52", "determiner_noun_agreement_2")
        for i, (prompt, suffix) in enumerate(TWICE)
    ]
    facts = [fact(i, "P1", f"w{5 + i}", f"w{60 + i}", "w57") for i in range(2)]
    leading = replace(facts[0].request, prompt="", suffix="{} w21")
    return [replace(facts[0], request=leading), facts[1], *pairs]


@pytest.mark.parametrize(("family", "pairs", "facts"), [("gpt2", 2, 1), ("bert", 4, 2)])
@pytest.mark.parametrize("edited", [4, 8])
def test_prompts_that_say_nothing_are_not_edited_and_do_not_take_the_place_of_others(
    family, pairs, facts, edited
):
    settings = replace(SETTINGS, edited=edited)
    section = parts(["place"])[0].run(Material(tiny_model(family), said_twice(), settings))
    rows = [row for row in section.tables[0].rows if row[0] == "kn-edit"]
    numbers = {row[1:3]: row[3].n for row in rows if isinstance(row[3], Interval)}
    for where in ("located", "random, same layers", "most active", "random, last layer"):
        assert numbers[where, "syntax"] == min(pairs, edited // 2)
        assert numbers[where, "facts"] == facts
    told = " ".join(section.notes)
    assert ("Left out of kn-edit: 1 with nothing before the gap" in told) == (family == "gpt2")
    assert ("1 the same to the model" in told) == (family == "gpt2")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_random_columns_hold_no_located_neuron_and_the_active_ones_say_how_many(
    family, monkeypatch
):
    material = Material(tiny_model(family), made_up_cases(), SETTINGS)
    d_mlp = material.lm.d_mlp
    even = frozenset(Neuron(2, unit) for unit in range(0, d_mlp, 2))
    monkeypatch.setattr(material, "neurons", lambda profile: even)  # half of the last layer
    for profile in material.profiles:
        columns = place.columns_of(material, profile, profile.group.requests[0])
        assert columns["random, last layer"] == {Neuron(2, u) for u in range(1, d_mlp, 2)}
        assert len(columns["most active"]) == len(columns["located"]) == len(even)
    told = " ".join(place.run(material).findings)
    for task, (_, _, label) in TASK.items():
        shares = []
        for profile in material.of_task(task):
            mean = material.mean_activation(profile)
            floor = float(mean.flatten().sort(descending=True).values[len(even) - 1])
            shares.append(sum(float(mean[n]) >= floor for n in even) / len(even))
        percent = f"{100 * sum(shares) / len(shares):.0f}%"
        assert re.search(rf"Of the most active neurons of {label} {percent} \[.*\] are", told)
        assert f"are located ones (n={len(shares)})" in told


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_place_says_which_of_romes_edits_are_not_there_and_why(family):
    """Pairs alone, and a fact whose prompt is its subject, a single word."""
    cases = [fact(i, "P1", f"w{5 + i}", f"w{60 + i}", "w57") for i in range(2)]
    single = replace(cases[0], request=replace(cases[0].request, prompt="{}"))
    pairs = [case for case in made_up_cases() if case.task == "pair"]
    told = []
    for chosen in ([*pairs], [single, cases[1]], cases):
        material = Material(tiny_model(family), chosen, SETTINGS)
        section = place.run(material)
        told.append(" ".join(section.notes))
    assert ("ROME is made on facts, and there are none" in told[0]) == (family == "gpt2")
    reason = "1 (last word), as what stands before the answer is a single word"
    assert (reason in told[1]) == (family == "gpt2")
    assert "last word" not in told[2]
    for words in told:
        assert ("ROME edits causal models only" in words) == (family == "bert")


@pytest.mark.parametrize(("family", "left_out"), [("gpt2", 3), ("bert", 0)])
@pytest.mark.parametrize("unknown", [0, 1])
def test_directions_have_each_prompt_once_and_none_that_says_nothing(family, left_out, unknown):
    cases = [*said_twice(), *[fact(2, "P1", "w7", "w62", "unheard")] * unknown]
    lm = tiny_model(family)
    requests, others = directed(Material(lm, cases, replace(SETTINGS, edited=20)))
    assert len(requests) == len(cases) - left_out - unknown
    read = {(r.relation, r.cloze.left, "" if lm.is_causal else r.cloze.right) for _, r in requests}
    assert len(read) == len(requests)
    assert others.total() == left_out + unknown
    told = " ".join(parts(["direction"])[0].run(Material(lm, cases, SETTINGS)).notes)
    said = re.findall(r"Left out of both directions: (\d+) ", told)
    assert sum(map(int, said)) == left_out + unknown


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_control_3_says_how_many_groups_and_prompts_it_takes(family, monkeypatch):
    """What is asked, counted where it is measured, is what the text says."""
    cases = [fact(i, "P1", f"w{5 + i}", f"w{60 + i % 3}", "w57") for i in range(6)]
    material = Material(tiny_model(family), cases, replace(SETTINGS, facts=6))
    asked = []
    measure = selectivity.selectivity

    def recorded(lm, *both):
        asked.append(both)
        return measure(lm, *both)

    monkeypatch.setattr(selectivity, "selectivity", recorded)
    question = selectivity.run(material).question
    ((suppressed, prompts),) = asked
    assert f"first {len(suppressed)} facts or classes" in question
    assert {f"{len(group.queries)} prompts of each" in question for group in prompts} == {True}
    assert len(suppressed) < len(material.profiles)
    assert len(prompts[0].queries) < len(material.profiles[0].encoded)


def test_a_single_thing_is_not_told_in_the_plural(tmp_path):
    """One fact, one pair, one sample of the noise."""
    cases = kn.load_cases("embedded", relation="P36", limit=1)
    cases += kn.load_cases("embedded", relation="determiner_noun_agreement_2", limit=1)
    settings = replace(SETTINGS, draws=2, samples=1, facts=1)
    material = Material(load_model("tiny-gpt2"), cases, settings)
    told = []
    for part in parts(["matched", "tracing", "place", "direction", "generations", "activators"]):
        section = part.run(material)
        told += [section.question, *section.findings, *section.notes]
    text = " ".join(told)
    for words in ("of 1 group beyond", "n=1 fact.", ": 1 request.", "1 sample of it", "1 prompt"):
        assert words in text
    assert not re.findall(r"(?<![\d.,+-])1 \w+s\b", text)


# --- what is looked at when nobody says ---------------------------------------------------------


@pytest.mark.parametrize("model", ["./a-folder", "org/model", "smollm2-135m"])
def test_a_model_of_the_users_own_is_looked_at_in_a_sample(model):
    settings = settings_for(model, facts=None, prompts=7, corpus=None)
    assert vars(settings) == vars(StudySettings()) | SIZES | {"prompts": 7}
    assert all(vars(settings)[name] < vars(StudySettings())[name] for name in SIZES)
    assert settings_for("tiny-gpt2", facts=None, prompts=7) == StudySettings(prompts=7)


def test_the_sample_has_the_relations_with_most_criteria_and_the_papers_paradigms():
    cases = kn.load_cases("embedded", limit=20)
    facts = [case for case in cases if case.task == "fact"]
    # by brute force: what is asked of the facts of each relation
    asked = {
        relation: sum(
            len({probe.criterion for probe in case.probes})
            for case in facts
            if case.relation == relation
        )
        for relation in {case.relation for case in facts}
    }
    kept = sample_of(cases)
    relations = {case.relation for case in kept if case.task == "fact"}
    assert len(relations) == 3 < len(asked)
    assert min(asked[r] for r in relations) >= max(
        n for r, n in asked.items() if r not in relations
    )
    assert {case.relation for case in kept if case.task == "pair"} == set(PARADIGMS)
    assert [case.id for case in kept] == [
        c.id for c in cases if c.relation in {*relations, *PARADIGMS}
    ]
    assert sample_of(kept) == kept
    assert sample_of([]) == []


def test_a_model_of_the_users_own_is_asked_what_it_knows(tmp_path, capsys):
    folder = shutil.copytree(embedded.folder("tiny-gpt2"), tmp_path / "mine")
    settings = settings_for(str(folder))

    def loaded(**options):
        return runner.load_material(
            runner.Request(model=str(folder), output=None, cases=["embedded"], **options), settings
        )

    sampled = loaded()
    told = capsys.readouterr().err
    assert "knows" in told
    names = {case.relation for case in sampled.cases}
    assert len(names) == 6
    assert f"looking at {', '.join(dict.fromkeys(c.relation for c in sampled.cases))};" in told
    named = loaded(relations=["P36"], known=False)
    assert {case.relation for case in named.cases} == {"P36"}
    assert capsys.readouterr().err == ""
    assert len(named.cases) > sum(case.relation == "P36" for case in sampled.cases)
