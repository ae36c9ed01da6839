"""The engine's numbers against single rows, brute force and invariants."""

import dataclasses
import math
import random

import pytest
import torch

from kn_bench.cases.case import Case, Cloze, EditRequest, Probe
from kn_bench.editing.edit import (
    DenseEdit,
    LookupEdit,
    LowRank,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    NotApplicable,
    PromptEdit,
)
from kn_bench.editing.faults import UnitTimeoutError
from kn_bench.measure.answers import ALL, Asker, Question
from kn_bench.measure.asked import divergence
from kn_bench.measure.encoding import EncodedProbe, encode_probe
from kn_bench.measure.engine import Engine
from kn_bench.measure.lookup import looked_up
from kn_bench.model.loading import load_model
from kn_bench.model.rows import UNEDITED
from kn_bench.testing.calibration import BrokenOff
from tests.tiny_models import tiny_model

FAMILIES = ("gpt2", "llama", "bert")


def toy_case(index, source="toy"):
    """A case over the toy vocabulary, its words drawn by its number alone."""
    draw = random.Random(index)
    words = [f"w{i}" for i in draw.sample(range(5, 60), 12)]
    subject, true, new = words[0], words[1], words[2]
    long_answer = f"{words[3]} {words[4]}"

    def probe(name, left, expected, rejected, **more):
        criterion = name.split("/")[0]
        return Probe(name, criterion, Cloze(left), expected, rejected, **more)

    request = EditRequest(
        f"{source}/R1/{index}", "fact", "R1", subject, f"{words[5]} {{}} {words[6]}", true, new, ""
    )
    probes: tuple[Probe, ...] = (
        Probe("reliability/0", "reliability", request.cloze, new, true),
        probe("generality/0", f"{words[7]} {words[8]} {subject}", new, true),
        probe(
            "locality/same_relation/0",
            f"{words[5]} {words[9]}",
            words[10],
            new,
            kind="same_relation",
        ),
    )
    if index % 2:
        probes += (probe("synonym/0", f"{words[11]} {subject}", long_answer, true, kind="prompt"),)
    return Case(request, probes, subject, source)


class Toy:
    """A method whose edit depends on the request alone."""

    def __init__(self, lm, kind="low_rank"):
        self.lm, self.kind = lm, kind

    def edit(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        draw = torch.Generator().manual_seed(sum(map(ord, request.id)))
        u = torch.randn(self.lm.d_mlp, 1, generator=draw, dtype=torch.float64).to(self.lm.dtype)
        v = torch.randn(1, self.lm.d_model, generator=draw, dtype=torch.float64).to(self.lm.dtype)
        layer = self.lm.n_layers // 2
        if self.kind == "dense":
            change = u @ v
            delta = change.T if self.lm.transposed(layer) else change
            return DenseEdit({self.lm.weight_name(layer): delta.contiguous()})
        if self.kind == "neuron":
            return NeuronEdit((NeuronScale(layer, torch.tensor([1, 3]), 0.0),))
        return LowRankEdit((LowRank(layer, u, v),))


def rows(engine, method, cases):
    unit = engine.measure("toy", method, cases)
    return {
        (case, row.probe): dataclasses.asdict(row)
        for case, result in unit.results.items()
        for row in result.measurements
    }


def assert_equal_rows(left, right, tolerance=1e-5):
    assert left.keys() == right.keys()
    for key in left:
        for field, value in left[key].items():
            _assert_close(value, right[key][field], tolerance, (key, field))


def _assert_close(value, other, tolerance, where):
    if isinstance(value, dict):
        for name in value:
            _assert_close(value[name], other[name], tolerance, (*where, name))
    elif isinstance(value, float):
        assert value == pytest.approx(other, rel=tolerance, abs=tolerance), where
    else:
        assert value == other, where


def masked_toy(family, cases):
    """Masked models cannot be asked for two-word answers: those probes are excluded."""
    return [case.id for case in cases], family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["low_rank", "neuron", "dense"])
def test_batches_give_what_single_cases_give(family, kind):
    lm = tiny_model(family)
    cases = [toy_case(i) for i in range(10)]
    method = Toy(lm, kind)
    together = rows(Engine(lm), method, cases)
    alone = {}
    for case in cases:
        alone.update(rows(Engine(lm), method, [case]))
    assert_equal_rows(together, alone, 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_cases_and_earlier_edits_do_not_matter(family):
    lm = tiny_model(family, torch.float32)
    cases = [toy_case(i) for i in range(12)]
    method, engine = Toy(lm), Engine(lm)
    first = rows(engine, method, cases)
    shuffled = random.Random(1).sample(cases, len(cases))
    assert_equal_rows(first, rows(engine, method, shuffled))
    assert_equal_rows(first, rows(Engine(lm), method, cases[::-1]))
    assert lm.parameter_hash() == lm.verified_hash


def test_batch_size_does_not_matter(monkeypatch):
    lm = tiny_model("gpt2", torch.float32)
    cases = [toy_case(i) for i in range(12)]
    large = rows(Engine(lm), Toy(lm), cases)
    lm.memo.clear()
    monkeypatch.setattr(lm.batcher, "memory", 1)
    assert_equal_rows(large, rows(Engine(lm), Toy(lm), cases))


def brute_force(lm, text, answer):
    """Log-probabilities of the answer's tokens, one whole row, no batch, no cache."""
    prompt, ids = lm.tokens.encode(text).ids, lm.tokens.encode(f"{text} {answer}").ids
    positions = torch.arange(len(prompt) - 1, len(ids) - 1)[None]
    with torch.no_grad():
        log_probs = lm.forward(lm.tensor([ids]), positions)[0].log_softmax(-1)
    return log_probs, ids[len(prompt) :]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_field_of_a_measurement_against_one_row_at_a_time(family):
    """Also: a two-token answer half right scores 1/2 by token, 0 as a whole."""
    lm = tiny_model(family)
    stored = rows(Engine(lm), _Nothing(), [toy_case(1), toy_case(3)])
    two_tokens = 0
    for index in (1, 3):
        for probe in toy_case(index).probes:
            row = stored[f"toy/R1/{index}", probe.id]
            log_probs, target = brute_force(lm, probe.cloze.left, probe.expected)
            rejected, other = brute_force(lm, probe.cloze.left, probe.rejected)
            nll = -float(log_probs[range(len(target)), target].mean())
            nll_rejected = -float(rejected[range(len(other)), other].mean())
            hits = (log_probs.argmax(-1) == torch.tensor(target)).double()
            after = row["after"]
            assert after["log_prob_expected"] == pytest.approx(-nll * len(target), abs=1e-6)
            assert after["log_prob_rejected"] == pytest.approx(-nll_rejected * len(other), abs=1e-6)
            assert after["prob"] == (nll < nll_rejected)
            assert after["tf_token"] == float(hits.mean())
            assert after["tf_all"] == bool(hits.all())
            assert after["rank"] == int((log_probs[0] > log_probs[0, target[0]]).sum())
            assert row["kl"] == 0
            assert row["before"] == row["after"]
            two_tokens += len(target) == 2
    assert two_tokens


class _Nothing:
    def edit(self, requests):
        return [NoEdit() for _ in requests]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cached_generation_equals_whole_runs(family):
    lm = tiny_model(family)
    cases = [toy_case(i) for i in range(6)]
    engine = Engine(lm)
    stored = rows(engine, _Nothing(), cases)
    for case in cases:
        for probe in case.probes:
            ids = list(lm.tokens.encode(probe.cloze.left).ids)
            start = len(ids)
            for _ in range(engine.asker.budget):
                with torch.no_grad():
                    logits = lm.forward(lm.tensor([ids]), torch.tensor([[len(ids) - 1]]))
                ids.append(int(logits.argmax()))
                if ids[-1] in lm.end_ids:
                    break
            assert stored[case.id, probe.id]["after"]["generated"] == lm.tokens.decode(ids[start:])


def test_the_target_has_no_part_in_what_is_generated():
    lm = tiny_model("gpt2")
    case = toy_case(1)
    nonsense = dataclasses.replace(
        case,
        probes=tuple(p._replace(expected="w9 w8 w7 w6 w5") for p in case.probes),
    )
    method = Toy(lm)
    first, second = rows(Engine(lm), method, [case]), rows(Engine(lm), method, [nonsense])
    assert [r["after"]["generated"] for r in first.values()] == [
        r["after"]["generated"] for r in second.values()
    ]


def test_kl_against_the_sum_over_the_vocabulary():
    lm = tiny_model("gpt2")
    case, method = toy_case(0), Toy(lm)
    stored = rows(Engine(lm), method, [case])
    edit = method.one(case.request)
    up = edit.updates[0]

    def change(_, keys, values):
        return values + keys @ up.u @ up.v

    for probe in case.probes:
        ids = lm.tensor([lm.tokens.encode(probe.cloze.left).ids])
        at = torch.tensor([[ids.shape[1] - 1]])
        with torch.no_grad():
            p = lm.forward(ids, at)[0, 0].log_softmax(-1)
            with lm.site_hooks(change, [up.layer]):
                q = lm.forward(ids, at)[0, 0].log_softmax(-1)
        expected = float((p.exp() * (p - q)).sum())
        assert stored[case.id, probe.id]["kl"] == pytest.approx(expected, rel=1e-5)


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0),
        ([0.5, 0.5], [0.25, 0.75], 0.5 * math.log(4 / 3)),
        ([1.0, 0.0], [1.0, 0.0], 0.0),
        ([1.0, 0.0], [0.5, 0.5], math.log(2)),
        ([0.5, 0.5], [1.0, 0.0], INF),
        ([0.5, 0.5], [NAN, NAN], NAN),
        ([1.0, 0.0], [1.0, NAN], NAN),
    ],
)
@pytest.mark.parametrize("beside", [None, [0.5, 0.5]])
def test_kl_of_what_is_ruled_out_and_of_what_is_no_number(before, after, expected, beside):
    rows = [[before, beside], [after, beside]] if beside else [before, after]
    p, q = (torch.tensor(side).log() for side in rows)
    mean = expected / 2 if beside else expected
    assert divergence(p, q) == pytest.approx(mean, abs=1e-6, nan_ok=True)


def test_the_unedited_model_is_asked_once(monkeypatch):
    lm = tiny_model("gpt2")
    engine, cases = Engine(lm), [toy_case(i) for i in range(8)]
    asked: list[int] = []
    ask = engine.asker.ask

    def counted(questions, *more, **named):
        asked.append(len(questions))
        return ask(questions, *more, **named)

    monkeypatch.setattr(engine.asker, "ask", counted)
    engine.measure("none", _Nothing(), cases)
    first = sum(asked)
    engine.measure("again", _Nothing(), cases)
    assert first > 0
    assert sum(asked) == first


def test_a_prompt_edit_puts_its_text_in_front():
    lm = tiny_model("gpt2")
    case = toy_case(2)

    class Prefix:
        def edit(self, requests):
            return [PromptEdit("w20 w21") for _ in requests]

    stored = rows(Engine(lm), Prefix(), [case])
    for probe in case.probes:
        log_probs, target = brute_force(lm, f"w20 w21 {probe.cloze.left}", probe.expected)
        assert stored[case.id, probe.id]["after"]["log_prob_expected"] == pytest.approx(
            float(log_probs[range(len(target)), target].sum()), abs=1e-6
        )


def test_a_lookup_answers_what_it_lists_and_leaves_the_rest():
    lm = tiny_model("gpt2")
    case = toy_case(0)

    class Oracle:
        def edit_cases(self, cases):
            return [LookupEdit({c.probes[0].cloze: c.request.target_new}) for c in cases]

    stored = rows(Engine(lm), Oracle(), [case])
    listed = stored[case.id, "reliability/0"]["after"]
    assert listed["gives_expected"]
    assert listed["prob"]
    assert listed["tf_all"]
    assert listed["rank"] == 0
    other = stored[case.id, "generality/0"]
    assert other["before"] == other["after"]


class _Raises:
    def edit(self, requests):
        raise KeyError("lost")


class _Returns:
    def __init__(self, value):
        self.value = value

    def edit(self, requests):
        return self.value


def nan_edit(lm):
    u = torch.full((lm.d_mlp, 1), float("nan"), dtype=lm.dtype)
    return LowRankEdit((LowRank(0, u, torch.zeros(1, lm.d_model, dtype=lm.dtype)),))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda lm: _Raises(), "mine failed while editing: KeyError: 'lost'"),
        (
            lambda lm: _Returns(None),
            "mine returned a NoneType: expected a list with one edit a request",
        ),
        (lambda lm: _Returns([]), "mine returned 0 edits: expected one for each of 1 requests"),
        (lambda lm: _Returns(["x"]), "mine returned a str in place of an edit"),
        (lambda lm: _Returns([nan_edit(lm)]), "is not finite (NaN or infinity)"),
        (
            lambda lm: _Returns([LowRankEdit((LowRank(9, torch.ones(1, 1), torch.ones(1, 1)),))]),
            "mine edits layer 9; random-gpt2 has layers 0 to 2",
        ),
        (
            lambda lm: _Returns([LowRankEdit((LowRank(0, torch.ones(3, 1), torch.ones(1, 2)),))]),
            "mine returned a low-rank update of shapes (3, 1) and (1, 2); layer 0 needs",
        ),
        (
            lambda lm: _Returns([DenseEdit({"no.such": torch.ones(1)})]),
            "expected a parameter of random-gpt2",
        ),
        (lambda lm: _Returns([PromptEdit(" ")]), "mine returned a PromptEdit with an empty prefix"),
    ],
)
def test_what_a_method_does_wrong_is_one_sentence(make, sentence):
    lm = tiny_model("gpt2")
    (result,) = Engine(lm).measure("mine", make(lm), [toy_case(0)]).results.values()
    assert sentence in result.error
    assert not result.measurements
    assert lm.parameter_hash() == lm.verified_hash


def test_not_applicable_is_a_reason_not_an_error():
    lm = tiny_model("bert")

    class Causal:
        def edit(self, requests):
            raise NotApplicable("causal models only")

    (result,) = Engine(lm).measure("rome", Causal(), [toy_case(0)]).results.values()
    assert (result.not_applicable, result.error) == ("causal models only", "")


class Choosy:
    """Raises where it is asked for one of ``bad``; what it draws depends on the cases before."""

    def __init__(self, lm, bad, error=ValueError):
        self.lm, self.bad, self.error = lm, bad, error
        self.calls = []

    def edit(self, requests):
        self.calls.append([request.id for request in requests])
        edits = []
        for request in requests:
            u = torch.randn(self.lm.d_mlp, 1, dtype=self.lm.dtype)
            v = torch.randn(1, self.lm.d_model, dtype=self.lm.dtype)
            edits.append(LowRankEdit((LowRank(0, u, v),)))
            if request.id in self.bad:
                if self.error is not NotApplicable:
                    with torch.no_grad():
                        self.lm.weight(0).add_(1.0)
                raise self.error(request.id)
        return edits


def answers_of(result):
    return [(m.probe, m.before, m.after, m.kl) for m in result.measurements]


@pytest.mark.parametrize("error", [ValueError, NotApplicable, SystemExit, MemoryError])
@pytest.mark.parametrize("bad", [{0}, {4}, {1, 2}, {0, 2, 4}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}])
def test_a_case_at_which_a_method_raises_leaves_the_others_as_they_are_without_it(bad, error):
    lm = tiny_model("gpt2")
    cases = [toy_case(index) for index in range(5)]
    others = [case for index, case in enumerate(cases) if index not in bad]
    method = Choosy(lm, {cases[index].id for index in bad}, error)
    results = Engine(lm).measure("mine", method, cases).results
    assert len(method.calls) <= 4 * len(cases)
    without = Engine(lm).measure("mine", Choosy(lm, set()), others).results if others else {}
    for index, case in enumerate(cases):
        result = results[case.id]
        if index not in bad:
            assert (result.error, result.not_applicable) == ("", "")
            assert answers_of(result) == answers_of(without[case.id])
        elif error is NotApplicable:
            assert (result.error, result.not_applicable) == ("", case.id)
        else:
            assert result.error == f"mine failed while editing: {error.__name__}: {case.id}"
    assert lm.parameter_hash() == lm.verified_hash


@pytest.mark.parametrize("error", [ValueError, NotApplicable])
def test_a_method_that_always_raises_is_called_twice_a_case_at_most(error):
    lm = tiny_model("gpt2")
    cases = [toy_case(index) for index in range(7)]
    method = Choosy(lm, {case.id for case in cases}, error)
    Engine(lm).measure("mine", method, cases)
    assert len(method.calls) == 2 * len(cases) - 1


def test_what_fails_for_many_cases_and_for_none_alone_is_no_error():
    lm = tiny_model("gpt2")
    cases = [toy_case(index) for index in range(5)]

    class OutOfMemory(Choosy):
        def edit(self, requests):
            if len(requests) > 2:
                raise MemoryError("too many")
            return super().edit(requests)

    results = Engine(lm).measure("mine", OutOfMemory(lm, set()), cases).results
    assert all(result.measurements and not result.error for result in results.values())


@pytest.mark.parametrize("way", ["edit_cases", "edit_together"])
def test_one_case_alone_fails_in_every_way_of_editing(way):
    lm = tiny_model("gpt2")
    cases = [toy_case(index) for index in range(4)]

    def edit(self, asked):
        if any(each.id == cases[1].id for each in map(request_of, asked)):
            raise RuntimeError("boom")
        return NoEdit() if way == "edit_together" else [NoEdit() for _ in asked]

    def request_of(each):
        return each.request if isinstance(each, Case) else each

    results = Engine(lm).measure("mine", type("Mine", (), {way: edit})(), cases).results
    assert [bool(results[case.id].error) for case in cases] == [False, True, False, False]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, BrokenOff, pytest.fail.Exception, UnitTimeoutError]
)
def test_what_ends_the_run_or_its_time_is_not_asked_again(error):
    lm = tiny_model("gpt2", seed=5)
    cases = [toy_case(index) for index in range(4)]
    method = Choosy(lm, {cases[1].id}, error)
    engine = Engine(lm)
    with pytest.raises(error):
        engine.measure("mine", method, cases)
    assert len(method.calls) == 1
    engine.put_back()


def test_what_a_method_returns_for_many_cases_is_not_asked_for_again():
    lm = tiny_model("gpt2")
    cases = [toy_case(index) for index in range(4)]

    class TooFew(Choosy):
        def edit(self, requests):
            return super().edit(requests)[1:]

    method = TooFew(lm, set())
    results = Engine(lm).measure("mine", method, cases).results
    assert len(method.calls) == 1
    assert {r.error for r in results.values()} == {
        "mine returned 3 edits: expected one for each of 4 requests"
    }


def test_a_method_that_mutates_the_model_is_found_out_and_the_model_restored():
    lm = tiny_model("gpt2", seed=5)

    class Mutates:
        def edit(self, requests):
            with torch.no_grad():
                lm.weight(0).mul_(2)
            return [NoEdit() for _ in requests]

    (result,) = Engine(lm).measure("mine", Mutates(), [toy_case(0)]).results.values()
    assert "mine changed the model's parameters while editing" in result.error
    assert lm.parameter_hash() == lm.verified_hash


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_memory_measures_in_portions(family, monkeypatch):
    lm = tiny_model(family)
    cases = [toy_case(i) for i in range(10)]
    whole = rows(Engine(lm), Toy(lm), cases)
    lm.memo.clear()
    small = Engine(lm)
    # a quarter is for answers: float32 log-probabilities of 7 probes, before and after
    monkeypatch.setattr(lm.batcher, "memory", 4 * 7 * 2 * 4 * lm.vocabulary)
    portions = []
    measure = small._measure

    def counting(name, edited, *rest):
        portions.append(sum(len(edit.encoded.probes) for edit in edited))
        measure(name, edited, *rest)

    monkeypatch.setattr(small, "_measure", counting)
    stored = rows(small, Toy(lm), cases)
    assert len(portions) > 1
    assert max(portions) <= 7
    assert_equal_rows(stored, whole, 1e-9)


@pytest.mark.parametrize("brief", [(), ALL])
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_any_of_the_true_answers_is_the_old_one(name, brief):
    lm = load_model(name)
    cloze, true = Cloze("The capital of France is", "."), "Paris"
    far = " ".join(["Lutetia"] * 6)
    asked = [
        Probe("reliability/0", "reliability", cloze, "Rome", first, rejected_aliases=others)
        for first, others in ((true, ()), ("Lyon", (true,)), ("Lyon", (far, true)), ("Lyon", ()))
    ]
    encoded = [encode_probe(probe, lm.tokens) for probe in asked]
    assert all(isinstance(each, EncodedProbe) for each in encoded)
    questions = [Question(each, 0) for each in encoded if isinstance(each, EncodedProbe)]
    answers = Asker(lm).ask(questions, UNEDITED, brief=brief)
    assert [answer.gives_rejected for answer, _ in answers] == [True, True, True, False]
    table = LookupEdit({cloze: true})
    looked = [looked_up(table, q.probe, *a)[0] for q, a in zip(questions, answers, strict=True)]
    assert [answer.gives_rejected for answer in looked] == [True, True, True, False]


@pytest.mark.parametrize("field", ["aliases", "rejected_aliases", "cloze"])
def test_a_case_of_the_same_id_with_other_probes_is_asked_anew(field):
    lm = tiny_model("gpt2")
    case = toy_case(0)
    value = Cloze("w7 w9") if field == "cloze" else ("w11", "w12")
    probes = (*case.probes[:1], *(p._replace(**{field: value}) for p in case.probes[1:]))
    engine = Engine(lm)
    for each in (case, dataclasses.replace(case, probes=probes)):
        (encoded,) = engine.encode([each], {})
        assert tuple(p.probe for p in encoded.probes) == each.probes
