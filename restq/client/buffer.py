"""Jobs that wait to be added together, encoded as they came. No requests are made here."""

from __future__ import annotations

import json
from typing import Any

from restq.client.call import encoded

JOBS_MAX = 1000
BYTES_MAX = 1024 * 1024


class Buffer:
    """Jobs of one realm in the order of their adding. Not safe to share between threads."""

    def __init__(self) -> None:
        self._jobs: list[bytes] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_full(self) -> bool:
        """Whether it is time to send: so many jobs, or so many bytes, cost the server little as one."""
        return len(self._jobs) >= JOBS_MAX or self._bytes >= BYTES_MAX

    def append(self, job: dict[str, Any]) -> None:
        """Keep the job as it is now: what is done to its data later changes nothing."""
        content = encoded(job)
        self._jobs.append(content)
        self._bytes += len(content)

    def content(self) -> bytes:
        """The body that adds all of them."""
        return b'{"jobs": [' + b", ".join(self._jobs) + b"]}"

    def jobs(self) -> list[dict[str, Any]]:
        """All of them, as they were when they were kept."""
        return [json.loads(job) for job in self._jobs]

    def clear(self) -> None:
        """Forget all of them."""
        self._jobs.clear()
        self._bytes = 0
