"""The total-queue check: what clients asked and were told, and whether a queue that loses nothing can have said so.

Each call is noted when it begins, and when it ends as ok, failed (it was certainly not done) or not at all (unknown:
it may be done, now or later). All times are of one clock, in seconds, that of `lease_expires_at`; `slack` is by how
much clocks may differ. In the end all faults are healed, and everything is pulled and acked from `drained_at` on.
Then `Checker.violations` says in sentences what must not be:

D1  what was added with an answer and never possibly removed is delivered in the end.
D2  what nobody tried to add is never delivered; what was removed or acked with an answer is not delivered again
    unless it was added again; nothing is acked more often than it was added: repeats under one key are done once.
L4  every hand-out that a job counts was answered to somebody, or is one of a call that was not answered.
L1  while a lease that was answered holds, and nobody can have ended it, nobody else gets its job out of that queue;
    no lease id is given twice; a void one changes nothing, and one that holds is not refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ACK, NACK, RELEASE, EXTEND = "ack", "nack", "release", "extend"


class Unit(NamedTuple):
    """A job in a queue: what is delivered."""

    realm: str
    queue: int | str
    job: str


class Scope(NamedTuple):
    """What a call removes: of a realm all, or what is in this queue, is this job, or carries this tag."""

    realm: str
    queue: int | str | None = None
    job: str | None = None
    tag: str | None = None

    def has(self, unit: Unit, tags: frozenset[str]) -> bool:
        """Whether it covers this, if it has these tags."""
        return (
            self.realm == unit.realm
            and self.queue in (None, unit.queue)
            and self.job in (None, unit.job)
            and (self.tag is None or self.tag in tags)
        )

    @property
    def is_realm(self) -> bool:
        """Whether it is all of the realm."""
        return self.queue is None and self.job is None and self.tag is None


@dataclass(eq=False)
class Delivery:
    """A job that a call was answered with, and its lease."""

    unit: Unit
    lease: str
    granted_at: float
    expires_at: float
    attempt: int
    call: Call


@dataclass(eq=False)
class Call:
    """One call, with all its repeats under one key.

    `adds`: units, and their tags. `removes`: what it removes, at once or (`cancels`) once their leases end.
    `ends`: what it does with leases. `pulls`: where it leases jobs, "" is everywhere. `was_repeated`: an earlier
    request of it was not answered. `may_hide`: it may have leased more than it was answered with.
    """

    number: int
    began: float
    what: str = ""
    adds: Mapping[Unit, frozenset[str]] = field(default_factory=dict)
    replaces: bool = False  # the jobs that it adds are removed first
    removes: Sequence[Scope] = ()
    cancels: bool = False
    ends: Mapping[str, str] = field(default_factory=dict)
    pulls: str | None = None
    was_repeated: bool = False
    may_hide: bool = False
    ended: float = math.inf
    is_ok: bool = False
    is_failed: bool = False
    done: Sequence[str] = ()  # of the leases, those with which it was done
    stale: Sequence[str] = ()
    expires: Mapping[str, float] = field(default_factory=dict)  # of the leases that it extended
    deliveries: list[Delivery] = field(default_factory=list)

    def ok(
        self,
        now: float,
        done: Sequence[str] = (),
        stale: Sequence[str] = (),
        expires: Mapping[str, float] | None = None,
    ) -> None:
        """It was answered: it is done."""
        self.ended, self.is_ok = now, True
        self.done, self.stale, self.expires = list(done), list(stale), expires or {}

    def failed(self, now: float, stale: Sequence[str] = ()) -> None:
        """It was answered: it is certainly not done."""
        self.ended, self.is_failed, self.stale = now, True, list(stale)

    def delivered(self, unit: Unit, lease: str, lease_seconds: float, expires_at: float, attempt: int = 0) -> None:
        """It was answered with this job."""
        self.deliveries.append(Delivery(unit, lease, expires_at - lease_seconds, expires_at, attempt, self))

    def __str__(self) -> str:
        how = "ok" if self.is_ok else "failed" if self.is_failed else "unknown"
        return f"call {self.number} ({self.what}; {how}, {self.began:.4f} to {self.ended:.4f})"


class Checker:
    """Notes calls, and says what must not be."""

    def __init__(self, slack: float = 0.000_01) -> None:
        self.calls: list[Call] = []
        self.drained_at = math.inf
        self._slack = slack

    def begin(self, now: float, what: str, **effects: object) -> Call:
        """A call begins; `effects` as the fields of `Call`."""
        call = Call(len(self.calls), now, what, **effects)  # type: ignore[arg-type]
        self.calls.append(call)
        return call

    def violations(self) -> list[str]:
        """What must not be, none if all is well."""
        return list(_Check(self.calls, self.drained_at, self._slack).violations())


class _Check:
    def __init__(self, calls: Sequence[Call], drained_at: float, slack: float) -> None:
        self._drained_at = drained_at
        self._slack = slack
        # With a realm go the replies that it kept: what is still under way of a repeated call may be done once more.
        deleted = {scope.realm for call in calls if not call.is_failed for scope in call.removes if scope.is_realm}
        for call in calls:
            if call.was_repeated and deleted & self._realms(call):
                call.is_failed = False
        self._again = {call for call in calls if call.was_repeated and deleted & self._realms(call)}
        self._calls = [call for call in calls if not call.is_failed]
        self._refused = [call for call in calls if call.is_failed]
        self._adds: dict[Unit, list[Call]] = {}
        self._removes: dict[str, list[tuple[Call, Scope]]] = {}
        self._deliveries: dict[Unit, list[Delivery]] = {}
        self._uses: dict[str, list[Call]] = {}  # of a lease
        self._leases: dict[str, list[Delivery]] = {}
        for call in self._calls:
            for unit in call.adds:
                self._adds.setdefault(unit, []).append(call)
            for scope in call.removes:
                self._removes.setdefault(scope.realm, []).append((call, scope))
            for lease in call.ends:
                self._uses.setdefault(lease, []).append(call)
            for delivery in call.deliveries:
                self._deliveries.setdefault(delivery.unit, []).append(delivery)
                self._leases.setdefault(delivery.lease, []).append(delivery)

    @staticmethod
    def _realms(call: Call) -> set[str]:
        return {unit.realm for unit in call.adds} | {scope.realm for scope in call.removes}

    def violations(self) -> Iterator[str]:
        for lease, given in self._leases.items():
            if len({(delivery.call.number, delivery.unit) for delivery in given}) > 1:
                yield f"L1: lease {lease} was given twice: {given[0].call} and {given[1].call}"
        for unit in {**self._adds, **self._deliveries}:
            yield from self._lost(unit)
            yield from self._unexpected(unit)
            yield from self._twice_leased(unit)
            yield from self._hidden(unit)
        for call in (*self._calls, *self._refused):
            yield from self._misjudged(call)

    # -- D1, D2 ------------------------------------------------------------------------------------------------------

    def _ended(self, call: Call) -> float:
        """When all of it was over: what was asked again may be done once more by what is still under way."""
        return math.inf if call in self._again or not call.is_ok else call.ended

    def _tags(self, unit: Unit, surely: bool) -> frozenset[str]:
        every = [call.adds[unit] for call in self._adds.get(unit, ())]
        if not every:
            return frozenset()
        return frozenset.intersection(*every) if surely else frozenset.union(*every)

    def _removers(self, unit: Unit, surely: bool = False) -> Iterator[Call]:
        """What removed the unit, or (not `surely`) may have; but for acks."""
        tags = self._tags(unit, surely)
        for call, scope in self._removes.get(unit.realm, ()):
            if scope.has(unit, tags) and (not surely or (call.is_ok and not call.cancels)):
                yield call

    def _acks(self, unit: Unit) -> Iterator[tuple[Call, bool]]:
        """The calls that acked it, or may have, and whether they surely did."""
        for delivery in self._deliveries.get(unit, ()):
            for call in self._uses.get(delivery.lease, ()):
                if call.ends[delivery.lease] == ACK:
                    yield call, call.is_ok and delivery.lease in call.done

    def _lost(self, unit: Unit) -> Iterator[str]:
        found = self._deliveries.get(unit, ())
        if any(delivery.call.began >= self._drained_at for delivery in found):
            return
        ends = [self._ended(call) for call in self._removers(unit)]
        ends += [self._ended(call) for call, _ in self._acks(unit)]
        for call in self._adds.get(unit, ()):
            if call.is_ok and not any(ended > call.began for ended in ends):
                yield f"D1: {unit} is lost; it was added by {call}"

    def _unexpected(self, unit: Unit) -> Iterator[str]:
        adds = self._adds.get(unit, [])
        surely = list(self._removers(unit, surely=True))
        surely += [call for call, is_sure in self._acks(unit) if is_sure]
        for delivery in self._deliveries.get(unit, ()):
            if not any(call.began < delivery.call.ended for call in adds):
                yield f"D2: {unit}, which nobody added, was delivered by {delivery.call}"
                continue
            at = max(delivery.call.began, delivery.granted_at - self._slack)
            if not any(
                call.began < delivery.call.ended
                and not any(self._ended(call) <= gone.began and gone.ended <= at for gone in surely)
                for call in adds
            ):
                named = ", ".join(map(str, surely))
                yield f"D2: {unit} came back by {delivery.call}, after {named}"
        acked = sum(is_sure for _, is_sure in self._acks(unit))
        if acked > len(adds) and not any(call in self._again for call in adds):
            yield f"D2: {unit} was added {len(adds)} times and acked {acked} times"

    # -- L4 ----------------------------------------------------------------------------------------------------------

    def _hidden(self, unit: Unit) -> Iterator[str]:
        # With a realm its idempotency keys go: what was repeated may lease once more in the next realm of the name.
        forgot = any(Scope(unit.realm) in call.removes and not call.is_failed for call in self._calls)
        pulls = [
            call
            for call in self._calls
            if call.pulls in ("", unit.realm) and (not call.is_ok or call.may_hide or (forgot and call.was_repeated))
        ]
        found = sorted(self._deliveries.get(unit, ()), key=lambda delivery: delivery.granted_at)
        for index, delivery in enumerate(found):
            known = index + sum(call.began < delivery.granted_at for call in pulls)
            if delivery.attempt - 1 > known and delivery.call not in self._again:
                yield f"L4: {unit} says attempt {delivery.attempt} in {delivery.call}, but {known} are known before"

    # -- L1 ----------------------------------------------------------------------------------------------------------

    def _holds_until(self, delivery: Delivery, before: float) -> float:
        """Until when a lease holds at least, as far as was answered before this."""
        extended = [
            call.expires[delivery.lease]
            for call in self._uses.get(delivery.lease, ())
            if call.is_ok and call.ended <= before and delivery.lease in call.expires
        ]
        return max([delivery.expires_at, *extended])

    def _ender(self, delivery: Delivery, before: float, but: Call | None = None) -> Call | None:
        """A call that may have ended this lease before this, and before its time."""
        for call in self._uses.get(delivery.lease, ()):
            if call is not but and call.ends[delivery.lease] != EXTEND and call.began < before:
                return call
        replaces = (call for call in self._adds.get(delivery.unit, ()) if call.replaces)
        for call in (*replaces, *self._removers(delivery.unit)):
            if call.began < before and self._ended(call) > delivery.granted_at and not call.cancels:
                return call
        return None

    def _twice_leased(self, unit: Unit) -> Iterator[str]:
        found = sorted(self._deliveries.get(unit, ()), key=lambda delivery: delivery.granted_at)
        for index, second in enumerate(found):
            for first in found[:index]:
                if first.lease == second.lease:
                    continue
                at = second.granted_at + self._slack
                holds_until = self._holds_until(first, second.granted_at)
                if holds_until > at + self._slack and self._ender(first, at) is None:
                    yield (
                        f"L1: {unit} was delivered at {second.granted_at:.4f} by {second.call}, while lease"
                        f" {first.lease} of {first.call} held until {holds_until:.4f}"
                    )

    def _misjudged(self, call: Call) -> Iterator[str]:
        for lease in call.done:
            for delivery in self._leases.get(lease, ())[:1]:
                why = self._why_void(delivery, call)
                if why is not None:
                    yield f"L1: {call} was done with lease {lease} of {delivery.unit}, which was void: {why}"
        for lease in call.stale:
            for delivery in self._leases.get(lease, ())[:1]:
                holds_until = self._holds_until(delivery, call.began)
                if holds_until > call.ended + self._slack and self._ender(delivery, call.ended, call) is None:
                    yield f"L1: {call} was refused for lease {lease}, which held until {holds_until:.4f}"

    def _why_void(self, delivery: Delivery, call: Call) -> str | None:
        """Why a lease was surely void when this call began."""
        for other in self._deliveries.get(delivery.unit, ()):
            later = other.granted_at > delivery.granted_at + self._slack
            if later and other.lease != delivery.lease and other.call.ended < call.began:
                return f"{other.call} delivered it again"
        for ended in self._uses.get(delivery.lease, ()):
            was_ended = delivery.lease in ended.done and ended.ends[delivery.lease] != EXTEND
            if ended is not call and was_ended and ended.ended < call.began:
                return f"{ended} ended it"
        for gone in self._removers(delivery.unit, surely=True):
            if gone.began >= max(delivery.granted_at, delivery.call.began) and gone.ended < call.began:
                return f"{gone} removed it"
        return None
