"""What tests see of a realm that its users do not."""

from __future__ import annotations

import gc
import sys

from restq.shards.job import Place
from restq.shards.realm import Realm


def leased_places(realm: Realm) -> list[Place]:
    """The places whose leases are in force, or ran out without anybody taking the job since, by their keys."""
    places = (place for job in realm.jobs.values() for place in job.places if place.history.lease)
    return sorted(places, key=lambda place: place.key)


def left_over() -> int:
    """How many objects only a collector gets at, and how many pieces of memory are in use at all.

    Shards run without one. None looks into jobs and places (see `Job`), so it finds no cycle of these; but their memory
    is still in use.
    """
    return gc.collect() + sys.getallocatedblocks()
