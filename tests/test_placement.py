"""Which shard a realm lives in."""

from __future__ import annotations

from collections import Counter

import pytest

from restq import placement
from restq.placement import Placement, home

NAMES = [f"realm {number}" for number in range(6_000)]

# Written down when files with these placements were made: they must never change.
PINNED = {
    ("default", 2): 1,
    ("default", 16): 8,
    ("test", 2): 0,
    ("test", 16): 8,
    ("größe", 16): 5,
    ("realm 1", 16): 1,
    ("realm 2", 16): 15,
    ("realm 3", 1000): 313,
    ("realm 4", 1000): 646,
}


@pytest.mark.parametrize(("realm", "count"), PINNED)
def test_home_of_known_realm_is_where_it_always_was(realm: str, count: int) -> None:
    assert home(realm, count) == PINNED[realm, count]


def test_home_with_one_shard_is_that_one() -> None:
    assert {home(name, 1) for name in NAMES[:100]} == {0}


@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_home_of_many_realms_is_even(count: int) -> None:
    found = Counter(home(name, count) for name in NAMES)
    assert set(found) == set(range(count))
    expected = len(NAMES) / count
    assert all(abs(realms - expected) < 5 * expected**0.5 for realms in found.values())


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (4, 8), (7, 16)])
def test_home_with_more_shards_moves_few_and_only_to_new_shards(before: int, after: int) -> None:
    moved = [(home(name, before), home(name, after)) for name in NAMES]
    moved = [(old, new) for old, new in moved if old != new]
    assert all(new >= before for _, new in moved)
    expected = len(NAMES) * (after - before) / after
    assert abs(len(moved) - expected) < 5 * expected**0.5


def test_shard_of_unknown_realm_is_its_home() -> None:
    placed = Placement(8)
    assert [placed.shard_of(name) for name in NAMES[:200]] == [home(name, 8) for name in NAMES[:200]]
    assert [placed.shard_of(name) for name in NAMES[:200]] == [home(name, 8) for name in NAMES[:200]]


def test_shard_of_realm_that_was_said_to_be_elsewhere_is_there() -> None:
    name = NAMES[0]
    away = (home(name, 8) + 1) % 8
    assert Placement(8, {name: away}).shard_of(name) == away
    assert Placement(8, {name: away}).shard_of(NAMES[1]) == home(NAMES[1], 8)


def test_shard_of_realm_after_learning_is_the_learned_one() -> None:
    name = NAMES[0]
    placed = Placement(8)
    assert placed.shard_of(name) == home(name, 8)
    for away in ((home(name, 8) + 1) % 8, (home(name, 8) + 2) % 8, home(name, 8)):
        placed.learn(name, away)
        assert placed.shard_of(name) == away
    assert placed.shard_of(NAMES[1]) == home(NAMES[1], 8)


def test_learning_does_not_change_what_was_given() -> None:
    elsewhere = {"a": 1}
    Placement(8, elsewhere).learn("b", (home("b", 8) + 1) % 8)
    assert elsewhere == {"a": 1}


def test_shard_of_endless_names_keeps_no_endless_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "CACHE_COUNT_MAX", 50)
    placed = Placement(4)
    for name in NAMES[:1000]:
        assert placed.shard_of(name) == home(name, 4)
        assert len(placed._homes) <= 50


def test_forget_leaves_what_was_said_at_first() -> None:
    placed = Placement(2, {NAMES[0]: 1 - home(NAMES[0], 2)})
    placed.learn(NAMES[0], home(NAMES[0], 2))
    placed.learn(NAMES[1], 1 - home(NAMES[1], 2))
    placed.forget()
    assert [placed.shard_of(name) for name in NAMES[:2]] == [1 - home(NAMES[0], 2), home(NAMES[1], 2)]
