"""How much memory a process may still take: of the machine, of its container, of its own limits. Linux says so."""

from __future__ import annotations

import math
import resource
from pathlib import Path

LEFT_BYTES_MIN = 64 << 20  # with less there is too little left
LEFT_SHARE = 32  # or with less than this part of all
OWN_BYTES = 48 << 20  # that a shard takes without any job
PAGE_BYTES = resource.getpagesize()

_GROUPS = Path("/sys/fs/cgroup")


def for_jobs() -> float:
    """How many bytes the jobs of this process may take: infinity, or what it has by now once too little is left."""
    for left, total in (_of_machine(), _of_container(), *_of_process()):
        if left < max(LEFT_BYTES_MIN, total / LEFT_SHARE):
            return max(0, _resident() - OWN_BYTES)
    return math.inf


def total() -> float:
    """How many bytes there are in all for this process and those beside it: of the machine, or of its container."""
    return min(all_of_it or math.inf for _, all_of_it in (_of_machine(), _of_container(), *_of_process()))


def _of_machine() -> tuple[float, float]:
    """What is left of the machine's memory, and all of it."""
    found = _numbers(_text(Path("/proc/meminfo")))
    return found.get("MemAvailable:", math.inf) * 1024, found.get("MemTotal:", 0) * 1024


def _of_container() -> tuple[float, float]:
    """What is left of what a control group may take, and all of it; files that are only cached can go."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            for folder in (_GROUPS / controllers / path.lstrip("/"), _GROUPS / controllers):
                most = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
                used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
                if most.strip().isdecimal() and used:
                    cached = _numbers(_text(folder / "memory.stat")).get("inactive_file", 0)
                    return int(most) - int(used) + cached, int(most)
    return math.inf, 0


def _of_process() -> list[tuple[float, float]]:
    """What is left of what this process may take by its own limits, and all of it."""
    status = _numbers(_text(Path("/proc/self/status")))
    found: list[tuple[float, float]] = []
    for limit, name in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            found.append((most - status.get(name, 0) * 1024, most))
    return found


def _resident() -> int:
    numbers = _text(Path("/proc/self/statm")).split()
    return int(numbers[1]) * PAGE_BYTES if numbers else 0


def _text(path: Path) -> str:
    """What a file says; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _numbers(text: str) -> dict[str, int]:
    """The first number of each line, by its first word."""
    words = (line.split() for line in text.splitlines())
    return {found[0]: int(found[1]) for found in words if len(found) > 1 and found[1].isdecimal()}
