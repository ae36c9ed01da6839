"""A study in miniature: few made-up cases in the words of the tiny tokenizer, few draws."""

from kn_bench.cases.case import Case, Cloze, EditRequest, Probe, Query
from kn_bench.study.material import Material, StudySettings
from tests.tiny_models import tiny_model

SETTINGS = StudySettings(
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
    listed = [
        fact(i, relation, f"w{5 + i}", f"w{60 + i % 3}", f"w{57 + i % 2}")
        for relation in ("P1", "P2")
        for i in range(3)
    ]
    for i in range(3):
        noun = f"w{10 + i}"
        listed.append(pair(i, noun, f"w{25 + i} w7", f"{{}} w{35 + i}", "w50", "w52",
                          "determiner_noun_agreement_2"))  # fmt: skip
        listed.append(pair(i, "w51", f"w{25 + i} {{}}", "w9", noun, f"w{13 + i}",
                          "determiner_noun_agreement_1"))  # fmt: skip
    return listed


def made_up_material():
    return Material(tiny_model("bert"), made_up_cases(), SETTINGS)
