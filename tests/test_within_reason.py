"""What is done for all of a small model, and for part of a large one: ablating, tracing."""

from dataclasses import replace

from kn_bench.cases.sampling import stable_hash
from kn_bench.study import material as of_study
from kn_bench.study.material import METHODS, Material
from kn_bench.study.sections import choice, tracing
from tests.made_up_study import SETTINGS, fact, made_up_cases
from tests.tiny_models import tiny_model


def test_of_many_neurons_those_are_ablated_that_another_score_ranks_high(monkeypatch, material):
    monkeypatch.setattr(of_study, "ABLATED_ALL", 0)
    monkeypatch.setattr(of_study, "RANKED", 2)
    monkeypatch.setattr(of_study, "SAMPLED", 4)
    some = Material(material.lm, material.cases, material.settings)
    profile = some.profiles[0]
    neurons = some.ablated(profile)
    assert neurons is not None
    assert neurons >= set(some.random_neurons)
    assert len(some.random_neurons) == 4
    for method in METHODS:
        if method != "direct ablation":
            for scores in some.scores(profile, method):
                assert divmod(int(scores.argmax()), some.lm.d_mlp) in neurons
    ablated = some.scores(profile, "direct ablation")
    assert int((ablated != 0).any(0).sum()) <= len(neurons) < some.lm.n_layers * some.lm.d_mlp
    assert -1 <= choice.rank_correlation(some, profile) <= 1

    everything = Material(material.lm, material.cases, replace(material.settings, ablation="all"))
    assert everything.ablated(profile) is None


def test_small_models_have_all_neurons_ablated_whatever_is_asked(material):
    assert material.settings.ablation == "ranked"
    assert material.ablated(material.profiles[0]) is None


def test_tracing_looks_further_where_the_first_cases_are_not_known(monkeypatch):
    lm = tiny_model("gpt2")
    cases = [fact(i, "P1", f"w{5 + i}", "w60", "w57") for i in range(20)]
    known = {case.id for case in sorted(cases, key=_place)[-2:]}
    monkeypatch.setattr(
        tracing, "_known", lambda _, offered: {case.id for case, _ in offered} & known
    )
    traced = tracing.traced(Material(lm, cases, replace(SETTINGS, traced=1)), "fact")
    assert len(traced.cases) == 1
    assert traced.cases[0].id in known
    assert traced.offered > 4
    none = tracing.traced(Material(lm, made_up_cases()[:0], SETTINGS), "fact")
    assert (none.cases, none.offered) == ((), 0)


def test_a_task_that_cannot_be_traced_is_said(monkeypatch):
    """In a causal model the noun stands after the determiner that is asked for."""
    monkeypatch.setattr(tracing, "_known", lambda _, offered: {case.id for case, _ in offered})
    agreeing = "determiner_noun_agreement_2"
    cases = [case for case in made_up_cases() if case.task == "fact" or case.relation == agreeing]
    facts, syntax = tracing.run(Material(tiny_model("gpt2"), cases, SETTINGS)).notes
    assert facts.startswith("facts: of 6 prompts looked at, left out: 0 that cannot")
    assert syntax.startswith("syntax: of 3 prompts looked at, left out: 3 that cannot")
    (note,) = tracing.run(Material(tiny_model("gpt2"), cases[:3], SETTINGS)).notes
    assert note.startswith("facts: of 3 prompts")


def _place(case):
    return stable_hash("trace", case.id)
