"""A whole shard against realms so simple that they are obviously right: see `shard_life`.

A seed that fails is printed, and runs again as it was with RESTQ_SEED=<seed> RESTQ_TRIALS=1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from longrun import seeds
from shard_life import ShardLife
from simulation import SMALL

from restq.shards import queue as queues
from restq.shards.memory_store import MemoryStore
from restq.shards.sqlite_store import SqliteStore

STEPS = 1_000  # of a life


@pytest.fixture(autouse=True)
def _small_and_quiet() -> Iterator[None]:
    """A dozen jobs are many, and what befalls a shard is all it would log."""
    logging.disable(logging.CRITICAL)
    with ExitStack() as stack:
        for module, name, value in [*SMALL, (queues, "TAG_HEAPS_MAX", 2)]:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
    logging.disable(logging.NOTSET)


def _live(seed: int, open_store: Any, steps: int = STEPS) -> int:
    life = ShardLife(seed, open_store)
    try:
        life.live(steps)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {life.steps} steps")
        raise
    finally:
        life.close()
    return life.steps


def test_live_many_seeds_in_memory_is_the_same_as_the_model_after_every_step() -> None:
    for seed in seeds(8, 3_600):
        store = MemoryStore()
        _live(seed, lambda store=store: store)


def test_live_many_seeds_on_disk_is_the_same_as_the_model_after_every_step(tmp_path: Path) -> None:
    for seed in seeds(2, 400):
        path = tmp_path / f"{seed}.db"

        def open_store(path: Path = path) -> SqliteStore:
            store = SqliteStore(path)
            store._database.execute("PRAGMA synchronous = OFF")  # no power is cut here
            return store

        _live(seed, open_store)
