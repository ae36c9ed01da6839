"""The protocol as a value: its text, its slugs in test ids, its checkpoints."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.cases import sources
from kn_bench.editing.edit import NoEdit, NotApplicable
from kn_bench.editing.method import begin, edit_step, kind_of, refusals
from kn_bench.measure.protocols import (
    ONCE,
    SINGLE,
    Occasion,
    Protocol,
    checkpoints,
    occasion_of,
    parse_protocol,
)
from kn_bench.testing import plan
from kn_bench.testing.options import Options
from kn_bench.testing.sequences import draw

protocols = st.one_of(
    st.just(SINGLE),
    st.integers(1, 10**6).map(lambda n: Protocol("batch", n, n)),
    st.tuples(st.integers(1, 1000), st.integers(1, 1000)).map(
        lambda steps_by: Protocol("sequence", steps_by[0] * steps_by[1], steps_by[1])
    ),
)


@given(protocols)
def test_a_protocol_is_the_value_of_its_text(protocol):
    assert parse_protocol(str(protocol)) == protocol


@given(protocols, st.integers(0, 99), st.sampled_from(["immediate", "retained"]))
def test_an_occasion_is_the_value_of_its_slug(protocol, sequence, asked):
    occasion = ONCE if protocol == SINGLE else Occasion(str(protocol), sequence, asked)
    assert occasion_of(occasion.slug) == occasion
    assert "-" not in occasion.slug


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sequence",
        "sequence:0",
        "batch:-1",
        "batch:10/2",
        "sequence:ten",
        "Single",
        "sequence:3/",
    ],
)
def test_what_is_no_protocol_is_refused_with_the_forms_that_are(text):
    with pytest.raises(ValueError, match="expected single, batch:N, sequence:N or sequence:N/B"):
        parse_protocol(text)


def test_steps_that_do_not_come_out_even_are_refused():
    with pytest.raises(ValueError, match="'sequence:10/3': expected N edits in whole steps of B"):
        parse_protocol("sequence:10/3")


def test_checkpoints_are_1_2_5_10_and_the_last():
    assert list(checkpoints(1)) == [1]
    assert list(checkpoints(5)) == [1, 2, 5]
    assert list(checkpoints(120)) == [1, 2, 5, 10, 20, 50, 100, 120]
    assert list(checkpoints(0)) == []


class Apart:
    def edit(self, requests):
        return [NotApplicable(request) if request < 0 else NoEdit() for request in requests]


class Together:
    def __init__(self):
        self.calls = 0

    def edit_together(self, requests):
        self.calls += 1
        if any(request < 0 for request in requests):
            raise NotApplicable("negative")
        return NoEdit()


class Carried:
    def begin(self):
        return {}

    def edit_together(self, requests, state):
        return NoEdit(), {**state, "requests": torch.tensor(requests)}


def test_a_method_takes_part_by_what_its_object_offers():
    assert [kind_of(m) for m in (Apart(), Together(), Carried())] == [
        "apart",
        "together",
        "carried",
    ]
    with pytest.raises(TypeError, match=r"expected edit\(requests\), edit_together"):
        kind_of(object())
    requests: Any = [1, 2]
    state = begin(Carried())
    assert state == {}
    carried = edit_step(Carried(), requests, state).state
    assert {name: value.tolist() for name, value in carried.items()} == {"requests": [1, 2]}
    assert len(edit_step(Apart(), requests, {}).edits) == 2
    assert len(edit_step(Together(), requests, {}).edits) == 1


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_the_requests_a_method_refuses_are_found_in_a_step(requests):
    refused = refusals(Together(), requests, {})
    assert set(refused) == {i for i, request in enumerate(requests) if request < 0}


def planned(facts: int, pairs: int) -> plan.TestPlan:
    cases = sources.load("embedded", limit=20).cases
    of = {task: [case for case in cases if case.task == task] for task in ("fact", "pair")}
    chosen = of["fact"][:facts] + of["pair"][:pairs]
    return plan.TestPlan({"tiny_gpt2": "tiny-gpt2"}, {c.id: (c,) for c in chosen}, (), {}, 8)


def test_a_task_with_too_few_cases_for_its_batches_is_left_out_with_a_line():
    options = Options(protocol=parse_protocol("batch:10"), sequences=8)
    drawing = draw(planned(85, 35), options, {})
    assert [s.number for s in drawing.sequences["tiny_gpt2"]] == [*range(8)]
    assert {c.task for s in drawing.sequences["tiny_gpt2"] for c in s.cases} == {"fact"}
    (note,) = drawing.notes
    assert note.startswith(
        "tiny-gpt2, pairs: --sequences 8: expected at most 3, as the 35 cases that fit make 3 of 10"
    )


def test_more_batches_than_any_task_has_cases_for_are_refused():
    options = Options(protocol=parse_protocol("batch:10"), sequences=8)
    with pytest.raises(ValueError, match=r"^tiny-gpt2, facts: --sequences 8: expected at most 1, "):
        draw(planned(10, 0), options, {})
