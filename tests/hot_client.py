"""A client that sends bulk adds of 1 MiB to one realm without pause, until its standard input ends.

A process of its own, run as `python hot_client.py PORT REALM`; in the end it prints how many were answered.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading

JOBS_COUNT = 1_000
DATA_BYTES = 950


def bulk() -> bytes:
    """A body that replaces the same jobs each time: the realm does not grow."""
    jobs = [
        {"job_id": f"j{number}", "queue_id": 0, "data": "x" * DATA_BYTES, "on_conflict": "replace"}
        for number in range(JOBS_COUNT)
    ]
    return json.dumps({"jobs": jobs}).encode()


def main(port: int, realm: str) -> None:
    """Send until told to end."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body, count = bulk(), 0
    while not ended.is_set():
        connection.request("POST", f"/{realm}/jobs", body)
        with connection.getresponse() as response:
            response.read()
            count += response.status == 200
    connection.close()
    print(count)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
