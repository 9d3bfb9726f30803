"""A simple realm with the replies that it keeps, and what it makes of an operation that may go on in steps.

To all who look, what goes on in steps was done at once when it began. Only a start sees it half done: then the loaded
realm is asked what the file holds of it, so much counts as done back then, and the rest is done as of now.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from realm_answers import AT_ONCE, Leased, Refused, Request, wanted
from realm_model import Model, ModelPlace
from realm_works import BATCHES, SWEEPS, Batch, Includes, joined, sweep_error

from restq.names import QueueId
from restq.shards.changes import BATCH
from restq.shards.commands import batches
from restq.shards.job import MARK_CANCELLED, MARK_DEAD
from restq.shards.leasing import Wanted
from restq.shards.realm import Realm
from restq.shards.sweeps import UNDO_PULL

KEPT_SECONDS = 600.0  # a reply with a key, and at least as long as its leases, up to a day
HELD_SECONDS_MAX = 86_400.0


class Difference(AssertionError):
    """The shard and the simple realms are not the same."""


@dataclass(eq=False)
class Kept:
    """A reply under an idempotency key."""

    digest: str
    reply: Any
    until: float
    pull: int  # of which it gives the jobs; unknown after a start
    again: bool = False  # it was given once more
    body: bytes | None = None  # as it was given first


@dataclass(eq=False)
class Book:
    """One realm as its users know it."""

    model: Model = field(default_factory=Model)
    kept: dict[str, Kept] = field(default_factory=dict)

    def copy(self) -> Book:
        """Another one that is the same by now."""
        return Book(self.model.copy(), {name: replace(kept) for name, kept in self.kept.items()})

    def keep(self, request: Request, answer: Any, now: float) -> Kept | None:
        """Keep the reply to a request with a key, unless it did nothing."""
        reply, pull, held_until = answer if isinstance(answer, Leased) else Leased(answer, 0, 0.0)
        is_in_vain = request.operation == "pull" and not pull
        if not request.once or is_in_vain or isinstance(answer, Refused) or not self.model.exists:
            return None
        name, digest = request.once
        until = max(now + KEPT_SECONDS, min(held_until, now + HELD_SECONDS_MAX))
        kept = self.kept[name] = Kept(digest, reply, until, pull)
        return kept

    def restart(self, now: float) -> None:
        """The shard starts."""
        self.model.let_leases_run_out(now)
        self.model.restart()
        self.trim()
        for kept in self.kept.values():
            kept.again, kept.pull = True, 0

    def trim(self) -> None:
        """A turn is over: of the results the latest are kept."""
        if 0 < self.model.settings.keep_count < len(self.model.results):
            del self.model.results[: -self.model.settings.keep_count]

    def do(self, request: Request) -> Any:
        """Do what is asked, all of it; returns the reply."""
        if request.operation == "delete_realm":
            self.model, self.kept = self.model.empty(), {}
            return {}
        if request.operation in AT_ONCE:
            return AT_ONCE[request.operation](self.model, request)
        if is_sweep(request):
            if error := sweep_error(self.model, request):
                return Refused(error)
            return SWEEPS[request.operation](self.model, request, _everything)
        batch = _batch(self.model, request)
        return Refused(batch.error) if batch.error else batch.do(batch.parts)

    def undo_pull(self, request: Request) -> Any:
        """Give back what a pull leased, unless its reply was given once more."""
        _, pairs, key = request.params
        pull = request.known["pull"][0]
        kept = self.kept.get(key)
        if kept is not None and kept.again:
            return {}
        if kept is not None and kept.pull == pull:
            del self.kept[key]
        self.model.undo(pull, [(job_id, queue) for job_id, queue in pairs])
        return {}


def is_sweep(request: Request) -> bool:
    """Whether this is done job by job."""
    return request.operation in SWEEPS and "jobs" not in (request.said or ())


def _batch(model: Model, request: Request) -> Batch:
    name = "redrive_jobs" if request.operation == "redrive" else request.operation
    return BATCHES[name](model, request)


def _everything(place: ModelPlace) -> bool:
    return True


@dataclass(eq=False)
class Undertaking:
    """What goes on in steps in a realm. `before`: the realm without any of it, or, after a start, of what was left."""

    request: Request
    before: Book
    answer: Any
    is_undone: bool = False  # it is a pull, and a start gives back what it leased
    pull: int = 0  # then its number
    done_count: int = 0  # parts of a batch that were done before the start
    done: Any = field(default_factory=dict)  # and what they replied

    def resume(self, realm: Realm | None, now: float) -> tuple[Book, Undertaking | None]:
        """After a start: the realm as all will see it, and what is left to do."""
        book = self.before
        task = None if realm is None else realm.task
        if realm is None or task is None:
            if is_sweep(self.request):
                raise Difference(f"{self.request.operation} does not go on after a start")
            book.restart(now)
            return book, None
        if task.kind == UNDO_PULL:
            return self._undo_pull(book, realm, now)
        if task.kind == BATCH:
            return self._go_on_with_batch(book, int(task.details[2]) * batches.SLICE_COUNT, now)
        if is_sweep(self.request):
            SWEEPS[self.request.operation](book.model, self.request, _done_in(realm, self.request.operation))
        book.restart(now)
        before = book.copy()
        if is_sweep(self.request):
            answer = SWEEPS[self.request.operation](book.model, self.request, _everything)
        else:
            answer = book.do(self.request)
        return book, Undertaking(self.request, before, answer)

    def _go_on_with_batch(self, book: Book, count: int, now: float) -> tuple[Book, Undertaking]:
        done = joined(self.done, _batch(book.model, self.request).do(self._parts(book)[self.done_count : count]))
        book.restart(now)
        before = book.copy()
        answer = joined(done, _batch(book.model, self.request).do(self._parts(book)[count:]))
        return book, Undertaking(self.request, before, answer, done_count=count, done=done)

    def _parts(self, book: Book) -> list[Any]:
        return _batch(book.model, self.request).parts

    def _undo_pull(self, book: Book, realm: Realm, now: float) -> tuple[Book, Undertaking]:
        """Lease what the file holds of it; or, after one more start, give back what the file does not hold any more."""
        assert realm.task is not None
        number, pull = int(realm.task.target or 0), self.pull
        if not self.is_undone:
            pull = _lease_some(book.model, self.request, realm, number)
        else:
            book.model.undo(pull, _pairs(book.model, lambda place: not _is_leased(realm, place, number)))
        book.restart(now)
        before = book.copy()
        book.model.undo(pull, _pairs(book.model, _everything))
        return book, Undertaking(self.request, before, None, is_undone=True, pull=pull)


def _done_in(realm: Realm, operation: str) -> Includes:
    """Whether a sweep has done what it does to a place, as far as the realm says that was loaded."""

    def is_done(of_model: ModelPlace) -> bool:
        place = realm.place(of_model.job.job_id, of_model.queue)
        if operation in ("redrive", "redrive_tagged_jobs"):
            # That its last lease ran out once too often may be still to be seen to: then it is not dead yet.
            return place is None or (place.history.mark != MARK_DEAD and not place.history.lease)
        if operation == "cancel_tagged_jobs":
            return place is None or place.history.mark == MARK_CANCELLED
        return place is None

    return is_done


def _is_leased(realm: Realm, of_model: ModelPlace, number: int) -> bool:
    place = realm.place(of_model.job.job_id, of_model.queue)
    return place is not None and place.history.lease == number


def _pairs(model: Model, includes: Includes) -> list[tuple[str, QueueId]]:
    return [(place.job.job_id, place.queue) for place in model.places if includes(place)]


def _lease_some(model: Model, request: Request, realm: Realm, number: int) -> int:
    """Lease what the file holds of a pull in slices; returns the pull's number in the model."""
    asked = Wanted(int(request.params[0] or 1)) if request.operation == "pull_2013" else wanted(request.said)
    model.pull(Wanted(0))
    for place in [place for place in model.candidates(asked) if _is_leased(realm, place, number)]:
        model.check_out(place, asked)
    return model._pulls
