"""Batches fit into memory, and halve where it runs out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.model.batching import MEMORY, Batcher, default_memory, out_of_memory


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 60))
def test_batches_are_of_one_shape_within_memory_and_hold_every_item_once(lengths, memory):
    batcher = Batcher(2 * memory)
    seen = []
    for batch in batcher.batches(lengths, item_bytes=float, shape=lambda n: n % 3):
        seen += batch
        members = [lengths[index] for index in batch]
        assert len({n % 3 for n in members}) == 1
        assert len(batch) == 1 or len(batch) * max(members) <= memory
    assert sorted(seen) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 60))
def test_results_come_in_the_order_of_the_items(lengths, memory):
    results = Batcher(memory).run(
        lambda batch: [10 * n for n in batch], lengths, item_bytes=float, shape=lambda n: n
    )
    assert results == [10 * n for n in lengths]


@given(st.integers(0, 50), st.integers(1, 60))
def test_parts_follow_one_another(n, memory):
    parts = Batcher(memory).parts(lambda part: part, n, 2)
    assert [i for part in parts for i in part] == list(range(n))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"),
    ],
)
def test_running_out_of_memory_halves_this_batch_and_all_later_ones(error):
    batcher, sizes = Batcher(2 * 16), []

    def compute(batch):
        sizes.append(len(batch))
        if len(batch) > 5:
            raise error
        return list(batch)

    assert batcher.run(compute, range(40), item_bytes=lambda _: 1) == list(range(40))
    assert sizes == [16, 8, 4, 4, 8, 4, 4, *[2] * 12]
    assert batcher.pass_bytes == 2


def test_one_item_that_is_too_much_is_said_so():
    def never(_):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        Batcher(8).run(never, [1, 2], item_bytes=lambda _: 1)


def test_other_errors_pass():
    def broken(_):
        raise RuntimeError("shapes do not match")

    batcher = Batcher(8)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        batcher.run(broken, [1, 2], item_bytes=lambda _: 1)
    assert batcher.memory == 8


def test_a_real_failed_allocation_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_memory_grows_with_the_weights():
    cpu = torch.device("cpu")
    assert default_memory(1 << 20, cpu) == MEMORY
    assert default_memory(6 << 30, cpu) == 6 << 30
    halves = Batcher(MEMORY)
    assert halves.pass_bytes + halves.answer_bytes + halves.memo_bytes == MEMORY
