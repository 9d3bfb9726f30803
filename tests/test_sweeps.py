"""What concerns many jobs at once, in steps: what it counts, and that a crash between its steps changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from realm_rig import NOW, Rig, finish
from shard_rig import Rig as ShardRig

from restq.errors import QueueNotFound, TagNotFound
from restq.shards import operating, sweeps
from restq.shards.sweeps import Sweep


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.check()


def kill(rig: Rig, *queues: int) -> None:
    """Jobs a and b die in each of these queues."""
    rig.settings(max_attempts=1)
    for queue in queues:
        rig.add_all("ab", queue, ["t"])
        for _ in "ab":
            rig.nack(rig.leased(queues=frozenset({queue})))


def test_redrive_of_a_tag_counts_jobs_and_of_a_queue_places(rig: Rig) -> None:
    kill(rig, 0, 1)
    sweep = sweeps.of_tag(rig.realm, "redrive_tagged_jobs", "t")
    finish(sweep, 1)
    assert sweep.reply == {"redriven": 2}
    assert rig.rows("failures") == {}
    for _ in range(4):
        rig.nack(rig.leased())
    sweep = sweeps.redrive(rig.realm, None)
    finish(sweep, 1)
    assert sweep.reply == {"redriven": 4}


def test_redrive_of_a_realm_that_was_never_written_to_knows_no_queue() -> None:
    rig = ShardRig()
    assert rig.ask("redrive", "r") == {"redriven": 0}
    request = rig.send("redrive", "r", [], {"queue": 99})
    rig.run()
    assert rig.error(request)["code"] == "queue_not_found"


def test_redrive_of_one_queue_leaves_the_others_dead(rig: Rig) -> None:
    kill(rig, 0, 1)
    finish(sweeps.redrive(rig.realm, 1))
    assert [rig.state("a", 0), rig.state("a", 1)] == ["dead", "ready"]
    assert rig.shown("a", 1)["attempt"] == 0


def test_move_of_a_tag_leaves_leased_jobs_where_they_are_and_delayed_ones_delayed(rig: Rig) -> None:
    rig.add_all("ab", 0, ["t"])
    rig.leased()
    rig.add("c", 0, tags=["t"], delay=5.0)
    rig.add("d", 0)
    sweep = sweeps.of_tag(rig.realm, "move_tagged_jobs", "t", (0, 1))
    finish(sweep, 1)
    assert sweep.reply == {"moved": 2, "leased": 1}
    assert [rig.state("a", 0), rig.state("b", 1), rig.state("c", 1), rig.state("d", 0)] == [
        *("leased", "ready", "delayed", "ready"),
    ]
    assert rig.place("c", 1).at == NOW + 5


def test_move_of_a_tag_to_its_own_queue_moves_none(rig: Rig) -> None:
    rig.add_all("ab", 0, ["t"])
    sweep = sweeps.of_tag(rig.realm, "move_tagged_jobs", "t", (0, 0))
    finish(sweep)
    assert (sweep.reply, rig.pulled()) == ({"moved": 0, "leased": 0}, ["a", "b"])


def test_cancel_of_a_tag_counts_what_is_gone_and_what_is_leased(rig: Rig) -> None:
    rig.add_all("abc", 0, ["t"])
    rig.add_all("d", 0)
    lease = rig.leased()
    sweep = sweeps.of_tag(rig.realm, "cancel_tagged_jobs", "t")
    finish(sweep, 1)
    assert sweep.reply == {"removed": 2, "leased": 1}
    assert rig.extend(lease)["cancelled"] == [lease]
    assert rig.pulled() == ["d"]


def test_move_of_one_job_keeps_its_delay(rig: Rig) -> None:
    rig.add("a", 0, delay=5.0)
    operating.move_job(rig.realm, "a", 0, 1, NOW)
    assert (rig.state("a", 1), rig.place("a", 1).at) == ("delayed", NOW + 5)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("crash_after", [0, 1, 2])
@pytest.mark.parametrize("kind", ["remove_tagged_jobs", "cancel_tagged_jobs", "move_tagged_jobs"])
def test_sweep_that_a_crash_cuts_goes_on_after_it_and_spares_what_it_is_not_about(
    rig: Rig, kind: str, crash_after: int, step: int
) -> None:
    rig.add_all("abcdef", 0, ["t"])
    rig.add_all("xyz", 0)
    sweep = sweeps.of_tag(rig.realm, kind, "t", (0, 1) if kind == "move_tagged_jobs" else ())
    for _ in range(crash_after):
        sweep.step(step)
    rig.restart()
    assert rig.realm.task is not None or crash_after * step > 6
    if rig.realm.task is not None:
        finish(Sweep(rig.realm, rig.realm.task), step)
    assert rig.realm.task is None
    assert rig.pulled(queues=frozenset({0})) == ["x", "y", "z"]
    assert rig.pulled() == (list("abcdef") if kind == "move_tagged_jobs" else [])


def test_sweep_over_what_is_not_there_is_refused_and_holds_nothing(rig: Rig) -> None:
    for refused, error in (
        (lambda: sweeps.of_tag(rig.realm, "cancel_tagged_jobs", "never"), TagNotFound),
        (lambda: sweeps.redrive(rig.realm, "never"), QueueNotFound),
        (lambda: sweeps.clear_queue(rig.realm, "never"), QueueNotFound),
    ):
        with pytest.raises(error):
            refused()
    assert (rig.realm.task, len(rig.changes)) == (None, 0)


def test_advance_in_parts_does_so_much_at_a_time(rig: Rig) -> None:
    for job_id in "abcde":
        rig.add(job_id, delay=5.0)
    rig.now += 10
    done = []
    while not rig.realm.advance(rig.now, 2):
        done.append(rig.realm.queues[0].counts[0])
    assert done == [2, 4]
    assert rig.realm.queues[0].counts[0] == 5
