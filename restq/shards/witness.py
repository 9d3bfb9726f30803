"""What the last commit of a shard was, told by another file than the one that may have lost it.

A log that was cut short looks like one that was never longer, and a database that was emptied like a new one. So after
each commit its number is noted here, in place and without a sync: a process that dies does not take it along, and after
a power cut it may be behind, never ahead, as the commit it tells of was synced before. Where it is missing or is not
what was written, it claims nothing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from zlib import crc32


class Witness:
    """The note beside a database. Nothing depends on its being written: what fails is left."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_suffix(".witness")
        self._file: int | None = None

    def claims(self) -> int:
        """The number of a commit that was done for certain; 0 if nothing is known."""
        with contextlib.suppress(OSError, ValueError):
            number, check = self.path.read_text(encoding="ascii").split()
            if _note(int(number)).split()[1].decode() == check:
                return int(number)
        return 0

    def is_readable(self) -> bool:
        """Whether it is missing, or says something."""
        return not self.path.exists() or self.claims() > 0

    def note(self, number: int) -> None:
        """This commit is done."""
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, _note(number), 0)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _note(number: int) -> bytes:
    text = b"%020d" % number
    return text + b" %08x\n" % crc32(text)
