"""From rows back to realms: at the start of a shard, and when a realm moves in. The reverse of what a realm notes."""

from __future__ import annotations

import json
from collections.abc import Iterable

from restq.shards.changes import Changes, Keys, QueueRow, RealmRow, Stored, Task
from restq.shards.data import Large
from restq.shards.queue import NEVER, Job, Lease, Place, Queue, make_place
from restq.shards.realm import Realm
from restq.shards.store import Loaded
from restq.shards.tags import SETS_MAX


class Loader:
    """Builds realms of rows. Feed realms, then their queues, then places with their jobs; then `finish`."""

    def __init__(self, keys: Keys, changes: Changes) -> None:
        self._keys = keys
        self._changes = changes
        self._realms: dict[int, Realm] = {}
        self._queues: dict[int, Queue] = {}
        self._places: dict[int, list[Place]] = {}  # by the key of their queue
        self._tags: dict[str, tuple[str, ...]] = {}

    def add_all(self, loaded: Loaded) -> None:
        """Feed all that a store holds."""
        for realm_row in loaded.realms:
            self.add_realm(realm_row)
        for queue_row in loaded.queues:
            self.add_queue(queue_row)
        self.add_places(loaded.places)

    def add_realm(self, row: RealmRow) -> Realm:
        """The realm of this row, as yet empty."""
        realm = Realm(row.key, row.name, row.default_lease_time, self._keys, self._changes)
        realm.epoch = row.epoch
        realm.pinned = bool(row.pinned)
        realm.task = Task.read(row.task)
        realm.exists = True
        self._realms[row.key] = realm
        return realm

    def add_queue(self, row: QueueRow) -> None:
        """A queue of a realm that was fed before."""
        queue = Queue(row.key, row.queue_id, row.lease_time)
        self._realms[row.realm].hold_queue(queue)
        self._queues[row.key] = queue
        self._places[row.key] = []

    def add_places(self, rows: Iterable[Stored]) -> None:
        """Places, each with its job; a job comes with each of its places.

        A start is this loop, a million times over. Rows of a batch stand together, so what one has in common with
        the one before is looked up once, and shared: its queue, its tags, the instants and the lease of its batch.
        """
        last_queue_key = last_realm_key = -1
        last_tags_text: str | None = None
        last_at = 0.0
        lease = NEVER
        for key, queue_key, at, leased_at, number, job_key, realm_key, job_id, tags_text, data, digest, size in rows:
            if realm_key != last_realm_key:
                last_realm_key, last_tags_text = realm_key, None
                realm = self._realms[realm_key]
                jobs = realm.jobs
            if queue_key != last_queue_key:
                last_queue_key = queue_key
                queue = self._queues[queue_key]
                hold = self._places[queue_key].append
            job = jobs.get(job_id)
            if job is None:
                if tags_text != last_tags_text:
                    last_tags_text, tags = tags_text, self._tags_of(tags_text)
                kept = Large(digest, size) if digest else data.encode() or None
                job = jobs[job_id] = Job(key if key == job_key else job_key, job_id, kept, tags)
                for tag in tags:
                    realm.tags.carry(tag, job)
            if at != last_at:
                last_at = at
            if not number:
                lease = NEVER
            elif lease.number != number:
                lease = Lease(number, leased_at)
            place = make_place((last_at, key, queue, job, lease))
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
        """All is fed: put the places into their heaps as of `now`. Returns the realms."""
        for key, places in self._places.items():
            self._queues[key].restore(places, now)
        self._places = {}
        return list(self._realms.values())
