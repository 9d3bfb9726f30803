"""From rows back to realms: at the start of a shard, and when a realm moves in. The reverse of what a realm notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import attrgetter

from restq.shards import limits
from restq.shards.changes import Changes, Keys, QueueRow, RealmRow, Stored, TagRow, Task
from restq.shards.data import Large
from restq.shards.gates import Gate, Limit
from restq.shards.job import DEAD, DELAYED, FRESH, LEASED, MARK_DEAD, QUEUED, History, Job, Place, Terms
from restq.shards.queue import Queue
from restq.shards.realm import Realm
from restq.shards.renumbering import FirstKeys
from restq.shards.settings import read_limits, read_queue, read_realm
from restq.shards.store import Loaded
from restq.shards.tags import SETS_MAX


class Loader:
    """Builds realms of rows. Feed realms, then their queues and limits, then places with their jobs; then `finish`."""

    def __init__(self, keys: Keys, changes: Changes, chance: Callable[[], float]) -> None:
        self._keys = keys
        self._changes = changes
        self._chance = chance
        self._realms: dict[int, Realm] = {}
        self._queues: dict[int, Queue] = {}
        self._places: dict[int, tuple[Realm, list[Place]]] = {}  # by the key of their queue
        self._tags: dict[str, tuple[str, ...]] = {}
        self._with_terms: dict[int, list[Job]] = {}  # by the key of their realm

    def add_all(self, loaded: Loaded) -> None:
        """Feed all that a store holds."""
        for realm_row in loaded.realms:
            self.add_realm(realm_row).result_count = loaded.result_counts.get(realm_row.key, 0)
        for queue_row in loaded.queues:
            self.add_queue(queue_row)
        for tag_row in loaded.tags:
            self.add_tag(tag_row)
        self.add_places(loaded.places)

    def add_realm(self, row: RealmRow) -> Realm:
        """The realm of this row, as yet empty."""
        realm = Realm(row.key, row.name, row.default_lease_time, self._keys, self._changes, self._chance)
        realm.settings = read_realm(row.settings)
        realm.epoch = row.epoch
        realm.first_keys = FirstKeys.read(row.first_keys)
        realm.born = row.born
        realm.pinned = bool(row.pinned)
        realm.task = Task.read(row.task)
        realm.exists = True
        self._realms[row.key] = realm
        return realm

    def add_queue(self, row: QueueRow) -> None:
        """A queue of a realm that was fed before."""
        queue = Queue(row.key, row.queue_id, row.lease_time)
        queue.settings = read_queue(row.settings)
        if any(queue.settings.limits) or row.next_at:
            queue.limit = Limit(row.key, "queue", row.queue_id, queue.settings.limits, row.next_at)
        realm = self._realms[row.realm]
        realm.hold_queue(queue)
        self._queues[row.key] = queue
        self._places[row.key] = (realm, [])

    def add_tag(self, row: TagRow) -> None:
        """What was configured for a tag of a realm that was fed before."""
        limit = Limit(row.key, "tag", row.tag, read_limits(row.settings), row.next_at)
        self._realms[row.realm].tags.limits[row.tag] = limit

    def add_places(self, rows: Iterable[Stored]) -> None:
        """Places, each with its job; a job comes with each of its places.

        A start is this loop, a million times over. Rows of a batch stand together, so what one has in common with
        the one before is looked up once, and shared: its queue, its tags, the instants and the history of its batch.
        """
        last_queue_key = last_realm_key = -1
        last_tags_text: str | None = None
        last_at, last_past, history = 0.0, tuple(FRESH), FRESH
        for row in rows:
            key, queue_key, at, _, _, _, _, _, _, job_key, realm_key, job_id, tags_text, data, digest, size, terms = row
            if realm_key != last_realm_key:
                last_realm_key, last_tags_text = realm_key, None
                realm = self._realms[realm_key]
                jobs = realm.jobs
            if queue_key != last_queue_key:
                last_queue_key = queue_key
                queue = self._queues[queue_key]
                hold = self._places[queue_key][1].append
            job = None if key == job_key else jobs.get(job_id)  # which has its key in common with its first place
            if job is None:
                if tags_text != last_tags_text:
                    last_tags_text, tags = tags_text, self._tags_of(tags_text)
                    carry = [realm.tags.carriers(tag).append for tag in tags]
                kept = Large(digest, size) if digest else data.encode() or None
                job = jobs[job_id] = Job(key if key == job_key else job_key, job_id, kept, tags)
                if terms:
                    job.terms = realm.tags.shared_terms(Terms.read(terms))
                    self._with_terms.setdefault(realm_key, []).append(job)
                for append in carry:
                    append(job)
            if at != last_at:
                last_at = at
            if row[3:9] != last_past:
                last_past = row[3:9]
                history = FRESH if last_past == FRESH else History(*last_past)
            place = Place(last_at, key, queue, job, history)
            job.add(place)
            hold(place)

    def _tags_of(self, text: str) -> tuple[str, ...]:
        tags = self._tags.get(text)
        if tags is None:
            if len(self._tags) >= SETS_MAX:
                self._tags.clear()
            tags = self._tags[text] = tuple(json.loads(text))
        return tags

    def finish(self, now: float) -> list[Realm]:
        """All is fed: have it as of `now`, but for what time brings about by `advance`. Returns the realms."""
        for realm in self._realms.values():
            realm.clock = now
            realm.roll.restore(sorted(realm.jobs.values(), key=attrgetter("key")))
            _count(realm)
            self._set_gates(realm)
        for key, (realm, places) in self._places.items():
            _hold_all(realm, self._queues[key], places)
        for realm in self._realms.values():
            for limit in (*realm.tags.limits.values(), *(queue.limit for queue in realm.queues.values())):
                if limit is not None:
                    limits.refresh(realm, limit)
        self._places = {}
        return list(self._realms.values())

    def _set_gates(self, realm: Realm) -> None:
        with_terms = self._with_terms.pop(realm.key, ())
        for job in with_terms:
            if job.terms.expires_at:
                realm.expiries.put(job, job.terms.expires_at)
        for job in realm.jobs.values() if realm.tags.limits else with_terms:
            realm.tags.set_gates(job, realm.tags.gates_of(job))


def _count(realm: Realm) -> None:
    """Count what its jobs are."""
    data = [job.data for job in realm.jobs.values() if job.data is not None]
    sizes = [text.size for text in data if isinstance(text, Large)]
    realm.inline_bytes = sum(map(len, realm.jobs)) + sum(len(text) for text in data if not isinstance(text, Large))
    realm.data_bytes = realm.inline_bytes + sum(sizes)
    realm.tags.carried_count = sum(len(tag.jobs) for tag in realm.tags.values())


def _hold_all(realm: Realm, queue: Queue, places: list[Place]) -> None:
    """Have all places of a queue where their states say: O(n)."""
    now = realm.clock
    realm.place_count += len(places)
    plain: list[Place] = []
    waiting: list[Place] = []

    def kind(place: Place) -> tuple[int, bool, tuple[str, ...], tuple[Gate, ...]]:
        job = place.job
        _, lease, _, _, mark, _ = place.history
        state = DEAD if mark == MARK_DEAD else QUEUED if place.at <= now else LEASED if lease else DELAYED
        return state, lease > 0, job.tags, job.gates

    for (state, holds_lease, tags, gates), run in groupby(places, kind):
        alike = list(run)
        if state == DEAD:
            queue.dead.update((place.key, place) for place in alike)
        elif state != QUEUED:
            waiting += alike
        else:
            if gates:
                for place in alike:
                    queue.lane(gates).push(place)
            else:
                plain += alike
            if holds_lease:
                queue.lapsed += alike
        if holds_lease:
            for place in alike:
                if place.key != place.job.key:
                    realm.other_leases[place.key] = place.job
            if state == LEASED and (gates or queue.limit is not None):
                for limit in limits.of(alike[0]):
                    limit.leased_count += len(alike)
        queue.counts[state] += len(alike)
        for tag in tags:
            realm.tags[tag].counts[state] += len(alike)
    queue.plain.heap.rebuild(plain)
    queue.waiting.rebuild(waiting)
    realm.agenda.put(queue, queue.next_at)
