"""What a shard tidies up by and by: results and replies that were kept long enough, and what a realm left behind."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from restq.shards.archive import Archive
from restq.shards.changes import Changes
from restq.shards.realm import Realm
from restq.shards.replies import Replies

INTERVAL_SECONDS = 5.0
ROWS_MAX = 1_000  # that one turn tidies up
LOOK_COUNT = 20  # results read at once, each of up to a hundred KiB: most often the first one is to stay


class Chores:
    """The chores of one shard; `next_at` is when there is to be done something again."""

    def __init__(self, archive: Archive, changes: Changes, replies: Replies) -> None:
        self.next_at = math.inf
        self._archive = archive
        self._changes = changes
        self._replies = replies
        self._orphaned: deque[int] = deque()  # keys of realms that are gone, whose results may be left
        self._keeping: dict[Realm, None] = {}  # realms that keep results, of those to which something happened

    def load(self, orphaned: Iterable[int], keeps: bool, now: float) -> None:
        """Memory is what the store says, which `keeps` anything, and has results of these realms that are gone."""
        self._orphaned = deque(orphaned)
        self._keeping.clear()
        self.next_at = now if self._orphaned else now + INTERVAL_SECONDS if keeps else math.inf

    def orphan(self, realm_key: int, now: float) -> None:
        """A realm is gone: its results go by and by."""
        self._orphaned.append(realm_key)
        self.next_at = now

    def keeps(self, realm: Realm) -> None:
        """Something happened to a realm that keeps results."""
        self._keeping[realm] = None

    def end_turn(self, now: float) -> None:
        """Drop at once the results that are too many, and see to it that all else that is kept will go."""
        if (self._replies.count or self._keeping) and self.next_at == math.inf:
            self.next_at = now + INTERVAL_SECONDS
        for realm in self._keeping:
            if realm.result_count > realm.settings.keep_count > 0 and self._trim(realm, now) >= ROWS_MAX:
                self.next_at = now
        self._keeping.clear()

    def do(self, realms: Iterable[Realm], now: float) -> None:
        """Do what is due, as far as one turn goes."""
        if now < self.next_at:
            return
        again = False
        budget = ROWS_MAX
        keeps = self._replies.count > 0
        if self._replies.is_due(now):
            self._replies.sweep(now, ROWS_MAX)
            again = self._replies.is_due(now)
        if self._orphaned:
            again = self._drop_orphans() or again
        for realm in realms:
            if realm.result_count:
                keeps = True
                budget -= self._trim(realm, now) if budget > 0 else 0
                again = budget <= 0 or again
        self.next_at = now if again else now + INTERVAL_SECONDS if keeps else math.inf

    def _drop_orphans(self) -> bool:
        key = self._orphaned[0]
        rows = self._archive.results(key, 0, ROWS_MAX)
        for row in rows:
            self._changes.results[row.key] = None
        if len(rows) < ROWS_MAX:
            self._orphaned.popleft()
        return bool(self._orphaned)

    def _trim(self, realm: Realm, now: float) -> int:
        """Drop results that are too old or too many, the oldest first; returns how many it dropped."""
        settings = realm.settings
        excess = realm.result_count - settings.keep_count if settings.keep_count else 0
        oldest_at = settings.oldest_at(now)
        doomed: list[int] = []
        is_over = False
        while not is_over and len(doomed) < ROWS_MAX:
            rows = self._archive.results(realm.key, doomed[-1] if doomed else 0, LOOK_COUNT)
            found = [row.key for index, row in enumerate(rows, len(doomed)) if index < excess or row.at < oldest_at]
            is_over = len(found) < LOOK_COUNT
            doomed += found
        self._changes.results.update(dict.fromkeys(doomed))
        realm.result_count -= len(doomed)
        return len(doomed)
