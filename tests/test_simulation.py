"""Nothing is lost, and nobody else holds a lease, whatever befalls a whole server in one process: see `simulation`.

A seed that fails is printed, and runs again as it was with RESTQ_SEED=<seed> RESTQ_TRIALS=1.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from checker import ACK, Checker, Scope, Unit
from longrun import LONG, seeds
from sim_faults import FAULTS, RARE
from sim_run import simulate

from restq.errors import StorageFull
from restq.shards import leasing, process
from restq.shards.replies import Replies
from restq.shards.store import StoreFailed

TESTS = Path(__file__).resolve().parent
UNIT = Unit("realm", 0, "job")
PLANTED_SEEDS = 300  # within which a planted fault must be found


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What befalls a server is all it would log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_simulate_many_seeds_finds_nothing_lost_and_no_lease_held_twice() -> None:
    for seed in seeds(60, 20_000):
        result = simulate(seed)
        assert not result.wrong, f"seed {seed}: " + "\n".join(result.wrong[:5])


def test_simulate_many_seeds_on_disk_finds_nothing_lost_and_no_lease_held_twice() -> None:
    for seed in seeds(4, 500):
        result = simulate(seed, on_disk=True)
        assert not result.wrong, f"seed {seed}: " + "\n".join(result.wrong[:5])


def test_simulate_same_seed_gives_same_trace_and_another_seed_another() -> None:
    traces = [simulate(seed).trace for seed in (7, 7, 8)]
    assert len(traces[0]) > 100
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


def test_simulate_in_another_process_gives_same_trace() -> None:
    # Where hashes of text are others, sets of it are gone through in another order.
    program = "import json, logging; logging.disable(50); from sim_run import simulate; "
    program += "print(json.dumps(simulate(7).trace))"
    root = str(TESTS.parent)
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join((str(TESTS), root))},
                capture_output=True,
                check=True,
            ).stdout
        )
        for salt in ("1", "2")
    ]
    assert found[0] == found[1]


# -- it finds what is planted --------------------------------------------------------------------------------------


def _finds(is_restless: bool | None = None) -> str:
    for seed in range(1, PLANTED_SEEDS + 1):
        if wrong := simulate(seed, is_restless=is_restless).wrong:
            return wrong[0]
    return ""


def test_simulate_shard_that_replies_before_its_commit_is_found_out() -> None:
    take_changes = process.Shard.take_changes

    def reply_and_take_changes(shard: Any) -> Any:
        for mail, reply in shard.outbox:
            mail.sender.reply(reply)
            mail.sender.flush()
        shard.outbox = []
        return take_changes(shard)

    with mock.patch.object(process.Shard, "take_changes", reply_and_take_changes):
        assert _finds()


def test_simulate_shard_that_takes_a_failed_commit_for_a_full_disk_is_found_out() -> None:
    turn = process.ShardProcess._turn

    async def turn_and_go_back(self: Any) -> None:
        commit = self._store.commit

        async def failing(*group: Any) -> None:
            try:
                await commit(*group)
            except StoreFailed:
                raise StorageFull("there is no room left on the disk: nothing was done") from None

        with mock.patch.object(self._store, "commit", failing):
            await turn(self)

    with mock.patch.object(process.ShardProcess, "_turn", turn_and_go_back):
        assert _finds()


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (leasing.Pull, "number", property(lambda pull: 1, lambda pull, number: None)),
        (Replies, "find", lambda replies, realm, once, now: []),
    ],
    ids=["lease ids that repeat", "keys that count for nothing"],
)
def test_simulate_planted_fault_is_found_out(where: type, name: str, fault: Callable[..., Any]) -> None:
    with mock.patch.object(where, name, fault, create=True):
        assert _finds()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if LONG or fault not in RARE])
def test_simulate_move_with_planted_fault_is_found_out(fault: str) -> None:
    with FAULTS[fault]():
        assert _finds(is_restless=True)


def test_simulate_moves_as_they_are_finds_nothing() -> None:
    # What the planted faults are compared with; and that realms did move, a number of times in each.
    results = [simulate(seed, is_restless=True) for seed in seeds(20, 1_000)]
    assert [line for result in results for line in result.wrong] == []
    assert sum(result.arrival_count for result in results) > 2 * len(results)


# -- what the checker says -----------------------------------------------------------------------------------------


def _added(checker: Checker) -> None:
    checker.begin(1.0, "add", adds={UNIT: frozenset()}).ok(2.0)


def _pulled(checker: Checker, at: float, lease: str, seconds: float = 10.0) -> None:
    call = checker.begin(at, "pull", pulls="realm")
    call.ok(at + 0.5)
    call.delivered(UNIT, lease, seconds, at + 0.25 + seconds)


def _acked(checker: Checker, at: float, lease: str, *, is_stale: bool = False) -> None:
    call = checker.begin(at, "ack", ends={lease: ACK})
    if is_stale:
        call.failed(at + 0.5, [lease])
    else:
        call.ok(at + 0.5, [lease])


def _names(checker: Checker, drained_at: float = 100.0) -> list[str]:
    checker.drained_at = drained_at
    return [line[:2] for line in checker.violations()]


def test_check_job_that_was_added_and_never_delivered_is_lost() -> None:
    checker = Checker()
    _added(checker)
    assert _names(checker) == ["D1"]


@pytest.mark.parametrize("answer", ["ok", "unknown"])
def test_check_job_that_was_perhaps_removed_is_not_lost(answer: str) -> None:
    checker = Checker()
    _added(checker)
    call = checker.begin(3.0, "remove", removes=[Scope("realm", job="job")])
    if answer == "ok":
        call.ok(4.0)
    assert _names(checker) == []


def test_check_job_that_was_certainly_not_removed_is_lost() -> None:
    checker = Checker()
    _added(checker)
    checker.begin(3.0, "remove", removes=[Scope("realm", job="job")]).failed(4.0)
    assert _names(checker) == ["D1"]


def test_check_job_that_nobody_added_is_unexpected() -> None:
    checker = Checker()
    _pulled(checker, 1.0, "a")
    assert _names(checker) == ["D2"]


def test_check_job_that_comes_back_after_its_ack_is_unexpected() -> None:
    checker = Checker()
    _added(checker)
    _pulled(checker, 3.0, "a")
    _acked(checker, 4.0, "a")
    _pulled(checker, 5.0, "b")
    assert _names(checker, 0.0) == ["D2"]


def test_check_two_leases_at_once_are_found_and_one_after_the_other_are_not() -> None:
    checker = Checker()
    _added(checker)
    _pulled(checker, 3.0, "a")
    _pulled(checker, 20.0, "b")
    assert _names(checker, 0.0) == []
    _pulled(checker, 25.0, "c")
    assert _names(checker, 0.0) == ["L1"]


def test_check_lease_id_given_twice_is_found() -> None:
    checker = Checker()
    _added(checker)
    _pulled(checker, 3.0, "a")
    _pulled(checker, 20.0, "a")
    assert _names(checker, 0.0) == ["L1"]


def test_check_stale_lease_that_still_did_something_is_found() -> None:
    checker = Checker()
    _added(checker)
    _pulled(checker, 3.0, "a")
    _pulled(checker, 20.0, "b")
    _acked(checker, 21.0, "a")
    assert _names(checker, 0.0) == ["L1"]


def test_check_lease_in_force_that_was_refused_is_found() -> None:
    checker = Checker()
    _added(checker)
    _pulled(checker, 3.0, "a")
    _acked(checker, 4.0, "a", is_stale=True)
    assert _names(checker, 0.0) == ["L1"]
