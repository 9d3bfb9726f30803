"""A worker as a process of its own: takes jobs of a realm one by one, notes what it did, and may be killed any time.

    python dag_worker.py URI REALM LOG

A line of the log is `start JOB` or `acked JOB`, written at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from restq.client import Realm
from restq.errors import LeaseStale, RestqError


def main(uri: str, name: str, log: Path) -> None:
    with log.open("a", buffering=1) as lines, Realm(name, uri) as realm:
        while True:
            try:
                jobs = realm.pull_jobs(1, wait=2, lease_time=1.0, worker=log.stem)
            except RestqError:  # the shard is starting again, and took longer than the client's patience
                continue
            for job in jobs:
                lines.write(f"start {job.job_id}\n")
                try:
                    job.ack(result=log.stem)
                    lines.write(f"acked {job.job_id}\n")
                except LeaseStale:
                    lines.write(f"stale {job.job_id}\n")
                except RestqError:
                    lines.write(f"unknown {job.job_id}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
