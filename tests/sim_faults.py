"""Faults that somebody might make in a move between shards, to be found out: what each replaces, and by what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from restq.protocol import Reply
from restq.shards import moving
from restq.shards.actor import Actor, Elsewhere, Mail
from restq.shards.changes import Task
from restq.shards.moves import Moves
from restq.shards.moving import ARRIVAL_OPERATIONS, HAVE, TAKE, Arrivals, ArrivalUnknown, Sending
from restq.shards.renumbering import UNMOVED, FirstKeys
from restq.shards.replies import Replies
from restq.shards.several import Several
from restq.shards.shard import Shard
from restq.shards.tasks import Tasks
from restq.shards.waking import Waking

Plant = Callable[[], contextlib.AbstractContextManager[object]]

_call, _chunks = Sending._call, moving._chunks
_place, _depart, _arrive = Moves.place, Moves.depart, Moves.arrive
_begin, _kept = Arrivals.begin, Arrivals.kept
_take_changes = Shard.take_changes
_add_reply = Replies.add


def _instead(where: Any, name: str, fault: Any) -> Plant:
    return lambda: mock.patch.object(where, name, fault)


def _instead_of(operation: str, fault: Callable[[Any, list[Any], Any, float], bytes]) -> Plant:
    return lambda: mock.patch.dict(ARRIVAL_OPERATIONS, {operation: fault})


# -- who has the realm -------------------------------------------------------------------------------------------------


async def _wait_for_all_but_the_last(sending: Any, pipe: Any, operation: str, params: list[Any]) -> bytes:
    if operation != "arrive_end":
        return await _call(sending, pipe, operation, params)
    pipe.call(operation, "", params, b"").add_done_callback(lambda future: future.exception())
    await asyncio.sleep(0)
    return HAVE


async def _heed_no_refusal(sending: Any, pipe: Any, operation: str, params: list[Any]) -> bytes:
    reply = await pipe.call(operation, "", params, b"")
    return bytes(reply.body)


async def _end_before_kept(sending: Any, pipe: Any, operation: str, params: list[Any]) -> bytes:
    if operation == "arrive_kept" and params[1] == "failures":
        return await _call(sending, pipe, "arrive_end", params[:1])
    return TAKE if operation in ("arrive_kept", "arrive_end") else await _call(sending, pipe, operation, params)


def _reply_before_commit(shard: Any) -> Any:
    for mail, reply in shard.outbox:
        if mail.operation == "arrive_end":
            mail.sender.reply(reply)
            mail.sender.flush()
    shard.outbox = [(mail, reply) for mail, reply in shard.outbox if mail.operation != "arrive_end"]
    return _take_changes(shard)


def _serve_after_start(moves: Any, actor: Actor, target: int) -> None:
    assert actor.realm is not None, "it was loaded"
    actor.realm.set_task(None)


def _count_at_once(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    reply = _begin(arrivals, params, sender, now)
    if reply == TAKE:
        rows, key = arrivals._changes.realms, arrivals._arriving[params[0][1]].realm.key
        rows[key] = rows[key]._replace(task=None)
    return reply


def _have_whatever_the_epoch(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    return HAVE if arrivals._host.find(params[0][1]) is not None else _begin(arrivals, params, sender, now)


def _take_whatever_the_epoch(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    with (
        mock.patch.object(arrivals._host, "find", return_value=None),
        mock.patch.object(arrivals._books, "epoch", return_value=0),
    ):
        return _begin(arrivals, params, sender, now)


def _arrive_with_epoch_of_source(moves: Any, realm: Any) -> None:
    _arrive(moves, realm)
    realm.epoch -= 1
    realm.write(changed=True)


def _keep_the_earlier(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    arrivals._arriving.pop(params[0][1], None)
    return _begin(arrivals, params, sender, now)


def _arrival_of_anybody(arrivals: Any, name: str, sender: Any) -> Any:
    if name not in arrivals._arriving:
        raise ArrivalUnknown("begin again")
    return arrivals._arriving[name]


@contextlib.contextmanager
def _belong_to_nobody() -> Iterator[None]:
    with (
        mock.patch.object(Arrivals, "_arrival", _arrival_of_anybody),
        mock.patch.object(Arrivals, "gone"),
    ):
        yield


# -- what is left behind -----------------------------------------------------------------------------------------------


def _leave_rows(moves: Any, mail: Mail, target: int) -> None:
    with mock.patch.object(moves._shard.tasks, "discard"):
        _depart(moves, mail, target)


def _discard_what_counts(tasks: Any, realm: Any) -> None:
    realm.pinned = False
    realm.set_task(None)
    tasks.resume(Actor(realm.name, realm), realm, Task("delete"))


def _forget_where_it_went(moves: Any, mail: Mail, target: int) -> None:
    before = dict(moves._shard.changes.moved)
    _depart(moves, mail, target)
    moves._shard.changes.moved = before


# -- what goes on meanwhile --------------------------------------------------------------------------------------------


def _serve_meanwhile(moves: Any, actor: Actor, mail: Mail) -> Any:
    reply = _place(moves, actor, mail)
    actor.held = False
    return reply


def _is_free_though_held(several: Any, name: str) -> bool:
    if (owner := several._placement.shard_of(name)) != several._index:
        raise Elsewhere(name, owner)
    return True


def _drop_mail(moves: Any, mail: Mail, target: int) -> None:
    moves._shard.mailboxes.actor(mail.realm).mail.clear()
    _depart(moves, mail, target)


def _serve_here_and_send_on(moves: Any, mail: Mail, target: int) -> None:
    shard, actor = moves._shard, moves._shard.mailboxes.actor(mail.realm)
    for waiting in [waiting for waiting in actor.mail if waiting.operation in ("add_job", "add_jobs")][:1]:
        outcome = shard._serve(actor, waiting)
        if isinstance(outcome, Reply):
            shard.answer(waiting, outcome)
    _depart(moves, mail, target)


# -- what is carried ---------------------------------------------------------------------------------------------------


def _chunks_without_payloads(realm: Any, payload: Any) -> Iterator[list[Any]]:
    for chunk in _chunks(realm, payload):
        yield [(row, None) for row, _ in chunk]


def _chunks_but_the_fourth(realm: Any, payload: Any) -> Iterator[list[Any]]:
    for index, chunk in enumerate(_chunks(realm, payload)):
        if index != 3:
            yield chunk


def _chunks_with_first_places(realm: Any, payload: Any) -> Iterator[list[Any]]:
    for chunk in _chunks(realm, payload):
        yield list({row[9]: (row, large) for row, large in reversed(chunk)}.values())


def _keep_no(table: str) -> Plant:
    def keep(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
        return TAKE if params[1] == table else _kept(arrivals, params, sender, now)

    return _instead_of("arrive_kept", keep)


def _keep_unbeknown(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    with mock.patch.object(arrivals._host.replies, "add"):
        return _kept(arrivals, params, sender, now)


def _begin_without(index: int) -> Plant:
    def begin(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
        return _begin(arrivals, [*params[:index], [], *params[index + 1 :]], sender, now)

    return _instead_of("arrive_begin", begin)


def _begin_without_pin(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    row = list(params[0])
    row[4] = 0
    return _begin(arrivals, [row, *params[1:]], sender, now)


def _take_no_keys(arrivals: Any, params: list[Any], sender: Any, now: float) -> bytes:
    before = arrivals._keys.next_key
    reply = _begin(arrivals, params, sender, now)
    arrivals._keys.next_key = before
    return reply


def _add_as_if_never_given_again(replies: Any, key: int, realm: int, name: str, *row: Any) -> None:
    _add_reply(replies, key, realm, name, *row)
    replies._kept[realm, name] = tuple(kept._replace(undoable_lease=-1) for kept in replies._kept[realm, name])


RARE = {  # found within a hundred seeds or so: in the long run only
    "epochs are not compared: HAVE",
    "a realm that comes back stands beside its stale self",
}
FAULTS: dict[str, Plant] = {
    "the source forgets the realm before the target has it": _instead(Sending, "_call", _wait_for_all_but_the_last),
    "the source takes a refusal for an answer": _instead(Sending, "_call", _heed_no_refusal),
    "the target says HAVE before its commit": _instead(Shard, "take_changes", _reply_before_commit),
    "the target counts the realm before its last rows": _instead(Sending, "_call", _end_before_kept),
    "the target counts the realm at once": _instead_of("arrive_begin", _count_at_once),
    "the source serves after a start": _instead(Moves, "resume", _serve_after_start),
    "epochs are not compared: HAVE": _instead_of("arrive_begin", _have_whatever_the_epoch),
    "epochs are not compared: TAKE": _instead_of("arrive_begin", _take_whatever_the_epoch),
    "a realm that comes back stands beside its stale self": _instead(Moves, "came_back", lambda moves, realm: None),
    "the epoch is not raised": _instead(Moves, "arrive", _arrive_with_epoch_of_source),
    "an earlier arrival stays": _instead_of("arrive_begin", _keep_the_earlier),
    "an arrival belongs to no connection": _belong_to_nobody,
    "rows stay behind": _instead(Moves, "depart", _leave_rows),
    "what stays behind counts after a start": _instead(Tasks, "discard", _discard_what_counts),
    "where the realm went is not kept": _instead(Moves, "depart", _forget_where_it_went),
    "the realm is served while it moves": _instead(Moves, "place", _serve_meanwhile),
    "calls over realms do not heed moves": _instead(Several, "is_free", _is_free_though_held),
    "mail that waits is dropped": _instead(Moves, "depart", _drop_mail),
    "mail that waits is served and sent on": _instead(Moves, "depart", _serve_here_and_send_on),
    "who waits for jobs is not sent on": _instead(Waking, "moved", lambda waking, name, shard: None),
    "payloads stay": _instead(moving, "_chunks", _chunks_without_payloads),
    "a chunk is lost": _instead(moving, "_chunks", _chunks_but_the_fourth),
    "of a job's places one comes": _instead(moving, "_chunks", _chunks_with_first_places),
    "failures stay": _keep_no("failures"),
    "results stay": _keep_no("results"),
    "kept replies stay": _keep_no("replies"),
    "kept replies come and are not known": _instead_of("arrive_kept", _keep_unbeknown),
    "kept replies that came are withdrawn": _instead(Replies, "add", _add_as_if_never_given_again),
    "limits of tags stay": _begin_without(2),
    "the pin stays": _instead_of("arrive_begin", _begin_without_pin),
    "the keys that came are given out again": _instead_of("arrive_begin", _take_no_keys),
    "lease ids are not translated": _instead(FirstKeys, "moved", lambda first_keys, renumbering: UNMOVED),
}
