"""The jobs of a load, and the requests for them, made ready before any clock starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from bench.connection import LoadError, request

ID_BYTES = 20
DATA_BYTES_MIN = 22  # room for two quotes and the job's number

RealmRequest = tuple[str, bytes]  # the realm, and a request to it


@dataclass(frozen=True)
class Workload:
    """So many jobs, dealt in batches over the realms in turn."""

    jobs: int = 1_000_000
    batch: int = 1_000
    data_bytes: int = 100
    tags: int = 1
    realms: int = 1
    hashed_ids: bool = True

    def job_id(self, number: int) -> str:
        """Ids of equal length: in the order of adding, or spread evenly, which is harder on an index."""
        if self.hashed_ids:
            return blake2b(str(number).encode(), digest_size=ID_BYTES // 2).hexdigest()
        return f"{number:0{ID_BYTES}d}"

    def realm(self, batch: int) -> str:
        return f"load-{batch % self.realms}"

    def realm_names(self) -> list[str]:
        return [self.realm(number) for number in range(self.realms)]

    def job(self, number: int) -> str:
        """One job in JSON."""
        tags = ",".join(f'"tag-{tag}"' for tag in range(self.tags))
        data = f"{number:0{self.data_bytes - 2}d}"
        return f'{{"job_id":"{self.job_id(number)}","queue_id":0,"data":"{data}","tags":[{tags}]}}'

    def add(self, realm: str, numbers: range) -> bytes:
        """The bulk add of these jobs."""
        return request("POST", f"/{realm}/jobs", f'{{"jobs":[{",".join(map(self.job, numbers))}]}}'.encode())

    def adds(self) -> Iterator[RealmRequest]:
        for batch, first in enumerate(range(0, self.jobs, self.batch)):
            realm = self.realm(batch)
            yield realm, self.add(realm, range(first, min(first + self.batch, self.jobs)))

    def pulls(self) -> Iterator[RealmRequest]:
        for batch, first in enumerate(range(0, self.jobs, self.batch)):
            realm = self.realm(batch)
            count = min(self.batch, self.jobs - first)
            yield realm, request("POST", f"/{realm}/pull", b'{"count":%d}' % count)

    def removes(self, pulled: Iterable[tuple[str, list[str]]]) -> Iterator[RealmRequest]:
        for realm, job_ids in pulled:
            yield realm, request("DELETE", f"/{realm}/jobs", json.dumps({"jobs": job_ids}).encode())

    def check_pulled(self, pulled: Iterable[tuple[str, list[str]]]) -> None:
        """Each job came once, none is missing, none is a stranger."""
        found = [job_id for _, job_ids in pulled for job_id in job_ids]
        distinct = set(found)
        if len(found) != len(distinct):
            raise LoadError(f"{len(found) - len(distinct)} jobs were pulled twice within their lease")
        expected = {self.job_id(number) for number in range(self.jobs)}
        if distinct != expected:
            raise LoadError(
                f"{len(expected - distinct)} jobs were never pulled, {len(distinct - expected)} never added"
            )


def pulled_ids(reply: bytes) -> list[str]:
    """The ids of the jobs in a pull's reply."""
    return [job["job_id"] for job in json.loads(reply)["jobs"]]
