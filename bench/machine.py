"""What a measurement ran on: without it, a number says little."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import restq

LIBRARIES = ("tornado", "msgpack", "msgspec", "uvloop")
SYNCS = 50


def facts(data_root: Path | None) -> dict[str, str]:
    """Name and value of what matters, in the order in which to show it."""
    with tempfile.TemporaryDirectory(prefix="restq-bench-", dir=data_root) as folder:
        return _facts(Path(folder))


def _facts(data_dir: Path) -> dict[str, str]:
    libraries = [f"{name} {version(name)}" for name in LIBRARIES]
    return {
        "cpu": f"{_first(Path('/proc/cpuinfo'), 'model name')}, {len(os.sched_getaffinity(0))} cores",
        "memory": _first(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join([f"restq {restq.__version__}", *libraries, f"sqlite {sqlite3.sqlite_version}"]),
        "data directory": f"{_filesystem(data_dir)}, one 4 KiB write and its sync: {_sync_ms(data_dir):.2f} ms",
    }


def version(library: str) -> str:
    """Of a library that is installed, or that it is absent."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def _first(file: Path, name: str) -> str:
    """The value of the first line `name: value`."""
    found = re.search(rf"^{name}\s*: *(.+)$", file.read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _filesystem(directory: Path) -> str:
    """Type and options of the file system that holds the directory."""
    path, best, shown = str(directory.resolve()), "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, shown = point, f"{kind} ({options})"
    return shown


def _sync_ms(directory: Path) -> float:
    """Median time that the disk takes to make 4 KiB durable: the floor of every durable reply."""
    took = []
    file = directory / "sync-probe"
    with file.open("wb", buffering=0) as probe:
        for _ in range(SYNCS):
            started = time.perf_counter()
            probe.write(bytes(4096))
            os.fdatasync(probe.fileno())
            took.append(time.perf_counter() - started)
    file.unlink()
    return statistics.median(took) * 1e3
