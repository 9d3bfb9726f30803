"""Power cuts, tried on a disk that is made of bytes: which files may be found after one.

`Disk` follows the calls that a program makes on the files of one directory. What is not synced may be lost, kept,
reordered or torn: of each sector of 512 bytes any state since the last sync may be found, of the length of the file
too, and what is within that length and was never written is zeros or anything. A file's name is safe once its directory
is synced. After a sync that failed the kernel shows what it did not write, and no later sync writes it: so Linux does
(https://wiki.postgresql.org/wiki/Fsync_Errors).
"""

from __future__ import annotations

import random
from typing import Any

SECTOR = 512
PAGE = 4096  # of the kernel's cache: what is dirty again is written whole
FATES = ("lost", "kept", "prefix", "one lost", "subset", "torn")

Files = dict[str, bytes]


class Inode:
    """The bytes of one file: those that are safe, and the calls since."""

    def __init__(self, content: bytes = b"") -> None:
        self.safe = bytearray(content)
        self.calls: list[tuple[int, bytes | None]] = []  # a write at an offset, or a truncation to a size
        self.doubtful: dict[int, list[bytes]] = {}  # sectors of a failed sync: what may stand there instead

    def sync(self) -> None:
        """All is safe, but for what an earlier sync failed to write and nobody wrote again."""
        for number, _ in self._touched(range(len(self.calls))):
            page = number * SECTOR // PAGE
            for sector in range(page * PAGE // SECTOR, (page + 1) * PAGE // SECTOR):
                self.doubtful.pop(sector, None)
        self.safe = self._after(len(self.calls))
        self.calls.clear()

    def sync_failed(self) -> None:
        """The kernel takes what is pending for written, which it may be or not."""
        for number, _ in self._touched(range(len(self.calls))):
            old = bytes(self.safe[number * SECTOR : (number + 1) * SECTOR])
            self.doubtful.setdefault(number, []).append(old.ljust(SECTOR, b"\0"))
        self.safe = self._after(len(self.calls))
        self.calls.clear()

    def _after(self, count: int) -> bytearray:
        content = bytearray(self.safe)
        for call in self.calls[:count]:
            _apply(content, call)
        return content

    def _touched(self, kept: Any) -> dict[int, int] | Any:
        """Pairs of a sector and the last of these calls that touched it."""
        found: dict[int, int] = {}
        for number in kept:
            offset, data = self.calls[number]
            end = offset + len(data) if data is not None else max(offset, len(self.safe))
            found.update(dict.fromkeys(range(offset // SECTOR, -(-end // SECTOR)), number))
        return found.items()

    def cut(self, chance: random.Random, fate: str) -> bytes:
        """What may be found of it after a power cut."""
        last = self._last_calls(chance, fate)
        content = bytearray(self.safe)
        sizes = [len(content)]
        found: dict[int, bytes] = {}
        for number, call in enumerate(self.calls):
            _apply(content, call)
            sizes.append(len(content))
            for sector in last.get(number, ()):
                found[sector] = bytes(content[sector * SECTOR : (sector + 1) * SECTOR])
        if fate == "lost":
            size = sizes[0]
        elif fate == "kept":
            size = sizes[-1]
        else:
            size = sizes[max(last, default=-1) + 1] if chance.random() < 0.6 else chance.choice(sizes)
        result = bytearray(self.safe)
        if max(sizes) > len(result):
            missing = max(sizes) - len(result)
            result += chance.randbytes(missing) if chance.random() < 0.3 else bytes(missing)
        for sector, data in [*self._doubts(chance, fate), *found.items()]:
            result[sector * SECTOR : sector * SECTOR + len(data)] = data
        return bytes(result[:size])

    def _last_calls(self, chance: random.Random, fate: str) -> dict[int, list[int]]:
        """Which call is the last that the sectors show: its number to those sectors."""
        count = len(self.calls)
        if fate == "kept":
            kept = self._touched(range(count))
        elif fate == "prefix":
            whole = chance.randint(0, count)
            kept = dict(self._touched(range(whole)))
            torn = self._touched(range(whole, min(count, whole + 1)))
            kept = {**kept, **{sector: number for sector, number in torn if chance.random() < 0.5}}.items()
        elif fate == "one lost":
            lost = chance.randrange(count) if count else -1
            kept = self._touched(number for number in range(count) if number != lost)
        elif fate == "subset":
            share = chance.random()
            kept = self._touched([number for number in range(count) if chance.random() < share])
        elif fate == "torn":
            by_sector: dict[int, list[int]] = {}
            for number in range(count):
                for sector, _ in self._touched((number,)):
                    by_sector.setdefault(sector, [-1]).append(number)
            kept = [(sector, chance.choice(numbers)) for sector, numbers in by_sector.items()]
        else:
            kept = ()
        last: dict[int, list[int]] = {}
        for sector, number in kept:
            last.setdefault(number, []).append(sector)
        return last

    def _doubts(self, chance: random.Random, fate: str) -> list[tuple[int, bytes]]:
        """Sectors that a failed sync did not write."""
        if fate == "kept":
            return []
        share = 1.0 if fate == "lost" else chance.random()
        return [(sector, chance.choice(old)) for sector, old in self.doubtful.items() if chance.random() < share]


def _apply(content: bytearray, call: tuple[int, bytes | None]) -> None:
    offset, data = call
    if data is None:
        del content[offset:]
        return
    if offset > len(content):
        content += bytes(offset - len(content))
    content[offset : offset + len(data)] = data


class Disk:
    """One directory: its names and its files, as far as they are safe."""

    def __init__(self, files: Files) -> None:
        self._names: dict[str, Inode] = {name: Inode(content) for name, content in files.items()}
        self._safe: dict[str, Inode] = dict(self._names)
        self._renamings: list[tuple[str, Inode | None]] = []  # not yet safe

    def follow(self, kind: str, name: str, *what: Any) -> None:
        """Note a call."""
        if kind == "create":
            self._names[name] = inode = Inode()
            self._renamings.append((name, inode))
        elif kind == "delete":
            del self._names[name]
            self._renamings.append((name, None))
        elif kind == "write":
            self._names[name].calls.append(what)  # type: ignore[arg-type]
        elif kind == "truncate":
            self._names[name].calls.append((what[0], None))
        elif kind == "sync":
            self._names[name].sync()
        elif kind == "sync failed":
            self._names[name].sync_failed()
        elif kind == "sync directory":
            self._safe = dict(self._names)
            self._renamings.clear()

    def cut(self, chance: random.Random, fate: str) -> Files:
        """The files that may be found after a power cut."""
        names: dict[str, Inode | None] = dict(self._safe)
        ends = {"lost": 0.0, "kept": 1.0}.get(fate, chance.random())
        settled: set[str] = set()
        for name, inode in self._renamings:
            if name not in settled and chance.random() < ends:
                names[name] = inode
            else:
                settled.add(name)  # those of one name happen in their order
        return {name: inode.cut(chance, fate) for name, inode in sorted(names.items()) if inode is not None}
