"""Bare Tornado that answers `{}` to restq's single add and keeps nothing: what a server on it could reach at most."""

from __future__ import annotations

import sys
from pathlib import Path

import tornado

from bench.peers.daemon import HOST, Daemon, free_port, listens
from bench.peers.peer import Client, Op, Peer
from bench.peers.restq_server import RawRestq

ROOT = Path(__file__).resolve().parents[2]


class Tornado(Peer):
    """By `HTTPMessageDelegate`."""

    name = "tornado"
    client = "raw HTTP"
    promise = "keeps nothing"
    team = "wire"
    kind = "delegate"

    def start(self, folder: Path) -> None:
        port = free_port()
        command = [sys.executable, "-m", "bench.peers.answering", self.kind, str(port)]
        self.daemon = Daemon(command, folder, lambda: listens(port), python_path=ROOT)
        self._address = (HOST, port)

    def connect(self, index: int) -> Client:
        return Asking(RawRestq(self._address, ["bench-0"]))

    def left(self) -> int | None:
        return None

    def version(self) -> str:
        return f"tornado {tornado.version}"


class TornadoHandler(Tornado):
    """By `RequestHandler`."""

    name = "tornado-handler"
    kind = "handler"


class Asking(Client):
    """restq's single add and nothing else: the bytes that go over the wire are the same."""

    def __init__(self, asking: RawRestq) -> None:
        self.address = asking.address
        self.replies = asking.replies
        self._asking = asking

    def add(self, number: int, data_bytes: int) -> Op[None]:
        yield from self._asking.add(number, data_bytes)
