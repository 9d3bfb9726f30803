"""The keys of a realm over any number of moves: in order, never twice, and never running out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from restq.shards.renumbering import BLOCK_BITS, UNMOVED, FirstKeys, Renumbering

BLOCK = 1 << BLOCK_BITS


def blocks_of(*keys: int) -> list[int]:
    return [key >> BLOCK_BITS for key in keys]


def test_keys_stay_in_order_and_gaps_of_whole_blocks_are_left_out() -> None:
    source = [5, BLOCK - 1, 7 * BLOCK, 7 * BLOCK + 1, 900 * BLOCK + 3]
    new = Renumbering(blocks_of(*source), 1000 * BLOCK + 9, 1)
    first = 1001 * BLOCK
    kept = [first + 5, first + BLOCK - 1, first + BLOCK, first + BLOCK + 1, first + 2 * BLOCK + 3]
    assert [new.key(key) for key in source] == kept
    assert new.next_key == first + 3 * BLOCK + 9


def test_keys_are_above_all_that_either_file_gave_out() -> None:
    for source_next, target_next in ((9, 20), (20, 9), (BLOCK, BLOCK), (3 * BLOCK + 1, 1)):
        new = Renumbering([0], source_next, target_next)
        assert new.key(0) >= max(source_next, target_next)
        assert new.next_key > new.key(0)


def test_keys_of_neighbouring_blocks_stay_neighbours() -> None:
    """A batch has its payloads under keys one after the other."""
    new = Renumbering([4, 5, 9], 10 * BLOCK, 1)
    assert new.key(5 * BLOCK) == new.key(5 * BLOCK - 1) + 1


def test_realm_that_was_moved_by_an_earlier_version_has_one_number() -> None:
    earlier = FirstKeys.read(70)
    assert (earlier.first(100), earlier.key(30)) == (30, 100)
    new = Renumbering([0], 200, 1)
    moved = FirstKeys.read(earlier.moved(new).text)
    assert (moved.first(new.key(100)), moved.key(30)) == (30, new.key(100))


def test_first_key_of_what_is_gone_stands_for_the_end_of_what_was_before_it() -> None:
    """A cursor goes on where it was, and skips nothing."""
    new = Renumbering([0, 2], 3 * BLOCK, 1)  # there is nothing left in block 1
    moved = UNMOVED.moved(new)
    assert new.key(BLOCK - 1) <= moved.key(BLOCK + 7) < new.key(2 * BLOCK)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2 * BLOCK)), max_size=60))
def test_many_moves_keep_order_and_first_keys(steps: list[tuple[int, int, int]]) -> None:
    """Three realms go from shard to shard; whichever is there takes keys, some far apart, and drops old ones."""
    counters = [1, 1, 1, 1]
    at = [0, 1, 2]
    keys: list[dict[int, int]] = [{}, {}, {}]  # by realm: the first key to the key that it is now
    firsts = [UNMOVED, UNMOVED, UNMOVED]
    for number, (target, drops, skipped) in enumerate(steps):
        realm = number % 3
        shard = at[realm]
        counters[shard] += skipped
        first = firsts[realm].first(counters[shard])
        assert first > max(keys[realm], default=-1), "no first key is there twice"
        keys[realm][first] = counters[shard]
        counters[shard] += 1
        for gone in list(keys[realm])[1 : 1 + drops]:
            del keys[realm][gone]
        if target != shard:
            used = {key >> BLOCK_BITS for other, held in enumerate(keys) if at[other] == shard for key in held.values()}
            new = Renumbering(used, counters[shard], counters[target])
            assert min(new.key(key) for key in keys[realm].values()) >= max(counters[shard], counters[target])
            keys[realm] = {first: new.key(key) for first, key in keys[realm].items()}
            assert list(keys[realm].values()) == sorted(keys[realm].values())
            firsts[realm] = FirstKeys.read(firsts[realm].moved(new).text)
            counters[target], at[realm] = new.next_key, target
            assert counters[target] > max(keys[realm].values())
        assert [firsts[realm].first(key) for key in keys[realm].values()] == list(keys[realm])
        assert [firsts[realm].key(first) for first in keys[realm]] == list(keys[realm].values())
    most = len(steps) * (len(steps) + 3) * 3  # blocks: each move takes at most those that have rows, and one
    assert max(counters) <= most * BLOCK + sum(skipped for *_, skipped in steps) + BLOCK
