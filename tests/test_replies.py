"""Requests that come again under their idempotency key: the very same reply, and nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from shard_rig import HOME_0, NOW, A, B, Rig, bulk, ids, move

from restq.errors import ShardUnavailable
from restq.shards import claims, replies
from restq.shards.commands import batches
from restq.shards.replies import KEPT_SECONDS

KEY = ("key", "digest")
OTHER = ("key", "digest of something else")

Said = tuple[str, list[Any], Any]


def filled(rig: Rig, realm: str, name: str) -> list[str]:
    """Jobs in all states; returns the proofs of two leases. Done again under another name, it makes new ones."""
    rig.add(realm, f"{name} 1", f"{name} 2", queue=-1, tags=["held"])
    leases = rig.leases(realm, 2, queues=[-1], worker=name)
    rig.add(realm, f"{name} dead", queue=-2, tags=["t"], max_attempts=1)
    rig.ask("nack", realm, [], {"leases": rig.leases(realm, queues=[-2]), "error": name})
    rig.add(realm, f"{name} ready", queue=0, tags=["t"])
    rig.add(realm, "moved", queue=5)
    rig.add(realm, "cancelled", queue=6)
    return leases


# Each POST on one realm, given two leases.
POSTS: dict[str, Callable[[list[str]], Said]] = {
    "pull": lambda leases: ("pull", [], {"count": 1, "lease_time": 30}),
    "pull that waits": lambda leases: ("pull", [], {"wait": 60, "worker": "w"}),
    "ack": lambda leases: ("ack", [], {"leases": leases, "result": 1}),
    "ack some": lambda leases: ("ack", [], {"leases": [leases[0], "1-1"]}),
    "nack": lambda leases: ("nack", [], {"leases": leases, "error": "e"}),
    "release": lambda leases: ("release", [], {"leases": leases}),
    "extend": lambda leases: ("extend", [], {"leases": leases, "lease_time": 7}),
    "exchange": lambda leases: (
        "exchange",
        [],
        {
            "ack": {"leases": leases[:1]},
            "nack": {"leases": leases[1:], "delay": 5},
            "add": [{"job_id": "follows", "queue_id": 7}],
            "pull": {"count": 2},
        },
    ),
    "add": lambda leases: ("add_jobs", [], {"jobs": [{"job_id": "new", "queue_id": 7, "on_conflict": "replace"}]}),
    "move": lambda leases: ("move_job", ["moved"], {"from_queue": 5, "to_queue": 8}),
    "move a tag": lambda leases: ("move_tagged_jobs", ["t"], {"from_queue": 0, "to_queue": 8}),
    "cancel": lambda leases: ("cancel_job", ["cancelled"], None),
    "cancel a tag": lambda leases: ("cancel_tagged_jobs", ["t"], None),
    "clear": lambda leases: ("clear_queue", ["0"], None),
    "redrive": lambda leases: ("redrive", [], None),
    "redrive a queue": lambda leases: ("redrive", [], {"queue": -2}),
    "redrive jobs": lambda leases: ("redrive", [], {"jobs": ["first dead", "second dead"]}),
    "redrive a tag": lambda leases: ("redrive_tagged_jobs", ["t"], None),
    "configure_2013": lambda leases: ("configure_2013", [], {"default_lease_time": 33}),
}


def post(rig: Rig, realm: str, said: Said, once: tuple[str, str] = KEY) -> Any:
    operation, params, body = said
    return rig.reply_to(operation, realm, params, b"" if body is None else body, once)


@pytest.fixture(params=POSTS)
def said(request: pytest.FixtureRequest) -> Callable[[list[str]], Said]:
    return POSTS[request.param]


def test_post_again_gives_the_same_reply_and_changes_nothing(rig: Rig, said: Callable[[list[str]], Said]) -> None:
    once = said(filled(rig, A, "first"))
    first = post(rig, A, once)
    assert first.status == 200
    filled(rig, A, "second")
    rig.ask("configure_2013", A, [], {"default_lease_time": 44})
    before = rig.rows()
    for _ in range(2):
        again = post(rig, A, once)
        assert again[1:3] == first[1:3]
        assert rig.rows() == before


def test_post_again_after_starts_gives_the_same_reply_and_changes_nothing(
    rig: Rig, said: Callable[[list[str]], Said]
) -> None:
    once = said(filled(rig, A, "first"))
    first = post(rig, A, once)
    filled(rig, A, "second")
    before = rig.rows()
    for _ in range(2):
        rig.start()
        assert post(rig, A, once)[1:3] == first[1:3]
        assert rig.rows() == before


def test_post_again_after_moves_gives_the_same_reply_and_changes_nothing(said: Callable[[list[str]], Said]) -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    once = said(filled(source, HOME_0, "first"))
    first = post(source, HOME_0, once)
    filled(source, HOME_0, "second")
    for here, there in ((source, target), (target, source)):
        move(here, there, HOME_0)
        there.start()
        before = there.rows()
        assert post(there, HOME_0, once)[1:3] == first[1:3]
        assert there.rows() == before


def test_post_of_something_else_under_the_key_is_refused_and_changes_nothing(
    rig: Rig, said: Callable[[list[str]], Said]
) -> None:
    once = said(filled(rig, A, "first"))
    post(rig, A, once)
    before = rig.rows()
    refused = post(rig, A, once, OTHER)
    assert (refused.status, json.loads(refused.body)["code"]) == (422, "idempotency_key_reused")
    rig.start()
    assert post(rig, A, once, OTHER).status == 422
    assert rig.rows() == before
    assert post(rig, B, ("configure_2013", [], {"default_lease_time": 1}), OTHER).status == 200, "another realm's key"


def test_post_that_a_full_disk_refused_is_not_kept(rig: Rig, said: Callable[[list[str]], Said]) -> None:
    once = said(filled(rig, A, "first"))
    operation, params, body = once
    before = rig.rows()
    request = rig.send(operation, A, params, b"" if body is None else body, KEY)
    assert rig.full_turn() == [request]
    assert rig.replies[request].status == 507
    rig.run()
    # What began a task goes on if it had begun; of this one nothing was kept.
    assert rig.rows() == before
    done = post(rig, A, once)
    assert done.status == 200
    assert post(rig, A, once).body == done.body
    assert rig.rows() != before


def test_post_twice_in_one_turn_is_done_once(rig: Rig, said: Callable[[list[str]], Said]) -> None:
    operation, params, body = said(filled(rig, A, "first"))
    sent = [rig.send(operation, A, params, b"" if body is None else body, KEY) for _ in range(3)]
    rig.run()
    assert len({rig.replies[request].body for request in sent}) == 1
    rows = rig.rows()
    assert len(rows["replies"]) == 1


@pytest.mark.parametrize("refused", [("ack", [], {"leases": ["1-1"]}), ("clear_queue", ["0"], None)])
def test_post_that_was_refused_is_tried_anew(rig: Rig, refused: Said) -> None:
    assert post(rig, A, refused).status in (404, 409)
    rig.add(A, "x")
    assert len(rig.store._tables["replies"]) == 0
    assert post(rig, A, ("clear_queue", ["0"], None)).status == 200


def test_pull_in_vain_is_not_kept_and_tried_anew(rig: Rig) -> None:
    assert rig.ask("pull", A, [], {}, KEY) == {"jobs": []}
    assert rig.row_count() == 0
    rig.add(A, "x")
    assert [job["job_id"] for job in rig.ask("pull", A, [], {}, KEY)["jobs"]] == ["x"]


def test_key_of_pull_that_waits_is_refused_to_another_request(rig: Rig) -> None:
    waiter = rig.send("pull", A, [], {"wait": 60}, KEY)
    rig.run()
    refused = rig.reply_to("pull", A, [], {"wait": 60, "count": 2}, OTHER)
    assert refused.status == 422
    assert post(rig, A, ("configure_2013", [], {"default_lease_time": 33}), OTHER).status == 422
    rig.add(A, "x")
    assert rig.given(waiter) == ["x"]


# -- undone pulls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
def test_pull_that_was_undone_leases_anew_under_its_key(rig: Rig, waits: bool) -> None:
    said: Said = ("pull", [], {"wait": 60} if waits else {})
    if waits:
        request = rig.send(*said[:1], A, [], said[2], KEY)
        rig.run()
        rig.add(A, "x")
        first = rig.replies[request]
    else:
        rig.add(A, "x")
        first = post(rig, A, said)
    rig.ask("undo_pull", A, [first.extra, [["x", 0]], KEY[0]])
    assert rig.store._tables["replies"] == {}
    again = post(rig, A, said)
    assert again.body != first.body
    assert [job["job_id"] for job in json.loads(again.body)["jobs"]] == ["x"]
    assert rig.ask("ack", A, [], {"leases": [json.loads(again.body)["jobs"][0]["lease_id"]]})["acked"]


def test_pull_that_was_given_again_is_not_undone(rig: Rig) -> None:
    rig.add(A, "x")
    first = post(rig, A, ("pull", [], {}))
    assert post(rig, A, ("pull", [], {})).body == first.body
    rig.ask("undo_pull", A, [first.extra, [["x", 0]], KEY[0]])
    assert rig.list(A)[0]["queues"][0]["state"] == "leased"
    assert post(rig, A, ("pull", [], {})).body == first.body


# -- over several realms ---------------------------------------------------------------------------------------------


CLAIM = (1.0, 2)


def recalled(rig: Rig, once: tuple[str, str] = KEY, claim: tuple[float, int] = CLAIM) -> list[tuple[int, str, str]]:
    """What the pull over several realms is given when it comes again: index, job id and lease id, in their order."""
    given = rig.ask("recall", "", [None, claim], b"", once)
    return sorted((index, job["job_id"], job["lease_id"]) for index, job in given)


def lease_over_realms(
    rig: Rig, *candidates: tuple[str, str, int], once: tuple[str, str] = KEY, claim: tuple[float, int] = CLAIM
) -> list[tuple[int, str]]:
    """Lease these (realm, job id, index), each out of queue 0; returns index and lease id of each."""
    params = [[[realm, job_id, 0, index] for realm, job_id, index in candidates], 30, "w", claim]
    return [(index, job["lease_id"]) for index, job in rig.ask("lease_peeked", "", params, b"", once)]


@pytest.mark.parametrize("count", [1, 2500])
def test_bulk_add_is_not_checked_where_it_is_done(rig: Rig, count: int) -> None:
    body = {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(count)]}
    indexes = [list(range(count))]
    assert rig.ask("check_jobs", A, indexes, body, KEY) == {}
    assert rig.row_count() == 0, "to be checked is not to be done"
    rig.ask("add_jobs", A, indexes, body, KEY)
    rig.ask("remove_job", A, ["job 0"])
    rig.add(A, "job 0", data="another")
    rig.ask("configure", A, [], {"max_jobs": 1})
    before = rig.rows()
    assert rig.reply_to("check_jobs", A, indexes, body, ("another key", "digest")).status == 200
    body["jobs"][0]["data"] = 1
    assert rig.reply_to("check_jobs", A, indexes, body, ("another key", "digest")).status == 409
    for _ in range(2):
        assert rig.reply_to("check_jobs", A, indexes, body, KEY).status == 200
        assert rig.rows() == before
        rig.start()


def test_bulk_add_under_key_of_another_request_in_one_of_its_realms_is_refused(rig: Rig) -> None:
    post(rig, B, ("configure_2013", [], {"default_lease_time": 33}), OTHER)
    refused = rig.reply_to("check_jobs", B, [[0]], bulk((B, "y", 2)), KEY)
    assert (refused.status, json.loads(refused.body)["code"]) == (422, "idempotency_key_reused")


def test_pull_over_realms_whose_first_attempt_is_undone_is_given_what_the_second_leased(rig: Rig) -> None:
    rig.add(A, "x", "y")
    [(_, first)] = lease_over_realms(rig, (A, "x", 0))
    [(_, second)] = lease_over_realms(rig, (A, "y", 0))
    rig.ask("undo_pull", A, [int(first.split("-")[0]), [["x", 0]], KEY[0]])
    assert recalled(rig) == [(0, "y", second)]
    assert rig.ids(A, "leased") == ["y"]


def test_pull_over_realms_leases_nothing_once_it_came_again_by_another_way(rig: Rig) -> None:
    """What it leased until then, that one was told of; of what it leased afterwards, nobody would know."""
    early, late = (1.0, 2), (1.0, 3)
    rig.add(A, "x", "y", "z")
    [(_, lease)] = lease_over_realms(rig, (A, "x", 0), claim=early)
    assert recalled(rig, claim=late) == [(0, "x", lease)]
    before = rig.rows()
    refused = [
        rig.reply_to("lease_peeked", "", [[[A, "y", 0, 1]], 30, "w", early], b"", KEY),
        rig.reply_to("recall", "", [None, early], b"", KEY),
    ]
    assert [(reply.status, json.loads(reply.body)["code"]) for reply in refused] == [(503, "shard_unavailable")] * 2
    assert rig.rows() == before
    assert lease_over_realms(rig, (A, "y", 0), once=OTHER, claim=early), "another request under the key is another"
    assert lease_over_realms(rig, (A, "z", 1), claim=late)


def test_claims_that_are_remembered_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CLAIMS_MAX", 2)
    known = claims.Claims()
    for key in "abac":
        known.make([key, "digest"], [2.0, 1])
    with pytest.raises(ShardUnavailable):
        known.make(["a", "digest"], [1.0, 1])
    known.make(["b", "digest"], [1.0, 1])


@pytest.mark.usefixtures("small_steps")
def test_pull_over_realms_that_comes_again_sees_what_was_leased_before_though_a_realm_is_held(rig: Rig) -> None:
    rig.add(A, *ids(60))
    rig.add(B, "x")
    rig.send("clear_queue", A, ["0"])
    statuses = rig.send("get_statuses")  # which waits for the realm that is held
    leased = rig.send("lease_peeked", "", [[[B, "x", 0, 0]], None, "", CLAIM], b"", KEY)
    recall = rig.send("recall", "", [None, CLAIM], b"", KEY)
    rig.turn()
    assert statuses not in rig.replies
    assert [job["job_id"] for _, job in rig.read(recall)] == ["x"]
    assert rig.read(leased) == rig.read(recall)
    rig.run()


def test_pull_over_realms_again_is_given_what_it_leased(rig: Rig) -> None:
    rig.add(A, "x", "y")
    rig.add(B, "z")
    assert recalled(rig) == []
    first = lease_over_realms(rig, (A, "x", 0), (B, "z", 1), (B, "never", 2))
    second = lease_over_realms(rig, (A, "y", 3))
    leases = dict(first + second)
    expected = [(0, "x", leases[0]), (1, "z", leases[1]), (3, "y", leases[3])]
    for _ in range(2):
        assert recalled(rig) == expected
        assert recalled(rig, ("another key", "digest")) == []
        assert rig.reply_to("recall", "", [None, CLAIM], b"", OTHER).status == 422
        rig.start()
    rig.run_until(NOW + KEPT_SECONDS + 10)
    assert kept(rig) == []
    assert recalled(rig) == []


def test_pull_over_realms_that_was_undone_is_not_given_again(rig: Rig) -> None:
    rig.add(A, "x")
    rig.add(B, "y")
    [(_, lease), _] = lease_over_realms(rig, (A, "x", 0), (B, "y", 1))
    rig.ask("undo_pull", A, [int(lease.split("-")[0]), [["x", 0]], KEY[0]])
    assert [job_id for _, job_id, _ in recalled(rig)] == ["y"]
    assert rig.list(A)[0]["queues"][0]["state"] == "ready"


def test_pull_over_realms_that_was_given_again_is_not_undone(rig: Rig) -> None:
    rig.add(A, "x")
    [(_, lease)] = lease_over_realms(rig, (A, "x", 0))
    given = recalled(rig)
    rig.ask("undo_pull", A, [int(lease.split("-")[0]), [["x", 0]], KEY[0]])
    assert recalled(rig) == given == [(0, "x", lease)]
    assert rig.ask("ack", A, [], {"leases": [lease]})["acked"] == [lease]


def test_pull_over_realms_is_given_again_where_its_realm_moved_to() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.add(HOME_0, "x")
    [(_, lease)] = lease_over_realms(source, (HOME_0, "x", 0))
    move(source, target, HOME_0)
    assert recalled(source) == []
    assert recalled(target) == [(0, "x", lease)]
    assert target.ask("ack", HOME_0, [], {"leases": [lease]})["acked"] == [lease]


def test_pull_over_realms_is_not_given_again_once_its_realm_is_deleted(rig: Rig) -> None:
    rig.add(A, "x")
    lease_over_realms(rig, (A, "x", 0))
    rig.ask("delete_realm", A)
    rig.add(A, "x")
    assert recalled(rig) == []


# -- how long, and how many ------------------------------------------------------------------------------------------


def kept(rig: Rig) -> list[str]:
    """The keys of the replies that the store holds, in their order."""
    rows = sorted(rig.store._tables["replies"].items())
    names = [row.name for _, row in rows]
    assert rig.shard.replies.count == len(names)
    return names


def test_reply_is_kept_for_ten_minutes_and_then_forgotten(rig: Rig) -> None:
    said: Said = ("configure_2013", [], {"default_lease_time": 33})
    post(rig, A, said)
    rig.run_until(NOW + KEPT_SECONDS - 1)
    before = rig.rows()
    rig.start()
    post(rig, A, said)
    assert rig.rows() == before
    rig.run_until(NOW + KEPT_SECONDS + 10)
    assert kept(rig) == []
    assert post(rig, A, said, OTHER).status == 200
    assert rig.shard.next_deadline() <= rig.now + 10, "that it is forgotten is seen to"


def test_reply_is_not_given_again_once_its_time_is_up_though_nobody_swept(rig: Rig) -> None:
    said: Said = ("configure_2013", [], {"default_lease_time": 33})
    post(rig, A, said)
    rig.now = NOW + KEPT_SECONDS
    assert post(rig, A, said, OTHER).status == 200
    assert kept(rig) == [KEY[0]]


def test_reply_of_a_pull_is_kept_while_its_leases_hold(rig: Rig) -> None:
    rig.add(A, "x")
    rig.add(A, "y", queue=1)
    rig.ask("configure_queue", A, ["1"], {"lease_time": 5_000})
    said: Said = ("pull", [], {"count": 2})
    first = post(rig, A, said)
    assert len(json.loads(first.body)["jobs"]) == 2
    short = post(rig, A, ("configure_2013", [], {"default_lease_time": 33}), ("short", "digest"))
    assert short.status == 200
    rig.run_until(NOW + 4_990)
    rig.start()
    assert kept(rig) == [KEY[0]]
    assert post(rig, A, said).body == first.body
    rig.run_until(NOW + 5_010)
    assert kept(rig) == []
    assert post(rig, A, said).body != first.body


def test_reply_of_a_pull_that_waited_is_forgotten_too(rig: Rig) -> None:
    rig.send("pull", A, [], {"wait": 60, "lease_time": 5}, KEY)
    rig.run()
    rig.add(A, "x")
    assert kept(rig) == [KEY[0]]
    rig.run_until(NOW + KEPT_SECONDS + 10)
    assert kept(rig) == []


def test_reply_that_moved_in_is_forgotten_in_time(rig: Rig) -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    post(source, HOME_0, ("configure_2013", [], {"default_lease_time": 33}))
    move(source, target, HOME_0)
    for rig in (source, target):
        rig.run_until(NOW + KEPT_SECONDS + 10)
        assert kept(rig) == []


def configured(rig: Rig, number: int, **said: Any) -> None:
    rig.now += 1
    post(rig, A, ("configure_2013", [], {"default_lease_time": number}), (f"key {number}", "digest"))


def test_replies_that_are_too_many_leave_the_latest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "KEPT_COUNT_MAX", 5)
    for number in range(20):
        configured(rig, number)
    rig.run_until(rig.now + 10)
    assert kept(rig) == [f"key {number}" for number in range(15, 20)]
    rig.start()
    before = rig.rows()
    post(rig, A, ("configure_2013", [], {"default_lease_time": 19}), ("key 19", "digest"))
    assert rig.rows() == before
    post(rig, A, ("configure_2013", [], {"default_lease_time": 3}), ("key 3", "digest"))
    assert rig.ask("get_config", A)["default_lease_time"] == 3


def test_replies_that_are_too_large_leave_the_latest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "KEPT_BYTES_MAX", 10_000)
    rig.add(A, *ids(20), data="x" * 1_000)
    for number in range(20):
        rig.now += 1
        rig.ask("pull", A, [], {}, (f"key {number}", "digest"))
    rig.run_until(rig.now + 10)
    left = kept(rig)
    assert left == [f"key {number}" for number in range(20 - len(left), 20)]
    assert 5 < len(left) < 10
    assert sum(len(row.body) for row in rig.store._tables["replies"].values()) <= 10_000
    rig.start()
    rig.run_until(rig.now + 10)
    assert kept(rig) == left, "a start counts what the file holds"


def test_key_used_again_and_again_after_its_time_holds_one_reply(rig: Rig) -> None:
    for number in range(5):
        rig.now += KEPT_SECONDS
        post(rig, A, ("configure_2013", [], {"default_lease_time": number}), (KEY[0], f"digest {number}"))
        assert kept(rig) == [KEY[0]]


# -- what takes long -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kind", ["cancel a tag", "clear", "redrive", "move a tag"])
def test_task_that_comes_again_while_it_is_under_way_waits_and_gets_the_same_reply(rig: Rig, kind: str) -> None:
    rig.add(A, *ids(35), tags=["t"], max_attempts=1)
    if kind == "redrive":
        rig.ask("nack", A, [], {"leases": rig.leases(A, 35)})
    operation, params, body = POSTS[kind]([])
    sent = []
    for _ in range(3):
        sent.append(rig.send(operation, A, params, b"" if body is None else body, KEY))
        rig.turn()
    rig.run()
    assert len({rig.replies[request].body for request in sent}) == 1
    assert 35 in json.loads(rig.replies[sent[0]].body).values()


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SLICE_COUNT", 10)


@pytest.mark.usefixtures("small_slices")
def test_ack_in_slices_again_gives_the_same_reply(rig: Rig) -> None:
    rig.add(A, *ids(35))
    body = {"leases": [*rig.leases(A, 35), "1-1"]}
    first = post(rig, A, ("ack", [], body))
    assert len(json.loads(first.body)["acked"]) == 35
    rig.add(A, *ids(35))
    for _ in range(2):
        before = rig.rows()
        assert post(rig, A, ("ack", [], body)).body == first.body
        assert rig.rows() == before
        rig.start()


@pytest.mark.usefixtures("small_slices")
def test_add_in_slices_again_does_not_bring_back_what_was_removed(rig: Rig) -> None:
    body = {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(35)]}
    first = post(rig, A, ("add_jobs", [], body))
    rig.ask("remove_jobs", A, [], {"jobs": ids(30)})
    for _ in range(2):
        assert post(rig, A, ("add_jobs", [], body)).body == first.body
        assert rig.ids(A) == ids(35)[30:]
        rig.start()


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("turns", range(5, 9))
@pytest.mark.parametrize("kind", ["ack", "nack", "release", "extend", "add_jobs"])
def test_batch_that_ended_after_a_start_has_its_whole_reply_kept(rig: Rig, kind: str, turns: int) -> None:
    rig.add(A, *ids(9))
    rig.add(A, *ids(18)[9:])
    rig.add(A, *ids(27)[18:])
    rig.add(A, *ids(35)[27:])
    leases = [lease for count in (9, 9, 9, 8) for lease in rig.leases(A, count)]
    body: dict[str, Any] = {"leases": [*leases[:20], "1-1", *leases[20:]]}
    if kind == "add_jobs":
        body = {"jobs": [{"job_id": f"new {number}", "queue_id": 1} for number in range(35)]}
    request = rig.send(kind, A, [], body, KEY)
    for _ in range(turns):
        rig.turn()
    assert any(row.task for row in rig.store._tables["realms"].values()) or request in rig.replies
    rig.start()
    rig.run()
    rig.ask("remove_jobs", A, [], {"jobs": [f"new {number}" for number in range(9)]})
    before = rig.rows()
    reply = json.loads(post(rig, A, (kind, [], body)).body)
    assert rig.rows() == before
    if kind == "add_jobs":
        assert reply == {}
        return
    assert reply["stale"] == ["1-1"]
    done = reply[{"ack": "acked", "nack": "nacked", "release": "released", "extend": "extended"}[kind]]
    assert list(done) == leases
    assert post(rig, A, (kind, [], body), OTHER).status == 422


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kind", ["cancel a tag", "clear", "redrive", "redrive a tag", "move a tag"])
def test_task_that_ended_after_a_start_is_not_done_again(rig: Rig, kind: str) -> None:
    def fill(prefix: str) -> None:
        rig.add(A, *[f"{prefix} {number}" for number in range(35)], tags=["t"], max_attempts=1)
        if kind.startswith("redrive"):
            rig.ask("nack", A, [], {"leases": rig.leases(A, 35)})

    fill("old")
    operation, params, body = POSTS[kind]([])
    rig.send(operation, A, params, b"" if body is None else body, KEY)
    rig.turn()
    rig.turn()
    rig.start()
    rig.run()
    fill("new")
    before = rig.rows()
    reply = post(rig, A, POSTS[kind]([]))
    assert rig.rows() == before
    assert 0 < max(json.loads(reply.body).values()) <= 35
    assert post(rig, A, POSTS[kind]([]), OTHER).status == 422


@pytest.mark.usefixtures("small_steps")
def test_task_whose_first_step_was_not_made_before_a_start_is_not_done_again(rig: Rig) -> None:
    for realm in (A, B):
        rig.add(realm, *ids(35))
    rig.send("clear_queue", B, ["0"])
    rig.send("clear_queue", A, ["0"], b"", KEY)
    rig.turn()
    rig.start()
    rig.run()
    rig.add(A, "new")
    assert post(rig, A, ("clear_queue", ["0"], None)).status == 200
    assert rig.ids(A) == ["new"]
