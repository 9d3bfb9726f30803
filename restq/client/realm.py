"""The client of one realm: the calls of `realm_calls.py`, sent, and what takes several of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from restq import names
from restq.client.buffer import Buffer
from restq.client.call import is_dots
from restq.client.connection import Closing, Connection, Requester, connect, sent
from restq.client.consuming import Consuming, idle_seconds, poll_seconds, through_outages
from restq.client.job import Job
from restq.client.lease_calls import QueueId, checked_job, checked_jobs
from restq.client.peer import OUTAGES
from restq.client.realm_calls import RealmCalls
from restq.config import Config
from restq.errors import RestqError

if TYPE_CHECKING:
    from restq.client.pipeline import Pipeline


class _Calls(RealmCalls[Job]):
    """The calls of a realm whose jobs are those of this client."""


class Realm(Closing):
    """A named, isolated world of jobs on a restq server. It comes to be when it is first written to.

    Making one sends nothing. Used in a `with`, it sends what `bulk_add` buffered when it is left.
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
        self._lock = threading.Lock()  # of the buffer

    def __repr__(self) -> str:
        return f"<restq realm {self._name!r}>"

    @property
    def name(self) -> str:
        """The realm's name."""
        return self._name

    @property
    def requester(self) -> Requester:
        """What sends the requests: the one that was given, else a requests.Session."""
        return self._connection.requester

    @property
    def status(self) -> dict[str, Any]:
        """Its counts: `{"total_jobs": n, "total_tags": n, "queues": {"0": n}}`. An unknown realm is an empty one."""
        return self._connection.send(self._calls.status())

    request = sent(_Calls.request)

    def pipeline(self) -> Pipeline:
        """Calls that do not wait for each other: `with realm.pipeline() as pipeline:`, and in it `pipeline.add(..)`.

        Each returns at once; its `.result()` waits. The end of the block waits for all, and raises the first error.
        """
        from restq.client.pipeline import Pipeline  # who wants none needs no websockets

        return Pipeline(self._connection, self._name, self._calls)

    # Adding.
    add = sent(_Calls.add)

    def bulk_add(
        self, jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]], buffer: bool = False
    ) -> None:
        """Add many jobs at once: all of them, or, if one is refused, none.

        `jobs` is a list of dicts with `job_id`, `queue_id` and, where wanted, what else `add` takes, or a dict
        whose values they are. They are sent before this returns, and nothing else is, unless `buffer` is true: then
        the jobs are kept, and sent together when 1,000 of them or 1 MiB have gathered, by `bulk_flush` and by `close`.
        Jobs that could not be sent, or were refused, stay in the buffer until `bulk_discard`.
        """
        if buffer:
            with self._lock:
                for job in jobs.values() if isinstance(jobs, Mapping) else jobs:
                    self._buffer.append(checked_job(job))
                    if self._buffer.is_full:
                        self._flush()
            return
        all_jobs = checked_jobs(jobs)
        if all_jobs:
            self._connection.send(self._calls.bulk_add(all_jobs))

    def bulk_flush(self) -> None:
        """Send what `bulk_add` buffered. Nothing is sent when nothing is."""
        with self._lock:
            self._flush()

    def bulk_discard(self) -> list[dict[str, Any]]:
        """Forget what `bulk_add` buffered, and return it: jobs as `bulk_add` takes them. Nothing is sent."""
        with self._lock:
            jobs = self._buffer.jobs()
            self._buffer.clear()
        return jobs

    def _flush(self) -> None:
        if len(self._buffer):
            self._connection.send(self._calls.flush(self._buffer.content()))
            self._buffer.clear()

    # Taking, and what becomes of it.
    pull = sent(_Calls.pull)
    pull_jobs = sent(_Calls.pull_jobs)
    ack = sent(_Calls.ack)
    nack = sent(_Calls.nack)
    release = sent(_Calls.release)
    extend = sent(_Calls.extend)
    exchange = sent(_Calls.exchange)

    def consume(
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
    ) -> Generator[Job, None, None]:
        """Jobs as they come, for ever, or until a pull finds none after `wait` seconds if `stop_when_empty`.

        `for job in realm.consume(keep_going=True):` and in it `with job:` is a whole worker: with `keep_going`, a job
        that fails is nacked and logged, under `restq.client`, and the loop goes on to the next; so it does, once it
        is there again, when the server was away. Without `keep_going` both are raised, as Python does elsewhere.
        The other arguments are those of `pull_jobs`. With a `count` of more than 1, the leases of jobs that wait for
        their turn are extended, and those still waiting when the loop is left are released.
        """
        pulling = self._calls.pull_jobs(
            count, max_queue, queues=queues, tags=tags, wait=wait, lease_time=lease_time, worker=worker
        )
        consuming = Consuming(stop_when_empty, keep_going)
        while not consuming.is_over:
            asked_at = time.monotonic()
            try:
                jobs = self._connection.send(pulling)
            except OUTAGES as error:
                time.sleep(consuming.missed(error))
                continue
            consuming.took(jobs)
            if jobs:
                yield from self._in_turn(deque(jobs))
            elif not consuming.is_over:
                time.sleep(idle_seconds(asked_at, time.monotonic()))

    def _in_turn(self, waiting: deque[Job]) -> Iterator[Job]:
        extender = self._connection.extender
        for job in islice(waiting, 1, None):
            extender.hold(job)
        try:
            while waiting:
                job = waiting.popleft()
                extender.drop(job)
                if job.cancelled:
                    self._let_go([job])
                elif not job.lost:
                    yield job
        finally:
            for job in waiting:
                extender.drop(job)
            if waiting:
                self._let_go(waiting)

    def _let_go(self, jobs: Iterable[Job]) -> None:
        """Release jobs; where that fails, their leases end by themselves."""
        with contextlib.suppress(RestqError):
            self.release(jobs)

    # Looking.
    get_job = sent(_Calls.get_job)
    __getitem__ = get_job
    explain = sent(_Calls.explain)
    get_tag_status = sent(_Calls.get_tag_status)
    get_tagged_jobs = sent(_Calls.get_tagged_jobs)

    def list_jobs(
        self,
        state: str | None = None,
        queue: QueueId | None = None,
        tag: str | None = None,
        prefix: str | None = None,
        data: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """The jobs in the order of their adding: those in this state or queue, with this tag, whose id begins so.

        `state` is "ready", "leased", "delayed", "blocked", "dead", or "done", which are the results that the realm
        keeps. Each is a dict of `job_id`, `tags`, `queues` and more, and of `data` where that is asked for. They are
        fetched in pages while they are read: what is added or removed meanwhile may or may not be among them.
        """
        cursor = None
        while True:
            page = self._connection.send(self._calls.page_of_jobs(cursor, state, queue, tag, prefix, data))
            yield from page["jobs"]
            cursor = page["cursor"]
            if cursor is None:
                return

    # Removing and moving.
    remove_job = sent(_Calls.remove_job)
    bulk_remove = sent(_Calls.bulk_remove)

    def remove_tagged_jobs(self, tag: str) -> None:
        """Remove every job that carries the tag."""
        if is_dots(names.tag(tag)):
            self.bulk_remove(self.get_tagged_jobs(tag))
        else:
            self._connection.send(self._calls.remove_tagged_jobs(tag))

    cancel_job = sent(_Calls.cancel_job)
    cancel_tagged_jobs = sent(_Calls.cancel_tagged_jobs)
    move_job = sent(_Calls.move_job)
    move_tagged_jobs = sent(_Calls.move_tagged_jobs)
    clear_queue = sent(_Calls.clear_queue)
    redrive = sent(_Calls.redrive)

    def redrive_tagged_jobs(self, tag: str) -> int:
        """Make the dead among the jobs with the tag ready again, and return how many. TagNotFound, a KeyError."""
        if is_dots(names.tag(tag)):
            return self.redrive(jobs=[job["job_id"] for job in self.list_jobs("dead", tag=tag)])
        return self._connection.send(self._calls.redrive_tagged_jobs(tag))

    # Queues, tags and settings.
    list_queues = sent(_Calls.list_queues)
    get_queue = sent(_Calls.get_queue)
    configure_queue = sent(_Calls.configure_queue)

    def list_tags(self, prefix: str | None = None) -> Iterator[dict[str, Any]]:
        """The tags by name, each as `get_tag` has it: all, or those that begin with `prefix`. Fetched in pages."""
        cursor = None
        while True:
            page = self._connection.send(self._calls.page_of_tags(cursor, prefix))
            yield from page["tags"]
            cursor = page["cursor"]
            if cursor is None:
                return

    get_tag = sent(_Calls.get_tag)
    configure_tag = sent(_Calls.configure_tag)

    def wait_for_tag(self, tag: str, timeout: float | None = None) -> bool:
        """Wait until no job carries the tag: True. False where some still do after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            asked_at = time.monotonic()
            call = self._calls.get_tag(tag, poll_seconds(until, asked_at))
            if self._connection.send(through_outages(call))["count"] == 0:
                return True
            now = time.monotonic()
            if until is not None and now >= until:
                return False
            time.sleep(min(idle_seconds(asked_at, now), poll_seconds(until, now)))

    get_config = sent(_Calls.get_config)
    configure = sent(_Calls.configure)
    set_default_lease_time = sent(_Calls.set_default_lease_time)
    set_queue_lease_time = sent(_Calls.set_queue_lease_time)
    pin = sent(_Calls.pin)
    unpin = sent(_Calls.unpin)

    def _leased_job(self, reply: Mapping[str, Any], lease_time: float | None) -> Job:
        return Job(reply, self._name, lease_time, calls=self._calls, connection=self._connection)
