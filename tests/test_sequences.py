"""Batches and sequences of edits: what must hold whatever the method."""

import hashlib
import math
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases import sources
from kn_bench.cases.case import Cloze
from kn_bench.cases.normalise import starts_with_answer
from kn_bench.editing import family
from kn_bench.editing.applying import in_place
from kn_bench.editing.composition import CannotCompose, Composition, UpToStep, joined, summed
from kn_bench.editing.edit import (
    DenseEdit,
    LowRank,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    PromptEdit,
    WrapperEdit,
)
from kn_bench.editing.family import ClosedFormSettings
from kn_bench.editing.method import begin, edit_step
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.rome.remembered import values_of
from kn_bench.editing.settings import settings_for
from kn_bench.edits.controls import InContext, Nothing, Oracle, RandomRankOne
from kn_bench.edits.memit import Memit
from kn_bench.edits.memit_seq import MemitSeq
from kn_bench.edits.rome import Rome
from kn_bench.measure import ability
from kn_bench.measure.criteria import judge
from kn_bench.measure.drawing import (
    EDITED,
    TooFewCases,
    conflict_key,
    draw_sequences,
    mentions,
    without_edited_neighbours,
)
from kn_bench.measure.encoding import EncodedCase, encode_cases
from kn_bench.measure.engine import Engine
from kn_bench.measure.measurement import Answer
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.sequences import STOPPED, Plan, measure_sequence
from kn_bench.measure.steps import EditedStep, StepRecord, StepStore
from kn_bench.model import embedded
from kn_bench.model.context_templates import contexts
from kn_bench.model.loading import load_model
from kn_bench.results.codec import encode
from tests.shares import mostly_slow


@pytest.fixture(scope="module")
def lm():
    return load_model("tiny-gpt2")


@pytest.fixture(scope="module")
def engine(lm):
    return Engine(lm)


@pytest.fixture(scope="module")
def cases():
    """Facts with few probes each: one a criterion."""
    drawn = sources.load("embedded", limit=4, relations=("P36", "P37")).cases
    return tuple(_thinned(case) for case in drawn if case.task == "fact")


def _thinned(case):
    first = {probe.criterion: probe for probe in reversed(case.probes)}
    return replace(case, probes=tuple(p for p in case.probes if p is first[p.criterion]))


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    """The curves of a test need not be precise."""
    monkeypatch.setattr(ability, "A_RELATION", 1)
    monkeypatch.setattr(ability, "TEXT_LINES", 8)
    monkeypatch.setattr(ability, "NEUTRAL", 4)


def plan(text, cases, **more):
    protocol = parse_protocol(text)
    return Plan(protocol, tuple(cases[: protocol.edits]), **more)


def rows(result):
    return [m for case in result.values() for m in case.measurements]


def assert_same(ours, theirs):
    """Field by field but for the occasion; floats to the rounding of another way to add."""
    assert [(m.case, m.probe) for m in ours] == [(m.case, m.probe) for m in theirs]
    assert ours
    for left, right in zip(ours, theirs, strict=True):
        assert left.kl == pytest.approx(right.kl, abs=1e-4)
        for side in ("before", "after"):
            for field in fields(Answer):
                a, b = (getattr(getattr(m, side), field.name) for m in (left, right))
                if isinstance(a, float):
                    assert a == pytest.approx(b, abs=1e-3), (left.probe, side, field.name)
                else:
                    assert a == b, (left.probe, side, field.name)


METHODS = {
    "none": lambda lm: Nothing(),
    "oracle": lambda lm: Oracle(),
    "in-context": lambda lm: InContext(),
    "rome": Rome,
    "memit": lambda lm: Memit(lm, settings_for("memit", ClosedFormSettings, lm)),
    "memit-seq": lambda lm: MemitSeq(lm, settings_for("memit-seq", ClosedFormSettings, lm)),
    "random-rank-one": RandomRankOne,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_sequence_of_one_is_single_and_a_batch_of_one(name, lm, engine, cases):
    method = METHODS[name](lm)
    single = rows(engine.measure(name, method, cases[:1]).results)
    sequence = measure_sequence(engine, name, method, plan("sequence:1", cases))
    batch = measure_sequence(engine, name, method, plan("batch:1", cases))
    for other in (sequence.results, sequence.retained, batch.results):
        assert_same(rows(other), single)
    assert not batch.retained
    assert not batch.checkpoints


@pytest.mark.parametrize("name", ["rome", "memit", "memit-seq"])
def test_the_order_of_a_batch_changes_nothing(name, lm, engine, cases):
    method = METHODS[name](lm)
    forth = measure_sequence(engine, name, method, plan("batch:3", cases))
    back = measure_sequence(engine, name, method, plan("batch:3", cases[:3][::-1]))
    assert_same(rows(forth.results), rows({c: back.results[c] for c in forth.results}))


def test_none_has_flat_curves_and_the_oracle_retains_all(engine, cases):
    nothing = measure_sequence(engine, "none", Nothing(), plan("sequence:5", cases))
    first, *later = nothing.checkpoints
    assert [point.step for point in later] == [1, 2, 5]
    for point in later:
        assert replace(point, step=0, edits=0, retained=None, n_retained=0) == first
        assert point.retained == 0.0
    oracle = measure_sequence(engine, "oracle", Oracle(), plan("sequence:5", cases))
    assert [point.retained for point in oracle.checkpoints[1:]] == [1.0, 1.0, 1.0]
    for case in cases[:5]:
        assert judge("reliability", case, oracle.retained[case.id]).holds


def test_random_edits_walk_randomly(lm):
    """|dW| of n independent updates of one norm grows as the square root of n."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(64, lm.d_mlp, 1, generator=generator)
    v = torch.randn(64, 1, lm.d_model, generator=generator)
    growth: list[float] = []
    with Composition(lm) as model:
        for i in range(64):
            model.add([LowRankEdit((LowRank(0, u[i] / u[i].norm(), v[i] / v[i].norm()),))])
            growth += model.growth().values()
    assert growth[15] / growth[0] == pytest.approx(4, rel=0.1)
    assert growth[63] / growth[0] == pytest.approx(8, rel=0.1)


def test_memit_seq_step_by_step_is_one_batch(lm, engine, cases, monkeypatch):
    """Recursive least squares: one layer, keys and targets held fixed, residuals as they stand."""

    def targets_of_the_unedited_model(lm, *args, **options):
        with lm.unedited():
            return values_of(lm, *args, **options)

    monkeypatch.setattr(family, "values_of", targets_of_the_unedited_model)
    # without contexts the key that is solved for is the one that the residual is read at
    settings = replace(
        settings_for("memit-seq", ClosedFormSettings, lm),
        layers=(1,), context_template_length_params=(),
    )  # fmt: skip
    apart = measure_sequence(engine, "m", MemitSeq(lm, settings), plan("sequence:4", cases))
    together = measure_sequence(engine, "m", MemitSeq(lm, settings), plan("sequence:4/4", cases))
    assert_same(rows(apart.retained), rows(together.retained))
    ((step_by_step,), (at_once,)) = (r.checkpoints[-1].norms for r in (apart, together))
    assert step_by_step.relative == pytest.approx(at_once.relative, rel=1e-3)
    assert step_by_step.relative > 0.01
    # with contexts the mean key is not the one of the residual, and the two differ
    first = replace(settings, context_template_length_params=((5, 3),))
    other = measure_sequence(engine, "m", MemitSeq(lm, first), plan("sequence:4", cases))
    assert other.checkpoints[-1].norms[0].relative != pytest.approx(at_once.relative, rel=1e-3)


def test_a_sequence_undone_restores_every_tensor(lm, engine, cases):
    before = {name: hash_of(tensor) for name, tensor in lm.hf.state_dict().items()}
    measure_sequence(engine, "rome", Rome(lm), plan("sequence:2", cases))
    assert {name: hash_of(tensor) for name, tensor in lm.hf.state_dict().items()} == before


def hash_of(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


# -- what a method does wrong --------------------------------------------------------------------


def test_what_a_method_leaves_behind_is_put_back_and_told(lm, engine, cases):
    class Hooking:
        def edit(self, requests):
            lm.site(0).register_forward_hook(lambda module, inputs, output: output * 0)
            return [NoEdit() for _ in requests]

    result = measure_sequence(engine, "hooking", Hooking(), plan("sequence:2", cases))
    for readings in (result.results, result.retained):
        assert all("hook" in r.error for r in readings.values())
        assert all(r.error.startswith("hooking changed") for r in readings.values())
    assert [point.step for point in result.checkpoints] == [0]  # before the method did anything
    assert not lm.site(0)._forward_hooks
    assert engine.put_back() == ()


def test_a_method_that_writes_into_the_weights_is_told_and_undone(lm, engine, cases):
    class Writing:
        def edit(self, requests):
            lm.site(0).weight.data.add_(0.1)
            return [NoEdit() for _ in requests]

    result = measure_sequence(engine, "writing", Writing(), plan("sequence:2", cases))
    assert all(r.error for r in result.results.values())
    assert lm.parameter_hash() == lm.verified_hash


@pytest.mark.parametrize("where", ["opening", "asking"])
def test_a_wrapper_that_fails_is_to_blame(lm, engine, cases, where):
    class Failing:
        def edit(self, requests):
            @contextmanager
            def broken(hf):
                if where == "opening":
                    raise ZeroDivisionError("by nothing")

                def fail(*_):
                    raise ZeroDivisionError("by nothing")

                handle = hf.register_forward_pre_hook(fail)
                base = hf.base_model.register_forward_pre_hook(fail)
                try:
                    yield
                finally:
                    handle.remove()
                    base.remove()

            return [WrapperEdit(apply=broken) for _ in requests]

    result = measure_sequence(engine, "failing", Failing(), plan("sequence:2", cases))
    errors = {r.error for r in result.results.values()}
    assert errors == {"failing failed under its edits: ZeroDivisionError: by nothing"}
    assert engine.put_back() == ()


def test_a_masked_models_abilities_are_those_of_the_model_by_itself(monkeypatch):
    """By definition: a pair's pieces are masked in turn, a fact's answers are one piece each."""
    monkeypatch.setattr(ability, "A_RELATION", 8)
    lm = load_model("tiny-bert")
    hf, tokenizer = deepcopy(lm.hf).double(), lm.tokens.tokenizer
    asked = sources.load("embedded", limit=8).cases

    def at_mask(ids, start, stop):
        masked = [*ids[:start], tokenizer.mask_token_id, *ids[stop:]]
        with torch.no_grad():
            return hf(torch.tensor([masked])).logits[0, start].log_softmax(-1)

    def filled(probe, answer):
        text = probe.cloze.fill(answer)
        start = len(probe.cloze.left) + len(probe.cloze.gap_space)
        encoded = tokenizer(text, return_offsets_mapping=True)
        at = [i for i, (first, last) in enumerate(encoded["offset_mapping"])
              if first < start + len(answer) and last > max(first, start)]  # fmt: skip
        return encoded["input_ids"], at

    def log_prob(probe, answer):
        ids, at = filled(probe, answer)
        return sum(float(at_mask(ids, i, i + 1)[ids[i]]) for i in at)

    def preferred(probe):
        return log_prob(probe, probe.rejected) > log_prob(probe, probe.expected)

    def answered(probe):
        ids, (at,) = filled(probe, probe.rejected)
        return tokenizer.decode([int(at_mask(ids, at, at + 1).argmax())])

    pairs = [case.probes[0] for case in asked if case.task == "pair"]
    facts = [case.probes[0] for case in asked if case.task == "fact"]
    single = [p for p in facts if all(len(filled(p, a)[1]) == 1 for a in (p.expected, p.rejected))]
    known = [p for p in single if starts_with_answer(answered(p), p.rejected, p.rejected_aliases)]
    assert any(len(filled(probe, probe.expected)[1]) > 1 for probe in pairs)
    assert len(known) < len(single) < len(facts)
    questions = ability.Ability(Engine(lm), [])
    assert (questions.unedited.n_blimp, questions.unedited.n_known) == (len(pairs), len(known))
    assert questions.unedited.blimp == sum(map(preferred, pairs)) / len(pairs)
    assert [encoded.probe for encoded in questions.facts] == known


def abilities_under(questions, prefix):
    with Composition(questions.lm) as model:
        model.add([PromptEdit(prefix.strip())])
        return questions.look(model)


def tokens_by_themselves(hf, tokenizer, prefix, text):
    """Return log p of each token behind a prefix by its place and id; {} where they do not fit."""
    text = prefix + text
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = torch.tensor(encoded["input_ids"]), encoded["offset_mapping"]
    read = [i for i, (start, stop) in enumerate(offsets) if len(prefix) <= start < stop]
    if len(ids) > hf.config.max_position_embeddings:
        return {}
    with torch.no_grad():
        if tokenizer.mask_token is None:
            read = [i for i in read if i]
            log_p = hf(ids[None]).logits[0, [i - 1 for i in read]].log_softmax(-1)
        else:
            rows = ids.repeat(len(read), 1)
            rows[range(len(read)), read] = tokenizer.mask_token_id
            log_p = hf(rows).logits[range(len(read)), read].log_softmax(-1)
    return {
        (offsets[i][0] - len(prefix), int(ids[i])): float(row[ids[i]])
        for i, row in zip(read, log_p, strict=True)
    }


def next_token_by_itself(hf, tokenizer, text):
    """Return log p after a text, or at its mask; None of one that is too long."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if ids.shape[1] > hf.config.max_position_embeddings:
        return None
    masked = tokenizer.mask_token is not None
    at = int((ids[0] == tokenizer.mask_token_id).nonzero()) if masked else -1
    with torch.no_grad():
        return hf(ids).logits[0, at].log_softmax(-1)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-bert"])
def test_abilities_under_a_prefix_are_those_of_the_model_by_itself(name, monkeypatch):
    """Perplexity and KL were taken under the end of the prefix, cut to half of the context."""
    for constant in ("TEXT_LINES", "MASKED_LINES", "NEUTRAL"):
        monkeypatch.setattr(ability, constant, 6)
    lm = load_model(name)
    plain = deepcopy(lm.hf).double(), lm.tokens.tokenizer
    questions = ability.Ability(Engine(lm), [])
    lines = embedded.corpus_path().read_text("utf-8").splitlines()[-6:]
    ending = "" if lm.is_causal else f" {lm.tokens.mask_token}."
    n_tokens = [questions.unedited.n_tokens]
    for times in (1, 11, 12):
        prefix = "The capital of Canada is Paris. " * times
        before, after, kl = [], [], []
        for line in lines:
            alone = tokens_by_themselves(*plain, "", line)
            under = tokens_by_themselves(*plain, prefix, line)
            both = [token for token in alone if token in under]
            before += [alone[token] for token in both]
            after += [under[token] for token in both]
        for prompt in questions.neutral:
            under = next_token_by_itself(*plain, prefix + prompt + ending)
            if under is not None:
                alone = next_token_by_itself(*plain, prompt + ending)
                kl.append(float((alone.exp() * (alone - under)).sum()))
        seen = abilities_under(questions, prefix)
        assert (seen.n_tokens, seen.n_neutral) == (len(after), len(kl))
        baseline = math.exp(-sum(before) / len(before))
        assert seen.perplexity == pytest.approx(math.exp(-sum(after) / len(after)), rel=1e-4)
        assert seen.baseline == pytest.approx(baseline, rel=1e-4)
        assert seen.kl == pytest.approx(sum(kl) / len(kl), rel=1e-4)
        for factor in (9.9, 10.1):
            as_high = replace(seen, perplexity=factor * baseline)
            assert questions.collapsed(as_high) == (factor > 10)
        n_tokens.append(seen.n_tokens)
    assert n_tokens[0] > n_tokens[1] > n_tokens[2] >= n_tokens[3]
    assert seen.n_neutral < len(questions.neutral)
    crowded = abilities_under(questions, "The capital of Canada is Paris. " * 14)
    assert {crowded.blimp, crowded.perplexity, crowded.kl, crowded.known} == {None}
    assert crowded.n_blimp == crowded.n_tokens == crowded.n_neutral == crowded.n_known == 0
    assert not questions.collapsed(crowded)


# -- killed and continued ------------------------------------------------------------------------


class Killed(KeyboardInterrupt):
    """As a signal would: no handler of the library takes it."""


class Counted(Rome):
    def __init__(self, lm, dies_at=0):
        super().__init__(lm)
        self.calls, self.dies_at = 0, dies_at

    def edit(self, requests):
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        return super().edit(requests)


def test_a_sequence_killed_at_any_step_goes_on_and_ends_with_equal_rows(
    lm, engine, cases, tmp_path
):
    whole = measure_sequence(engine, "rome", Rome(lm), plan("sequence:3", cases))
    for step in (1, 2, 3):
        folder = tmp_path / str(step)
        dying = Counted(lm, dies_at=step)
        with pytest.raises(Killed):
            measure_sequence(engine, "rome", dying, plan("sequence:3", cases), folder=folder)
        assert lm.parameter_hash() == lm.verified_hash
        assert len(list(folder.glob("*.json"))) == step - 1
        resumed = Counted(lm)
        again = measure_sequence(engine, "rome", resumed, plan("sequence:3", cases), folder=folder)
        assert resumed.calls == 3 - (step - 1)
        assert rows(again.results) == rows(whole.results)
        assert rows(again.retained) == rows(whole.retained)
        assert again.checkpoints == whole.checkpoints


class CountedSeq(MemitSeq):
    calls = 0

    def edit_together(self, requests, state=None):
        self.calls += 1
        if self.calls == 3:
            raise Killed
        return super().edit_together(requests, state)


def test_what_a_method_carries_is_stored_with_its_steps(lm, engine, cases, tmp_path):
    chosen = settings_for("memit-seq", ClosedFormSettings, lm)
    wanted = measure_sequence(engine, "m", MemitSeq(lm, chosen), plan("sequence:3", cases))
    dying = CountedSeq(lm, chosen)
    with pytest.raises(Killed):
        measure_sequence(engine, "m", dying, plan("sequence:3", cases), folder=tmp_path)
    assert [p.name for p in tmp_path.glob("*state*")] == ["00002.state.safetensors"]
    resumed = CountedSeq(lm, chosen)
    again = measure_sequence(engine, "m", resumed, plan("sequence:3", cases), folder=tmp_path)
    assert resumed.calls == 1
    assert rows(again.retained) == rows(wanted.retained)


class Carrying:
    """Carries ``states[i]`` after step i, and remembers the states that it was given."""

    def __init__(self, lm, states, first=1, dies_at=None):
        self.lm, self.states, self.first, self.dies_at = lm, states, first, dies_at
        self.given = []

    def begin(self):
        return state_of(self.states[0])

    def edit_together(self, requests, state):
        step = self.first + len(self.given)
        if step == self.dies_at:
            raise Killed
        self.given.append({name: float(value) for name, value in state.items()})
        return random_edit(self.lm, seed=step, size=0.01), state_of(self.states[step])


def state_of(numbers):
    return {name: torch.tensor(number) for name, number in numbers.items()}


@pytest.mark.parametrize(
    "states",
    [
        ({"n": 0.0}, {}, {}, {}),
        ({"n": 0.0}, {"n": 1.0}, {}, {}),
        ({"n": 0.0}, {}, {"n": 2.0}, {}),
        ({}, {"n": 1.0}, {}, {"n": 3.0}),
        ({"n": 0.0}, {"m": 1.0}, {"n": 2.0, "m": 3.0}, {"n": 4.0}),
    ],
)
@pytest.mark.parametrize("dies_at", mostly_slow([2, 3], fast=[3]))
def test_a_method_goes_on_from_the_state_that_it_had_also_if_that_was_empty(
    states, dies_at, lm, engine, cases, tmp_path
):
    asked = plan("sequence:3", cases)
    dying = Carrying(lm, states, dies_at=dies_at)
    with pytest.raises(Killed):
        measure_sequence(engine, "m", dying, asked, folder=tmp_path)
    resumed = Carrying(lm, states, first=dies_at)
    again = measure_sequence(engine, "m", resumed, asked, folder=tmp_path)
    assert not any(result.error for result in again.results.values())
    assert dying.given + resumed.given == list(states[:3])


@pytest.mark.parametrize("states", [({}, {"n": 1.0}), ({"n": 1.0}, {}), ({"n": 1.0}, {"m": 1.0})])
def test_a_stored_state_is_that_of_its_step_whatever_was_left(states, tmp_path):
    """The first of ``states`` was stored without its record, and the second with it."""
    store = StepStore(tmp_path)
    record = StepRecord(1, ("a",), 1, 0.0)
    for values in states:
        (tmp_path / "00001.json").unlink(missing_ok=True)
        source = Provenance(model="m", model_hash="", method="m")
        assert store.save(EditedStep(record, (NoEdit(),), state_of(values)), source)
    loaded = store.load(1, device="cpu")
    assert loaded is not None
    assert loaded.state == state_of(states[1])


ODD = {
    "whole": torch.tensor(True),
    "": torch.zeros(0, 3),
    "wide": torch.ones(1, 2).expand(3, 2),
    "turned": torch.arange(6.0).view(2, 3).T,
    "part": torch.ones(4, requires_grad=True)[1:],
    "long name é": torch.arange(3, dtype=torch.uint8),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", ODD)
def test_any_dense_tensor_is_a_state_that_is_read_as_it_was(name, tmp_path):
    class Keeps:
        def begin(self):
            return {name: ODD[name]}

        def edit_together(self, requests, state):
            return NoEdit(), state

    edit_and_state = edit_step(Keeps(), [], begin(Keeps()))
    store = StepStore(tmp_path)
    source = Provenance(model="m", model_hash="", method="m")
    assert store.save(EditedStep(StepRecord(1, ("a",), 1, 0.0), *edit_and_state), source)
    loaded = store.load(1, device="cpu")
    assert loaded is not None
    assert loaded.state.keys() == {name}
    assert loaded.state[name].dtype == ODD[name].dtype
    assert torch.equal(loaded.state[name], ODD[name])


def test_a_stored_step_that_was_changed_is_refused(lm, engine, cases, tmp_path):
    measure_sequence(engine, "rome", Rome(lm), plan("sequence:1", cases), folder=tmp_path)
    (tmp_path / "00001.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^step 1 in .*: expected files as they were stored"):
        measure_sequence(engine, "rome", Rome(lm), plan("sequence:1", cases), folder=tmp_path)
    assert lm.parameter_hash() == lm.verified_hash


# -- the edited model ----------------------------------------------------------------------------


def random_edit(lm, seed, layer=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(lm.d_mlp, 2, generator=generator) * size
    v = torch.randn(2, lm.d_model, generator=generator) * size
    return LowRankEdit((LowRank(layer, u, v),))


def test_a_row_up_to_a_step_is_the_model_after_that_step(lm):
    edits = [random_edit(lm, 0), random_edit(lm, 1, layer=1), random_edit(lm, 2)]
    ids = lm.tensor([[5, 6, 7, 8]] * 4)
    last = torch.full((4, 1), 3)
    together = UpToStep(lm, edits)
    with together.on(torch.arange(4), torch.ones_like(ids, dtype=torch.bool)):
        rowwise = lm.forward(ids, last)[:, 0]
    with Composition(lm) as model:
        for step in range(4):
            assert torch.allclose(rowwise[step], lm.forward(ids[:1], last[:1])[0, 0], atol=1e-3)
            model.add(edits[step : step + 1])
    assert not torch.allclose(rowwise[0], rowwise[3], atol=1e-1)


def test_the_edited_model_has_a_hash_of_its_own_and_is_restored(lm):
    before = lm.content_hash
    written = contexts(lm, lengths=((3, 2),), seed=5)
    lm.memo.clear()
    seen = [before]
    with Composition(lm) as model:
        for seed in range(2):
            model.add([random_edit(lm, seed, size=3.0)])
            seen.append(lm.content_hash)
        # written first in the middle of a sequence, they are the unedited model's all the same
        assert contexts(lm, lengths=((3, 2),), seed=5) == written
        assert lm.content_hash == seen[-1]
        with model.unedited():
            assert lm.content_hash == before
            assert lm.parameter_hash() == lm.verified_hash
        assert lm.parameter_hash() != lm.verified_hash
    assert len(set(seen)) == 3
    assert lm.content_hash == before
    assert lm.parameter_hash() == lm.verified_hash


def test_a_method_may_edit_in_place_within_a_sequence(lm):
    with Composition(lm) as model:
        model.add([random_edit(lm, 0)])
        now = lm.parameter_hash()
        with in_place(lm, random_edit(lm, 1)):
            assert lm.parameter_hash() != now
        assert lm.parameter_hash() == now


def test_16_bit_weights_gather_small_edits_in_float32():
    lm = load_model("tiny-gpt2", dtype="bfloat16")
    name = lm.weight_name(0)
    tiny = DenseEdit({name: torch.full_like(dict(lm.hf.named_parameters())[name], 1e-4).float()})
    with Composition(lm) as model:
        for _ in range(200):
            model.add([tiny])
        (growth,) = model.growth().values()
        weight = lm.weight(0).float()
    assert growth == pytest.approx(0.02 * math.sqrt(weight.numel()) / float(weight.norm()), rel=0.1)


def test_what_touches_no_weight_is_joined():
    assert joined(PromptEdit("A."), PromptEdit("B.")) == PromptEdit("A. B.")
    first, second = (NeuronEdit((NeuronScale(1, torch.tensor(n), 2.0),)) for n in ([3, 4], [4]))
    together = joined(first, second)
    assert isinstance(together, NeuronEdit)
    factors = {s.factor: s.neurons.tolist() for s in together.scales}
    assert factors == {2.0: [3], 4.0: [4]}
    with pytest.raises(CannotCompose, match="a NeuronEdit cannot follow a PromptEdit"):
        joined(PromptEdit("A."), first)


def test_wrappers_have_no_sum(engine, cases):
    class Wrapping:
        def edit(self, requests):
            return [WrapperEdit(apply=lambda hf: torch.no_grad()) for _ in requests]

    with pytest.raises(CannotCompose, match="no batch of its own"):
        summed(Wrapping().edit([0, 1]))
    result = measure_sequence(engine, "wrapping", Wrapping(), plan("batch:2", cases))
    assert all("no batch of its own" in r.not_applicable for r in result.results.values())


def test_a_whole_wrapper_takes_the_place_of_the_one_before(lm):
    opened = []

    class Watched:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            opened.append(self.number)

        def __exit__(self, *about):
            opened.remove(self.number)

    def wrapper(number, whole):
        return WrapperEdit(apply=lambda hf: Watched(number), whole=whole)

    with Composition(lm) as model:
        model.add([wrapper(1, False)])
        model.add([wrapper(2, False)])
        assert opened == [1, 2]
        with model.unedited():
            assert opened == []
        assert opened == [1, 2]
        model.add([wrapper(3, True)])
        assert opened == [3]
    assert opened == []


# -- collapse ------------------------------------------------------------------------------------


class Wrecker:
    """The second edit wrecks the model; the fourth cannot be made."""

    def __init__(self, lm):
        self.lm, self.calls = lm, 0

    def edit(self, requests):
        self.calls += 1
        if self.calls == 4:
            raise ZeroDivisionError("nothing left to divide by")
        return [random_edit(self.lm, self.calls, size=30.0) if self.calls == 2 else NoEdit()]


def test_a_collapse_is_named_and_the_sequence_goes_on(lm, engine, cases):
    result = measure_sequence(engine, "wrecker", Wrecker(lm), plan("sequence:5", cases))
    assert [(p.step, p.collapsed_at) for p in result.checkpoints] == [
        (0, 0),
        (1, 0),
        (2, 2),
        (5, 2),
    ]
    record = result.results[cases[3].id].edit
    assert record is not None
    assert "nothing left to divide by" in str(record.notes["failed"])
    assert not any(r.error for r in result.retained.values())


@pytest.mark.parametrize("fill", [1e30, 3e38], ids=["overflows", "largest"])
@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_a_model_whose_logits_are_no_numbers_can_do_nothing(fill, kind, lm, engine, cases):
    name = lm.weight_name(0)
    weight = dict(lm.hf.named_parameters())[name]
    u, v = torch.full((lm.d_mlp, 1), fill), torch.ones(1, lm.d_model)

    class Overflows:
        def edit(self, requests):
            if kind == "dense":
                return [DenseEdit({name: torch.full_like(weight, fill)}) for _ in requests]
            return [LowRankEdit((LowRank(0, u, v),)) for _ in requests]

    result = measure_sequence(engine, "overflows", Overflows(), plan("sequence:1", cases))
    before, after = result.checkpoints
    assert (before.kl, before.known) == (0.0, 1.0)
    assert before.blimp
    assert (after.perplexity, after.kl) == (math.inf, math.inf)
    assert (after.blimp, after.known, after.retained, after.collapsed_at) == (0.0, 0.0, 0.0, 1)
    assert '"kl":1e+30' in encode(after)
    assert all(math.isnan(m.kl) for m in rows(result.results) + rows(result.retained))


def test_a_sequence_stops_at_its_collapse_if_asked(lm, engine, cases):
    stopping = plan("sequence:5", cases, stop_at_collapse=True)
    result = measure_sequence(engine, "wrecker", Wrecker(lm), stopping)
    assert [p.step for p in result.checkpoints] == [0, 1, 2]
    assert [e.reason for e in result.retained[cases[4].id].exclusions] == [STOPPED]
    assert rows({0: result.retained[cases[1].id]})


def test_a_failure_before_any_collapse_is_an_error(engine, cases):
    class Failing:
        calls = 0

        def edit(self, requests):
            self.calls += 1
            if self.calls == 2:
                raise ZeroDivisionError("by nothing")
            return [NoEdit()]

    result = measure_sequence(engine, "failing", Failing(), plan("sequence:3", cases))
    errors = [result.results[case.id].error for case in cases[:3]]
    assert errors[1] == "failing failed at step 2: ZeroDivisionError: by nothing"


def test_nothing_of_a_sequence_counts_that_left_a_hook(lm, engine, cases):
    class Leaving:
        def edit(self, requests):
            lm.hf.register_forward_hook(lambda *_: None)
            return [NoEdit() for _ in requests]

    result = measure_sequence(engine, "leaving", Leaving(), plan("sequence:2", cases))
    assert all("hooks" in each.error for each in result.results.values())
    assert [checkpoint.step for checkpoint in result.checkpoints] == [0]


# -- drawing -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_sequences_are_drawn_by_seed_alone(edits, count, seed):
    pool = list(sources.load("embedded", limit=4, relations=("P36", "P37")).cases)
    protocol = parse_protocol(f"sequence:{edits}")

    def drawn(cases):
        return draw_sequences(cases, protocol, count, seed=seed, fits=lambda case: True)

    sequences = drawn(pool)
    assert sequences == drawn(pool[::-1])
    assert [len(s) for s in sequences.sequences] == [edits] * count
    for sequence in sequences.sequences:
        assert len({conflict_key(case) for case in sequence}) == edits


def test_sequences_of_all_cases_are_orders_of_the_same(cases):
    protocol = parse_protocol(f"sequence:{len(cases)}")
    sequences = draw_sequences(cases, protocol, 3, seed=0, fits=lambda case: True).sequences
    assert len({tuple(case.id for case in s) for s in sequences}) == 3
    assert {frozenset(case.id for case in s) for s in sequences} == {
        frozenset(case.id for case in cases)
    }


@pytest.mark.parametrize(
    ("text", "count", "batches"),
    [("batch:3", 3, 3), ("batch:3", 4, 3), ("batch:10", 8, 1), ("sequence:3/3", 4, 3),
     ("sequence:1", 11, 10), ("batch:5", 2, 2), ("batch:5", 3, 2)],
)  # fmt: skip
def test_batches_never_share_a_case(text, count, batches):
    """Their order means nothing, so a batch of the same cases is the same measurement again."""
    pool = sources.load("embedded", limit=6, relations=("P36", "P37")).cases
    facts = [case for case in pool if case.task == "fact"][:11]
    protocol = parse_protocol(text)

    def draw(n):
        return draw_sequences(
            facts, protocol, n, seed=0, fits=lambda case: case is not facts[4]
        ).sequences

    drawn = draw(min(count, batches))
    assert len({case.id for batch in drawn for case in batch}) == len(drawn) * protocol.edits
    if count > batches:
        with pytest.raises(TooFewCases) as refusal:
            draw(count)
        assert str(refusal.value) == (
            f"--sequences {count}: expected at most {batches}, as the 10 cases that fit make "
            f"{batches} of {protocol.edits} with no case in two; ask for fewer, or raise --limit"
        )


def test_batches_that_contradictions_use_up_are_refused(cases):
    first = cases[0]
    others = [
        replace(first, request=replace(first.request, id=name, target_new=name))
        for name in ("Paris", "Madrid")
    ]
    pool, pairs = [first, *others, cases[1]], parse_protocol("batch:2")

    def draw(**more):
        return draw_sequences(pool, pairs, 2, seed=0, fits=lambda case: True, **more)

    with pytest.raises(TooFewCases, match=r"at most 1, .* \(some contradict each other: --allow-"):
        draw()
    assert len({case.id for batch in draw(allow_conflicts=True).sequences for case in batch}) == 4


def test_contradicting_requests_never_meet_unless_allowed(cases):
    first = cases[0]
    other = replace(first, request=replace(first.request, id="other", target_new="Paris"))
    pair = parse_protocol("sequence:2")
    with pytest.raises(TooFewCases, match=r"there are 1 \(1 more contradict those: --allow-conf"):
        draw_sequences([first, other], pair, 1, seed=0, fits=lambda case: True)
    allowed = draw_sequences(
        [first, other], pair, 1, seed=0, fits=lambda case: True, allow_conflicts=True
    )
    assert {case.id for case in allowed.sequences[0]} == {first.id, "other"}
    three = draw_sequences([first, other, cases[1]], pair, 1, seed=0, fits=lambda case: True)
    assert {conflict_key(case) for case in three.sequences[0]} == {
        conflict_key(first),
        conflict_key(cases[1]),
    }


def test_a_neighbour_that_another_case_edits_is_left_out(lm):
    pool = list(sources.load("embedded", limit=None, relations=("P36",)).cases)
    case = pool[0]
    neighbour = next(p for p in case.probes if p.kind == "same_relation")
    other = next(c for c in pool if c.request.subject in neighbour.cloze.left and c.id != case.id)
    encoded = [
        encoding
        for encoding in encode_cases([case, other], lm.tokens)
        if isinstance(encoding, EncodedCase)
    ]
    (spared, _) = without_edited_neighbours(encoded, [case, other])
    assert [e.reason for e in spared.exclusions if e.probe == neighbour.id] == [EDITED]
    (alone,) = without_edited_neighbours(encoded[:1], [case])
    assert neighbour.id in [p.probe.id for p in alone.probes]


@pytest.mark.parametrize(
    ("prompt", "first", "second", "third"),
    [
        ("The capital of {} is", "France", "Japan", "Papua New Guinea"),
        ("{}的首都是", "法国", "日本", "巴布亚新几内亚"),
        ("その国は「{}」です。首都は", "フランス", "日本", "パプアニューギニア"),
        ("2020年{}的首都是", "法国", "Mac OS", "豈更"),
        ("เมืองหลวงของ{}คือ", "ฝรั่งเศส", "ญี่ปุ่น", "ปาปัวนิวกินี"),
        ("រដ្ឋធានីរបស់{}គឺ", "បារាំង", "ជប៉ុន", "ឡាវ"),
        ("{}၏မြို့တော်မှာ", "ပြင်သစ်", "ဂျပန်", "လာအို"),
        ("𠀀{}𠀁", "𠮷野", "𠮟", "㐂"),
    ],
)
def test_a_subject_is_found_also_where_no_spaces_separate_words(prompt, first, second, third):
    subjects = (first, second, third)
    for subject in subjects:
        assert mentions(prompt.format(subject), [subject])
        assert not mentions(prompt.format(subject), [s for s in subjects if s != subject])


@pytest.mark.parametrize(
    ("text", "subject", "named"),
    [
        ("The capital of Nigeria is", "Niger", False),
        ("The capital of Niger's north, NIGER, is", "niger", True),
        ("Столица Нигерии", "Нигер", False),
        ("대한민국의 수도", "한국", False),
        ("Die Hauptstadt von São Tomé ist", "São Tomé", True),
        ("Papua  New-Guinea is", "New Guinea", True),
        ("The number of snake_case2 is", "snake", False),
        ("日本の首都は", "日木", False),
        ("、。", "。", False),
    ],
)
def test_a_subject_is_named_as_whole_words(text, subject, named):
    assert mentions(text, [subject]) == named


def asked(probe):
    """An encoded probe of which only the text is read."""
    return SimpleNamespace(probe=probe)


@pytest.mark.parametrize("text", ["The capital of {} is", "{}的首都是", "เมืองหลวงของ{}คือ"])
def test_a_neighbour_is_left_out_in_every_script(text, lm, cases):
    first, second = (
        replace(
            case,
            request=replace(case.request, subject=subject),
            probes=tuple(
                probe._replace(cloze=Cloze(text.format(other)))
                for probe in case.probes
                if probe.criterion == "locality"
            ),
        )
        for case, subject, other in [(cases[0], "日本", "法国"), (cases[1], "法国", "德国")]
    )
    encoded = [EncodedCase(c, tuple(map(asked, c.probes)), ()) for c in (first, second)]
    named, unnamed = without_edited_neighbours(encoded, [first, second])
    assert [e.reason for e in named.exclusions] == [EDITED] * len(first.probes)
    assert not named.probes
    assert len(unnamed.probes) == len(second.probes) > 0
