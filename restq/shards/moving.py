"""How a realm moves to another shard while both run: its rows go over the target's socket, in chunks.

At every instant the realm is whole in exactly one file that counts. The target keeps what arrives in a realm
whose task is "arrive", which counts for nothing; one commit, with a higher epoch, makes it count, and notes that epoch
for the name. Until the source knows of that commit it holds the realm: its requests wait. What fails before the source
asked for that commit ends the move, and the realm is served on. A source that is interrupted after that, or started
again, asks the target until it answers: either that it has had the realm since, even if that was deleted there or went
on from there, or that it takes it all over again. Only the epoch can tell: what the target holds by now, or where it
thinks that the realm is, may be from before or after.

A realm may come back before its source learned that it had arrived: that it comes back says so.

An arrival belongs to the connection by which it began: what an earlier one of the same realm still brings, late, is
none of it, and with its connection it is dropped.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from restq.errors import RestqError, RowDamaged, ShardStarting, StorageFull
from restq.pipe import Pipe
from restq.shards import rows
from restq.shards.actor import Sender
from restq.shards.changes import (
    Changes,
    FailureRow,
    Keys,
    QueueRow,
    RealmRow,
    ReplyRow,
    ResultRow,
    TagRow,
    Task,
    renumbered,
)
from restq.shards.data import Large
from restq.shards.loader import Loader
from restq.shards.realm import Realm
from restq.shards.renumbering import FirstKeys, Renumbering
from restq.shards.replies import Replies
from restq.shards.store import Room, StoreFailed

CHUNK_COUNT = 500  # jobs sent at once
CHUNK_BYTES_MAX = 4 << 20
LOOK_COUNT = 1_000  # rows of all realms, among which the realm's are looked for at once
CONNECT_SECONDS = 1.0  # a shard that starts again takes longer: then the move is refused, and the realm served
RETRY_SECONDS = 0.2

TAKE = b"take"
HAVE = b"have"

log = logging.getLogger("restq.shard")


# What a realm has in its file and not in memory.
KEPT_TABLES: dict[str, Callable[..., FailureRow | ResultRow | ReplyRow]] = {
    "failures": FailureRow,
    "results": ResultRow,
    "replies": ReplyRow,
}


def is_leaving(realm: Realm) -> bool:
    """Whether a realm is on its way out, for all that is known here."""
    return realm.task is not None and realm.task.kind == "move"


class Source(Protocol):
    """The file that a realm leaves."""

    def payload(self, job_key: int) -> bytes: ...

    def rows_of(self, table: str, realm_key: int, after_key: int, limit: int) -> tuple[Sequence[Any], int | None]: ...

    def blocks(self) -> list[int]: ...


class ArrivalUnknown(RestqError, ConnectionError):
    """The target knows nothing of the realm's arrival: it went back to its store meanwhile. Begin again."""

    code = "arrival_unknown"
    status = 503
    builtin = ConnectionError


class MoveOver(Exception):
    """The realm that is being sent arrived, and came back, before the answer that said so."""


class ArrivalRefused(RestqError, ConnectionError):
    """The target could not take the realm now."""

    code = "arrival_refused"
    status = 503
    builtin = ConnectionError


class Arrival(NamedTuple):
    """A realm on its way in, by whose connection, and the keys it is given."""

    sender: Sender
    loader: Loader
    realm: Realm
    new_keys: Renumbering
    replies: list[tuple[int, int, str]]  # that it kept: see `Replies.unclaim`


class Host(Protocol):
    """What the target asks of its shard."""

    keys: Keys
    changes: Changes
    replies: Replies
    room: Room

    def find(self, name: str) -> Realm | None: ...

    def new_loader(self) -> Loader: ...


class Books(Protocol):
    """What the target asks of its shard's books: see `moves.Moves`."""

    def epoch(self, name: str) -> int:
        """The epoch of the last realm of this name that came here or went from here, 0 if none ever did."""

    def arrive(self, realm: Realm) -> None:
        """A realm that came from another shard counts from now on."""

    def came_back(self, realm: Realm) -> None:
        """A realm on its way out comes back: so it was whole where it went."""


class Arrivals:
    """The target's side: realms on their way in. Its methods are operations: they note changes and return the reply."""

    def __init__(self, host: Host, discard: Callable[[Realm], None], books: Books) -> None:
        self._host = host
        self._books = books
        self._discard = discard
        self._keys = host.keys
        self._changes = host.changes
        self._arriving: dict[str, Arrival] = {}

    def begin(self, params: list[Any], sender: Sender, now: float) -> bytes:
        """A realm wants to come in: HAVE if it did already, else TAKE, and what came of it before is dropped.

        Raises StorageFull where it did not, and there is no room for it.
        """
        row, queues, tags, next_key, blocks = RealmRow(*params[0]), *params[1:5]
        if sender.is_gone:  # it was read too late: nobody would drop what began with it
            raise ArrivalUnknown(f"who sends realm {row.name!r} is gone")
        known = self._host.find(row.name)
        if (self._books.epoch(row.name) if known is None else known.epoch) > row.epoch:
            return HAVE
        if self._host.room < Room.ENOUGH:
            raise StorageFull(f"the disk has no room for realm {row.name!r}: nothing was done")
        if known is not None and is_leaving(known):
            self._books.came_back(known)
        self._drop(row.name, now)
        new_keys = Renumbering(blocks, next_key, self._keys.next_key)
        self._keys.next_key = new_keys.next_key
        loader = self._host.new_loader()
        first_keys = FirstKeys.read(row.first_keys).moved(new_keys).text
        row = row._replace(key=new_keys.key(row.key), task=Task("arrive").text(), first_keys=first_keys)
        realm = loader.add_realm(row)
        self._changes.realms[row.key] = row
        for queue in queues:
            queue_row = QueueRow(new_keys.key(queue[0]), row.key, *queue[2:])
            loader.add_queue(queue_row)
            self._changes.queues[queue_row.key] = queue_row
        for tag in tags:
            tag_row = TagRow(new_keys.key(tag[0]), row.key, *tag[2:])
            loader.add_tag(tag_row)
            self._changes.tags[tag_row.key] = tag_row
        self._arriving[row.name] = Arrival(sender, loader, realm, new_keys, [])
        return TAKE

    def rows(self, params: list[Any], sender: Sender, now: float) -> bytes:
        """Some of its places, each with its job and the job's large data."""
        _, loader, realm, new_keys, _ = self._arrival(params[0], sender)
        changes = self._changes
        arrived = [(renumbered(row, new_keys.key, realm.key), payload) for row, payload in params[1]]
        for row, payload in arrived:
            changes.put(row, payload)
        loader.add_places(row for row, _ in arrived)
        return TAKE

    def kept(self, params: list[Any], sender: Sender, now: float) -> bytes:
        """Some of what only its file holds: rows of a table."""
        _, _, realm, new_keys, replies = self._arrival(params[0], sender)
        table = params[1]
        for fields in params[2]:
            row = KEPT_TABLES[table](new_keys.key(fields[0]), realm.key, *fields[2:])
            getattr(self._changes, table)[row.key] = row
            if isinstance(row, ResultRow):
                realm.result_count += 1
            elif isinstance(row, ReplyRow):
                self._host.replies.add(row.key, row.realm, row.name, row.digest, row.at, len(row.body))
                replies.append((row.key, row.realm, row.name))
        return TAKE

    def end(self, params: list[Any], sender: Sender, now: float) -> bytes:
        """All of it came: with the commit of this, it counts."""
        _, loader, realm, *_ = self._arrival(params[0], sender)
        del self._arriving[params[0]]
        loader.finish(now)
        self._books.arrive(realm)
        return HAVE

    def gone(self, sender: Sender, now: float) -> None:
        """A connection is gone: what came by it, and not all of it, is dropped."""
        for name in [name for name, arrival in self._arriving.items() if arrival.sender is sender]:
            self._drop(name, now)

    def forget(self) -> None:
        """Memory goes back to the store; who was sending will begin again."""
        self._arriving.clear()

    def _drop(self, name: str, now: float) -> None:
        arrival = self._arriving.pop(name, None)
        if arrival is not None:
            arrival.loader.finish(now)
            self._discard(arrival.realm)
            self._host.replies.unclaim(arrival.replies)

    def _arrival(self, name: str, sender: Sender) -> Arrival:
        arrival = self._arriving.get(name)
        if arrival is None or arrival.sender is not sender:
            raise ArrivalUnknown(f"realm {name!r} is not on its way in: begin again")
        return arrival


ARRIVAL_OPERATIONS: dict[str, Callable[[Arrivals, list[Any], Sender, float], bytes]] = {
    "arrive_begin": Arrivals.begin,
    "arrive_end": Arrivals.end,
    "arrive_kept": Arrivals.kept,
    "arrive_rows": Arrivals.rows,
}


class Sending:
    """The source's side: one realm on its way out, which must be held meanwhile."""

    def __init__(self, realm: Realm, next_key: int, source: Source, may_be_there: bool = False) -> None:
        """`next_key`: no key of the realm is at or above it. `may_be_there`: see below."""
        self.name = realm.name
        self._realm = realm
        self._next_key = next_key
        self._source = source
        # Only the target knows whether it has arrived: so it is after the end was sent, and after a start.
        self.may_be_there = may_be_there

    async def attempt(self, pipe: Pipe) -> None:
        """Send all of it, unless it is there.

        Raises StorageFull where the target has no room for it, ArrivalRefused where it says no for another reason,
        ShardStarting, ShardUnavailable or Overloaded where it does not answer, RowDamaged and StoreFailed as the source
        does, and MoveOver.
        """
        realm, source = self._realm, self._source
        queues = [rows.queue_row(realm, queue) for queue in realm.queues.values()]
        tags = [rows.tag_row(realm, limit) for limit in realm.tags.limits.values()]
        begin = [rows.realm_row(realm), queues, tags, self._next_key, source.blocks()]
        if await self._call(pipe, "arrive_begin", begin) == HAVE:
            self.may_be_there = True
            return
        self.may_be_there = False
        for chunk in _chunks(realm, source.payload):
            await self._call(pipe, "arrive_rows", [realm.name, chunk])
        for table in KEPT_TABLES:
            after: int | None = 0
            while after is not None:
                kept, after = source.rows_of(table, realm.key, after, LOOK_COUNT)
                # Also if there is nothing: so other realms are served between two looks.
                await self._call(pipe, "arrive_kept", [realm.name, table, kept])
        self.may_be_there = True
        await self._call(pipe, "arrive_end", [realm.name])

    async def _call(self, pipe: Pipe, operation: str, params: list[Any]) -> bytes:
        if not is_leaving(self._realm):
            raise MoveOver
        reply = await pipe.call(operation, "", params, b"")
        if reply.status != 200:
            said = json.loads(reply.body)
            if operation != "arrive_begin" or reply.status == StorageFull.status:
                self.may_be_there = False  # it says that it is not
            raise (StorageFull if said["code"] == StorageFull.code else ArrivalRefused)(said["message"])
        return reply.body


async def send(sending: Sending, path: str, shard: int) -> None:
    """Returns once the realm is whole in the other shard.

    Raises why it does not get there, so that it stays: RowDamaged, StorageFull, or ShardStarting where it may be tried
    again. While the other shard may have the realm, this asks it every `RETRY_SECONDS` until it says, without an end.
    Raises StoreFailed where the source can't go on. `path` is the socket of the shard.
    """
    pipe = Pipe(path, shard)
    pipe.open()
    try:
        while True:
            try:
                async with asyncio.timeout(None if sending.may_be_there else CONNECT_SECONDS):
                    await pipe.connected()
                await sending.attempt(pipe)
                return
            except MoveOver:
                return
            except StoreFailed:
                raise
            except (RestqError, TimeoutError) as error:
                why = str(error) or "it does not answer"
                log.warning("realm %r does not reach shard %d: %s", sending.name, shard, why)
                if not sending.may_be_there:  # what came of it goes with the connection
                    if isinstance(error, RowDamaged):
                        raise
                    raise _refusal(sending.name, shard, error, why) from None
            await asyncio.sleep(RETRY_SECONDS)
    finally:
        pipe.close()


def _refusal(name: str, shard: int, error: Exception, why: str) -> RestqError:
    stays = f"realm {name!r}, which stays where it is: nothing was done"
    if isinstance(error, StorageFull):
        return StorageFull(f"the disk has no room, in shard {shard}, for {stays}")
    return ShardStarting(f"shard {shard} did not take {stays}, try again ({why})")


def _chunks(realm: Realm, payload: Callable[[int], bytes]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    size = 0
    for job in list(realm.jobs.values()):
        large = payload(job.key) if isinstance(job.data, Large) else None
        size += len(large or b"")
        job_row = rows.job_row(realm, job)
        for place in job.places:
            key, _, queue_key, *past = place.row()
            chunk.append(((key, queue_key, *past, *job_row), large))
        if len(chunk) >= CHUNK_COUNT or size >= CHUNK_BYTES_MAX:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
