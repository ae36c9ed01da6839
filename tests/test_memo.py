"""What a model remembers: bounded, by its weights, and gone with it."""

import gc
import itertools
import weakref

import pytest
import torch

from kn_bench.model.memo import n_bytes
from tests.tiny_models import tiny_model


@pytest.fixture
def lm():
    return tiny_model.__wrapped__("gpt2")


def counted(lm, key="a"):
    """What the memo gives for ``key``, and how often it had to be made."""
    calls = itertools.count(1)
    result = lm.memo.get(("test", key), lambda: next(calls))
    return result, next(calls) - 1


def test_what_was_made_is_made_once(lm):
    assert counted(lm) == (1, 1)
    assert counted(lm) == (1, 0)
    assert counted(lm, "b") == (1, 1)


def test_many_are_made_in_one_call(lm):
    asked = []

    def make(keys):
        asked.append(list(keys))
        return [key[1] * 2 for key in keys]

    keys = [("n", 1), ("n", 2), ("n", 1)]
    assert lm.memo.get_many(keys, make) == {("n", 1): 2, ("n", 2): 4}
    assert lm.memo.get_many([*keys, ("n", 3)], make) == {("n", 1): 2, ("n", 2): 4, ("n", 3): 6}
    assert lm.memo.get_many(keys, make)[("n", 2)] == 4
    assert asked == [[("n", 1), ("n", 2)], [("n", 3)]]


def test_other_weights_hide_it_and_the_old_ones_show_it_again(lm):
    weight = lm.site(1).weight
    kept = weight.detach().clone()
    assert lm.verified_hash
    counted(lm)
    with torch.no_grad():
        weight.add_(1)
    assert counted(lm) == (1, 1)
    assert counted(lm) == (1, 0)
    with torch.no_grad():
        weight.copy_(kept)
    assert counted(lm) == (1, 0)
    assert len(lm.memo.keys("test")) == 1


def test_what_is_of_the_original_is_found_under_other_weights(lm):
    assert lm.memo.get(("o",), lambda: "original", original=True) == "original"
    with torch.no_grad():
        lm.site(1).weight.add_(1)
    assert lm.memo.get(("o",), lambda: "edited", original=True) == "original"
    assert lm.memo.get(("o",), lambda: "edited") == "edited"


def test_nothing_is_found_or_kept_while_hooks_change_the_model(lm):
    counted(lm)
    with lm.site_hooks(lambda _, __, mlp_out: mlp_out + 1, [0]):
        assert counted(lm) == (1, 1)
        assert counted(lm, "new") == (1, 1)
    assert counted(lm) == (1, 0)
    assert counted(lm, "new") == (1, 1)


def test_it_is_bounded_in_bytes_and_forgets_the_oldest(lm):
    lm.batcher.memory = 4 * 5000
    for i in range(6):
        lm.memo.get(("t", i), lambda: torch.zeros(250))  # 1000 bytes
        lm.memo.get(("t", 0), lambda: torch.ones(250))
    assert lm.memo.n_bytes <= 5000
    left = [i for _, i in lm.memo.keys("t")]
    assert 0 in left
    assert 5 in left
    assert 1 not in left


class Growing:
    """A result that comes to hold more."""

    n_bytes = 1000


def test_a_large_result_goes_before_small_ones_that_are_older(lm):
    """Values of ROME were optimised anew for each method: C and answers took their room."""
    lm.batcher.memory = 4 * 100_000
    for i in range(20):
        lm.memo.get(("value", i), lambda: torch.zeros(250))
    for i in range(30):
        lm.memo.get(("answer", i), lambda: torch.zeros(2500))  # 300,000 bytes in all
        assert lm.memo.n_bytes <= 100_000
    lm.memo.get(("solver",), lambda: torch.zeros(10_000))
    assert len(lm.memo.keys("solver")) == 1  # the latest stays
    for i in range(30, 34):
        lm.memo.get(("answer", i), lambda: torch.zeros(2500))
    assert len(lm.memo.keys("value")) == 20
    assert not lm.memo.keys("solver")
    # but what nobody asks for gives way in the end
    for i in range(34, 600):
        lm.memo.get(("answer", i), lambda: torch.zeros(2500))
    assert not lm.memo.keys("value")


def test_a_result_that_has_grown_is_counted_when_it_is_used(lm):
    lm.batcher.memory = 4 * 10_000
    growing = Growing()
    lm.memo.get(("solver",), lambda: growing)
    lm.memo.get(("t",), lambda: torch.zeros(250))
    before = lm.memo.n_bytes
    growing.n_bytes = 5000
    assert lm.memo.get(("solver",), lambda: None) is growing
    assert lm.memo.n_bytes == before + 4000
    growing.n_bytes = 20_000
    assert lm.memo.get(("solver",), lambda: None) is growing
    assert len(lm.memo) == 1


def test_one_result_larger_than_the_bound_stays_until_the_next(lm):
    lm.batcher.memory = 4
    assert counted(lm) == (1, 1)
    assert counted(lm) == (1, 0)
    counted(lm, "b")
    assert len(lm.memo) == 1


def test_it_goes_with_the_model_at_once():
    lm = tiny_model.__wrapped__("gpt2")
    lm.memo.get(("t",), lambda: torch.zeros(9))
    gone = weakref.ref(lm.memo)
    gc.collect()
    gc.disable()
    try:
        del lm
        assert gone() is None
    finally:
        gc.enable()


def test_tensors_are_counted_wherever_they_are():
    tensor = torch.zeros(100, dtype=torch.float64)
    assert n_bytes(tensor) == 800
    assert 1600 <= n_bytes((tensor, {"a": [tensor]})) < 2200
    assert n_bytes(tuple(range(1000))) >= 1000
