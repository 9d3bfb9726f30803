"""A whole shard against realms so simple that they are obviously right: see `shard_life`.

A seed that fails is printed, and runs again as it was with RESTQ_SEED=<seed> RESTQ_TRIALS=1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from longrun import seeds
from shard_life import ShardLife
from simulation import SMALL

from restq.shards import endings, finishing, rows, shard, tasks
from restq.shards import queue as queues
from restq.shards.commands import batches
from restq.shards.gates import Limit
from restq.shards.memory_store import MemoryStore
from restq.shards.realm import Realm
from restq.shards.replies import Replies
from restq.shards.shard import Shard
from restq.shards.sqlite_store import SqliteStore
from restq.shards.tags import TagIndex

STEPS = 1_000  # of a life
PLANTED_SEEDS = 40  # within which a planted fault must be found


@pytest.fixture(autouse=True)
def _small_and_quiet() -> Iterator[None]:
    """A dozen jobs are many, and what befalls a shard is all it would log."""
    logging.disable(logging.CRITICAL)
    with ExitStack() as stack:
        for module, name, value in [*SMALL, (queues, "TAG_HEAPS_MAX", 2)]:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
    logging.disable(logging.NOTSET)


def _live(seed: int, open_store: Callable[[], Any]) -> None:
    life = ShardLife(seed, open_store)
    try:
        life.live(STEPS)
    except Exception as error:
        happened = "\n".join(map(repr, list(life.trace)[-20:]))
        error.add_note(f"seed {seed}, after {life.steps} steps:\n{happened}")
        raise
    finally:
        life.close()


def _live_in_memory(seed: int) -> None:
    store = MemoryStore()
    _live(seed, lambda: store)


def test_live_many_seeds_in_memory_is_the_same_as_the_model_after_every_step() -> None:
    for seed in seeds(3, 3_800):
        _live_in_memory(seed)


def test_live_many_seeds_on_disk_is_the_same_as_the_model_after_every_step(tmp_path: Path) -> None:
    for seed in seeds(1, 200):

        def open_store(path: Path = tmp_path / f"{seed}.db") -> SqliteStore:
            store = SqliteStore(path)
            store._database.execute("PRAGMA synchronous = OFF")  # no power is cut here
            return store

        _live(seed, open_store)


def test_live_the_same_seed_twice_is_the_same_life() -> None:
    traces = []
    for seed in (3, 3, 4):
        store = MemoryStore()
        life = ShardLife(seed, lambda store=store: store)  # type: ignore[misc]
        life.live(200)
        traces.append(list(life.trace))
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


# -- it finds what is planted --------------------------------------------------------------------------------------


def _finds() -> bool:
    for seed in range(1, PLANTED_SEEDS + 1):
        try:
            _live_in_memory(seed)
        except Exception:
            return True
    return False


def _attempts_are_not_loaded(load: Any) -> Any:
    def loaded(store: Any) -> Any:
        found = load(store)
        return found._replace(places=[(*row[:5], 0, *row[6:]) for row in found.places])

    return loaded


def _refusal_takes_its_neighbours_along(serve: Any) -> Any:
    def served(self: Any, actor: Any, mail: Any) -> Any:
        outcome = serve(self, actor, mail)
        if getattr(outcome, "status", 200) == 400:
            self.changes.take()
        return outcome

    return served


def _one_tag_stays(drop: Any) -> Any:
    def dropped(index: Any, job: Any) -> None:
        job.tags = job.tags[:2]
        drop(index, job)

    return dropped


def _any_lease_of_the_place_counts(leased_place: Any) -> Any:
    def found(realm: Any, proof: str) -> Any:
        place = leased_place(realm, proof)
        if place is None and proof.count("-") == 2 and proof.split("-")[1].isascii():
            key = int(proof.split("-")[1] or 0)
            place = finishing.held_under(realm, key)
        return place

    return found


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        pytest.param(MemoryStore, "load", _attempts_are_not_loaded, id="attempts forgotten at a start"),
        pytest.param(Replies, "load", lambda load: lambda replies, rows: load(replies, ()), id="replies, too"),
        pytest.param(Replies, "find", lambda find: lambda *request: [], id="keys that count for nothing"),
        pytest.param(shard, "RESUMED", lambda kinds: {"batch"}, id="sweeps that do not go on after a start"),
        pytest.param(tasks, "_note_key", lambda note: lambda actor, mail: None, id="sweeps that forget their key"),
        pytest.param(batches, "_note_done", lambda note: lambda *done: None, id="slices that are done twice"),
        pytest.param(Shard, "_serve", _refusal_takes_its_neighbours_along, id="refusals that fail their neighbours"),
        pytest.param(TagIndex, "drop", _one_tag_stays, id="tags that are still counted"),
        pytest.param(
            Limit, "ended", lambda ended: lambda limit, now: None, id="leases that count under a limit for good"
        ),
        pytest.param(
            rows,
            "queue_row",
            lambda row: lambda realm, queue: row(realm, queue)._replace(next_at=0.0),
            id="rates that begin anew at a start",
        ),
        pytest.param(finishing, "leased_place", _any_lease_of_the_place_counts, id="stale leases that count"),
        pytest.param(
            Realm,
            "write",
            lambda write: lambda realm, changed=False: write(realm, changed and realm.task is not None),
            id="settings that are not noted",
        ),
        pytest.param(endings, "outlive", lambda outlive: lambda realm, job: None, id="redrives that leave the expiry"),
    ],
)
def test_live_with_a_planted_fault_finds_it(where: Any, name: str, fault: Callable[[Any], Any]) -> None:
    with mock.patch.object(where, name, fault(getattr(where, name))):
        assert _finds()
