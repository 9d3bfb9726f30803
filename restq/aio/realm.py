"""The client of one realm for asyncio: the twin of `restq.client.realm`, over the same calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Mapping
from itertools import islice
from typing import Any

from restq import names
from restq.aio.connection import Closing, Connection, Requester, connect, sent
from restq.aio.job import Job
from restq.client.buffer import Buffer
from restq.client.call import is_dots
from restq.client.consuming import Consuming, idle_seconds, poll_seconds, through_outages
from restq.client.lease_calls import QueueId, checked_job, checked_jobs
from restq.client.peer import OUTAGES
from restq.client.realm_calls import RealmCalls
from restq.config import Config
from restq.errors import RestqError


class _Calls(RealmCalls[Job]):
    """The calls of a realm whose jobs are those of this client."""


class Realm(Closing):
    """A named, isolated world of jobs on a restq server. It comes to be when it is first written to.

    As `restq.client.Realm`, with an `await` before each call; `consume`, `list_jobs` and `list_tags` go into an
    `async for`. Making one sends nothing. Used in an `async with`, it sends what `bulk_add` buffered when it is left.
    """

    __iter__ = None  # not a sequence: without this, `for` would ask for the jobs 0, 1, 2, ..

    def __init__(
        self,
        name: str,
        uri: str | None = None,
        requester: Requester | None = None,
        *,
        config: Config | None = None,
        stream: bool = False,
        connection: Connection | None = None,
    ) -> None:
        """With `stream` its calls go over a WebSocket, which makes small ones several times faster.

        `connection` is for `Realms`, whose realms share one; it replaces the other four.
        """
        self._name = names.realm_name(name)
        self._connection = connection or connect(uri, requester, config, stream)
        self._calls = _Calls(self._name, self._connection, self._leased_job)
        self._buffer = Buffer()
        self._lock = asyncio.Lock()  # of the buffer

    def __repr__(self) -> str:
        return f"<restq realm {self._name!r}>"

    @property
    def name(self) -> str:
        """The realm's name."""
        return self._name

    @property
    def requester(self) -> Requester:
        """What sends the requests: the one that was given, else a `restq.aio.session.Session`."""
        return self._connection.requester

    @property
    def status(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """Its counts, by `await realm.status`: `{"total_jobs": n, "total_tags": n, "queues": {"0": n}}`."""
        return self._connection.send(self._calls.status())

    request = sent(_Calls.request)
    # Adding.
    add = sent(_Calls.add)

    async def bulk_add(
        self, jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]], buffer: bool = False
    ) -> None:
        """Add many jobs at once: all of them, or, if one is refused, none.

        `jobs` is a list of dicts with `job_id`, `queue_id` and, where wanted, what else `add` takes, or a dict
        whose values they are. They are sent before this returns, and nothing else is, unless `buffer` is true: then
        the jobs are kept, and sent together when 1,000 of them or 1 MiB have gathered, by `bulk_flush` and by `close`.
        Jobs that could not be sent, or were refused, stay in the buffer until `bulk_discard`.
        """
        if buffer:
            async with self._lock:
                for job in jobs.values() if isinstance(jobs, Mapping) else jobs:
                    self._buffer.append(checked_job(job))
                    if self._buffer.is_full:
                        await self._flush()
            return
        all_jobs = checked_jobs(jobs)
        if all_jobs:
            await self._connection.send(self._calls.bulk_add(all_jobs))

    async def bulk_flush(self) -> None:
        """Send what `bulk_add` buffered. Nothing is sent when nothing is."""
        async with self._lock:
            await self._flush()

    async def bulk_discard(self) -> list[dict[str, Any]]:
        """Forget what `bulk_add` buffered, and return it: jobs as `bulk_add` takes them. Nothing is sent."""
        async with self._lock:
            jobs = self._buffer.jobs()
            self._buffer.clear()
        return jobs

    async def _flush(self) -> None:
        if len(self._buffer):
            await self._connection.send(self._calls.flush(self._buffer.content()))
            self._buffer.clear()

    # Taking, and what becomes of it.
    pull = sent(_Calls.pull)
    pull_jobs = sent(_Calls.pull_jobs)
    ack = sent(_Calls.ack)
    nack = sent(_Calls.nack)
    release = sent(_Calls.release)
    extend = sent(_Calls.extend)
    exchange = sent(_Calls.exchange)

    async def consume(
        self,
        wait: float = 20,
        *,
        count: int = 1,
        stop_when_empty: bool = False,
        keep_going: bool = False,
        max_queue: QueueId | None = None,
        queues: Iterable[QueueId] | None = None,
        tags: Iterable[str] | None = None,
        lease_time: float | None = None,
        worker: str | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Jobs as they come, for ever, or until a pull finds none after `wait` seconds if `stop_when_empty`.

        `async for job in realm.consume(keep_going=True):` and in it `async with job:` is a whole worker; what the
        arguments mean says `restq.client.Realm.consume`. A loop that is left by `break` releases the jobs that wait
        for their turn when Python closes the iterator; `contextlib.aclosing` does that at once.
        """
        pulling = self._calls.pull_jobs(
            count, max_queue, queues=queues, tags=tags, wait=wait, lease_time=lease_time, worker=worker
        )
        consuming = Consuming(stop_when_empty, keep_going)
        while not consuming.is_over:
            asked_at = time.monotonic()
            try:
                jobs = await self._connection.send(pulling)
            except OUTAGES as error:
                await asyncio.sleep(consuming.missed(error))
                continue
            consuming.took(jobs)
            if jobs:
                async with contextlib.aclosing(self._in_turn(deque(jobs))) as turn:
                    async for job in turn:
                        yield job
            elif not consuming.is_over:
                await asyncio.sleep(idle_seconds(asked_at, time.monotonic()))

    async def _in_turn(self, waiting: deque[Job]) -> AsyncGenerator[Job, None]:
        for job in islice(waiting, 1, None):
            job.hold()
        try:
            while waiting:
                job = waiting.popleft()
                await job.drop()
                if job.cancelled:
                    await self._let_go([job])
                elif not job.lost:
                    yield job
        finally:
            for job in waiting:
                await job.drop()
            if waiting:
                await self._let_go(waiting)

    async def _let_go(self, jobs: Iterable[Job]) -> None:
        """Release jobs; where that fails, their leases end by themselves."""
        with contextlib.suppress(RestqError):
            await self.release(jobs)

    # Looking.
    get_job = sent(_Calls.get_job)
    __getitem__ = get_job
    explain = sent(_Calls.explain)
    get_tag_status = sent(_Calls.get_tag_status)
    get_tagged_jobs = sent(_Calls.get_tagged_jobs)

    async def list_jobs(
        self,
        state: str | None = None,
        queue: QueueId | None = None,
        tag: str | None = None,
        prefix: str | None = None,
        data: bool = False,
    ) -> AsyncIterator[dict[str, Any]]:
        """The jobs in the order of their adding: those in this state or queue, with this tag, whose id begins so.

        `state` is "ready", "leased", "delayed", "blocked", "dead", or "done", which are the results that the realm
        keeps. Each is a dict of `job_id`, `tags`, `queues` and more, and of `data` where that is asked for. They are
        fetched in pages while they are read: what is added or removed meanwhile may or may not be among them.
        """
        cursor = None
        while True:
            page = await self._connection.send(self._calls.page_of_jobs(cursor, state, queue, tag, prefix, data))
            for job in page["jobs"]:
                yield job
            cursor = page["cursor"]
            if cursor is None:
                return

    # Removing and moving.
    remove_job = sent(_Calls.remove_job)
    bulk_remove = sent(_Calls.bulk_remove)

    async def remove_tagged_jobs(self, tag: str) -> None:
        """Remove every job that carries the tag."""
        if is_dots(names.tag(tag)):
            await self.bulk_remove(await self.get_tagged_jobs(tag))
        else:
            await self._connection.send(self._calls.remove_tagged_jobs(tag))

    cancel_job = sent(_Calls.cancel_job)
    cancel_tagged_jobs = sent(_Calls.cancel_tagged_jobs)
    move_job = sent(_Calls.move_job)
    move_tagged_jobs = sent(_Calls.move_tagged_jobs)
    clear_queue = sent(_Calls.clear_queue)
    redrive = sent(_Calls.redrive)

    async def redrive_tagged_jobs(self, tag: str) -> int:
        """Make the dead among the jobs with the tag ready again, and return how many. TagNotFound, a KeyError."""
        if is_dots(names.tag(tag)):
            return await self.redrive(jobs=[job["job_id"] async for job in self.list_jobs("dead", tag=tag)])
        return await self._connection.send(self._calls.redrive_tagged_jobs(tag))

    # Queues, tags and settings.
    list_queues = sent(_Calls.list_queues)
    get_queue = sent(_Calls.get_queue)
    configure_queue = sent(_Calls.configure_queue)

    async def list_tags(self, prefix: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The tags by name, each as `get_tag` has it: all, or those that begin with `prefix`. Fetched in pages."""
        cursor = None
        while True:
            page = await self._connection.send(self._calls.page_of_tags(cursor, prefix))
            for tag in page["tags"]:
                yield tag
            cursor = page["cursor"]
            if cursor is None:
                return

    get_tag = sent(_Calls.get_tag)
    configure_tag = sent(_Calls.configure_tag)

    async def wait_for_tag(self, tag: str, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until no job carries the tag: True. False where some still do after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            asked_at = time.monotonic()
            call = self._calls.get_tag(tag, poll_seconds(until, asked_at))
            found = await self._connection.send(through_outages(call))
            if found["count"] == 0:
                return True
            now = time.monotonic()
            if until is not None and now >= until:
                return False
            await asyncio.sleep(min(idle_seconds(asked_at, now), poll_seconds(until, now)))

    get_config = sent(_Calls.get_config)
    configure = sent(_Calls.configure)
    set_default_lease_time = sent(_Calls.set_default_lease_time)
    set_queue_lease_time = sent(_Calls.set_queue_lease_time)
    pin = sent(_Calls.pin)
    unpin = sent(_Calls.unpin)

    def _leased_job(self, reply: Mapping[str, Any], lease_time: float | None) -> Job:
        return Job(reply, self._name, lease_time, calls=self._calls, connection=self._connection)
