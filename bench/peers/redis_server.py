"""Redis as the store of a task queue: every write is in its file and synced before it is answered."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import redis

from bench.peers.daemon import HOST, Daemon, free_port, listens
from bench.peers.peer import Peer


class OnRedis(Peer):
    """What peers on Redis have in common: the server."""

    promise = "synced before the answer"
    team = "threads"
    processes_max = 4
    workers_max = 4

    def start(self, folder: Path) -> None:
        self.port = free_port()
        command = ["redis-server", "--bind", HOST, "--port", str(self.port), "--dir", str(folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.daemon = Daemon(command, folder, lambda: listens(self.port))

    def redis(self) -> Any:
        """A client of the server."""
        return redis.Redis(HOST, self.port)

    def version(self) -> str:
        said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        return f"Redis {said.split('v=')[1].split()[0]}"
