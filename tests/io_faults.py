"""Errors of the disk in a shard's process, at a call of a test's choice. Two ways lead there.

`planted` has the process load this module as it starts: its SQLite then runs over `recorded_vfs`, which needs no right
and no tool. `strace` has the system call itself fail. Both name the call by its kind, and fail the k-th from then on
and some after it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from recorded_vfs import IOERR_FSYNC, IOERR_TRUNCATE, IOERR_WRITE, SQLITE_FULL, SQLITE_OK, Call, RecordedVfs

FOLDER = "FAULTS_FOLDER"
SITE = """
import os, sys
if "restq.shards.process" in sys.orig_argv:
    import io_faults
    io_faults.plant()
"""
KINDS = {"sync": "fdatasync", "write": "pwrite64", "truncate": "ftruncate"}
_EIO = {"sync": IOERR_FSYNC, "write": IOERR_WRITE, "truncate": IOERR_TRUNCATE}


class Planted:
    """Faults by way of a file that the shard looks for at each call: whose, which, after how many, and how many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "sitecustomize.py").write_text(SITE)

    def environment(self) -> dict[str, str]:
        """What the server needs to have."""
        path = os.pathsep.join((str(self._folder), os.path.dirname(__file__), os.environ["PYTHONPATH"]))
        return {"PYTHONPATH": path, FOLDER: str(self._folder)}

    def inject(self, shard: int, pid: int, kind: str, error: str, after: int, count: int) -> None:
        """Have this call fail, the `after`-th from now on and the next ones."""
        full = error == "ENOSPC" and kind == "write"
        code = SQLITE_FULL if full else _EIO[kind]
        (self._folder / "fired").unlink(missing_ok=True)
        (self._folder / "new").write_text(f"shard-{shard:04d} {kind} {code} {after} {count}")
        (self._folder / "new").rename(self._folder / "fault")

    def fired(self) -> bool:
        """Whether it did."""
        return (self._folder / "fired").exists()

    def heal(self) -> None:
        """No more of it."""
        (self._folder / "fault").unlink(missing_ok=True)


_planted: list[RecordedVfs] = []  # SQLite holds pointers into it


def plant() -> None:
    """In the process of a shard, before it opens its file."""
    folder = Path(os.environ[FOLDER])
    fault: list[str] = []
    left = [0, 0]

    def called(call: Call) -> int:
        kind, path = call[:2]
        try:
            found = (folder / "fault").read_text().split()
        except FileNotFoundError:
            return SQLITE_OK
        name, failing, code, after, count = found
        if found != fault:
            fault[:] = found
            left[:] = int(after), int(count)
        if kind != failing or f"/{name}.sqlite" not in path:
            return SQLITE_OK
        left[0] -= 1
        if left[0] > 0:
            return SQLITE_OK
        (folder / "fired").touch()
        left[1] -= 1
        if left[1] == 0:
            (folder / "fault").unlink(missing_ok=True)
        return int(code)

    vfs = RecordedVfs(called)
    vfs.start()
    _planted.append(vfs)


class Strace:
    """Faults of system calls, by strace."""

    def __init__(self, folder: Path) -> None:
        self._trace = folder / "trace"
        self._strace: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """Nothing is needed."""
        return {}

    def inject(self, shard: int, pid: int, kind: str, error: str, after: int, count: int) -> None:
        """Have this system call of the process fail, the `after`-th from now on and the next ones."""
        self.heal()
        call = KINDS[kind]
        what = f"inject={call}:error={error}:when={after}..{after + count - 1}"
        self._trace.unlink(missing_ok=True)
        options = ["-f", "-p", str(pid), "-o", str(self._trace), "-e", f"trace={call}", "-e", what]
        self._strace = subprocess.Popen(["strace", *options], stderr=subprocess.PIPE)
        assert self._strace.stderr is not None
        line = self._strace.stderr.readline()
        assert b"attached" in line, line

    def fired(self) -> bool:
        """Whether it did."""
        with contextlib.suppress(FileNotFoundError):
            return "(INJECTED)" in self._trace.read_text()
        return False

    def heal(self) -> None:
        """No more of it."""
        if self._strace is not None:
            self._strace.terminate()
            self._strace.communicate()
            self._strace = None
