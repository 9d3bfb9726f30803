"""The heap whose entries may die in place."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from restq.shards.heap import DEAD_COUNT_MIN, LazyHeap


def heap_of(numbers: list[int]) -> tuple[LazyHeap[int], set[int]]:
    """A heap of these numbers, and the set of those that live."""
    live = set(numbers)
    heap: LazyHeap[int] = LazyHeap(live.__contains__)
    for number in numbers:
        heap.push(number)
    return heap, live


def drained(heap: LazyHeap[int]) -> list[int]:
    found = []
    while (entry := heap.pop()) is not None:
        found.append(entry)
    return found


def test_pop_of_empty_heap_gives_none() -> None:
    heap, _ = heap_of([])
    assert heap.pop() is None
    assert heap.peek() is None
    assert len(heap) == 0


def test_pop_gives_smallest_first() -> None:
    numbers = random.Random(1).sample(range(10_000), 500)
    heap, _ = heap_of(numbers)
    assert drained(heap) == sorted(numbers)


def test_peek_leaves_entry_in_place() -> None:
    heap, _ = heap_of([2, 1])
    assert (heap.peek(), heap.peek(), len(heap)) == (1, 1, 2)
    assert heap.pop() == 1


def test_pop_passes_over_dead_entries() -> None:
    heap, live = heap_of([1, 2, 3, 4])
    for number in (1, 3):
        live.remove(number)
        heap.discard()
    assert len(heap) == 2
    assert drained(heap) == [2, 4]
    assert len(heap) == 0


def test_peek_drops_dead_entries_on_top() -> None:
    heap, live = heap_of([1, 2])
    live.remove(1)
    heap.discard()
    assert heap.peek() == 2
    assert heap.entries == [2]
    assert len(heap) == 1


def test_discard_of_most_entries_keeps_memory_within_twice_the_live() -> None:
    heap, live = heap_of(list(range(10_000)))
    for number in random.Random(2).sample(range(10_000), 9_990):
        live.remove(number)
        heap.discard()
        assert len(heap.entries) <= max(2 * len(heap), len(heap) + DEAD_COUNT_MIN)
        assert len(heap) == len(live)
    assert drained(heap) == sorted(live)


def test_discard_of_few_entries_rebuilds_nothing() -> None:
    heap, live = heap_of(list(range(DEAD_COUNT_MIN - 1)))
    entries = heap.entries
    for number in list(live):
        live.remove(number)
        heap.discard()
    assert heap.entries is entries
    assert len(heap) == 0


def test_rebuild_holds_exactly_the_given_entries() -> None:
    heap, live = heap_of([5, 6, 7])
    live.clear()
    live.update([3, 1, 2])
    heap.rebuild([3, 1, 2])
    assert len(heap) == 3
    assert drained(heap) == [1, 2, 3]


@given(st.lists(st.tuples(st.sampled_from(["push", "discard", "pop", "peek"]), st.integers(0, 10**9)), max_size=300))
def test_any_calls_in_a_row_give_what_a_sorted_list_gives(calls: list[tuple[str, int]]) -> None:
    heap, live = heap_of([])
    for number, (call, chance) in enumerate(calls):
        if call == "push":
            live.add(entry := (chance % 100) * 1_000 + number)
            heap.push(entry)
        elif call == "discard" and live:
            live.remove(sorted(live)[chance % len(live)])
            heap.discard()
        elif call == "pop":
            smallest = min(live, default=None)
            assert heap.pop() == smallest
            live.discard(-1 if smallest is None else smallest)
        else:
            assert heap.peek() == min(live, default=None)
        assert len(heap) == len(live)
