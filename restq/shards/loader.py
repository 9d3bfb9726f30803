"""From rows back to realms: at the start of a shard, and when a realm moves in. The reverse of what a realm notes."""

from __future__ import annotations

import json
from collections.abc import Iterable

from restq.shards.changes import Changes, JobRow, Keys, PlaceRow, QueueRow, RealmRow
from restq.shards.data import Large
from restq.shards.queue import Job, Place, Queue, make_place
from restq.shards.realm import TAG_SETS_MAX, Realm, Task


class Loader:
    """Builds realms of rows. Feed realms, then their queues, then places with their jobs; then `finish`."""

    def __init__(self, keys: Keys, changes: Changes) -> None:
        self._keys = keys
        self._changes = changes
        self._realms: dict[int, Realm] = {}
        self._queues: dict[int, Queue] = {}
        self._places: dict[int, list[Place]] = {}  # by the key of their queue
        self._tags: dict[str, tuple[str, ...]] = {"[]": ()}

    def add_realm(self, row: RealmRow) -> Realm:
        """The realm of this row, as yet empty."""
        realm = Realm(row.key, row.name, row.default_lease_time, self._keys, self._changes)
        realm.epoch = row.epoch
        realm.pinned = bool(row.pinned)
        realm.task = None if row.task is None else Task(*json.loads(row.task))
        realm.exists = True
        self._realms[row.key] = realm
        return realm

    def add_queue(self, row: QueueRow) -> None:
        """A queue of a realm that was fed before."""
        queue = Queue(row.key, row.queue_id, row.lease_time)
        self._realms[row.realm].hold_queue(queue)
        self._queues[row.key] = queue
        self._places[row.key] = []

    def add_places(self, rows: Iterable[tuple[PlaceRow, JobRow]]) -> None:
        """Places, each with its job; a job's row comes with each of its places. Plain tuples will do."""
        realms, queues, places = self._realms, self._queues, self._places
        for (key, _, queue_key, at, leased_at, lease), row in rows:
            realm = realms[row[1]]
            job = realm.jobs.get(row[2])
            if job is None:
                job = self._add_job(realm, row)
            place = make_place((at, key, queues[queue_key], job, leased_at, lease))
            job.places = (*job.places, place) if job.places else (place,)
            places[queue_key].append(place)

    def _add_job(self, realm: Realm, row: tuple[int, int, str, str, bytes | None, bytes | None, int]) -> Job:
        key, _, job_id, tags_text, data, digest, size = row
        tags = self._tags.get(tags_text)
        if tags is None:
            if len(self._tags) >= TAG_SETS_MAX:
                self._tags = {"[]": ()}
            tags = self._tags[tags_text] = tuple(json.loads(tags_text))
        job = Job(key, job_id, Large(digest, size) if digest is not None else data, tags)
        realm.jobs[job_id] = job
        for tag in tags:
            realm.carry(tag, job)
        return job

    def finish(self, now: float) -> list[Realm]:
        """All is fed: put the places into their heaps as of `now`. Returns the realms."""
        for key, places in self._places.items():
            self._queues[key].restore(places, now)
        self._places = {}
        return list(self._realms.values())
