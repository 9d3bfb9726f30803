"""The log (`-wal`) of an SQLite file, looked at before SQLite opens it: whether it is whole, torn, or damaged.

SQLite takes from the log what is valid up to the first frame that is not, and is silent about the rest. That is right
for a tail that a power cut tore, and wrong for a bit that flipped in the middle: all commits after it would be gone.
What tells them apart: each commit is synced before the next one begins. So where a frame of a later transaction follows
a bad one, the bad one had been synced, and was changed afterwards. The frames of the last transaction alone may have
come to the disk in any order. What follows with other salts is left from before the log was begun anew.

The format: https://www.sqlite.org/fileformat2.html#walformat. A checksum goes on from that of the frame before; as that
one stands in its frame, each frame can be verified alone, and so many at once. Over the 32-bit words x of a frame it is
t[k] = t[k-1] + t[k-2] + x[k] mod 2**32, and the last two t are it. In Python a step costs 100 ns, a frame 100 us. So
the frames of a block are summed side by side, each in a lane of 64 bits of one large integer: 10 us a frame, 40 ms for
a log of 16 MiB.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

LITTLE, BIG = 0x377F0682, 0x377F0683  # magic numbers: the byte order of the words that the checksums are over
VERSION = 3007000
HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
BLOCK_FRAMES = 256
SECTOR_BYTES = 512  # a disk writes it whole or not

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")

Sums = tuple[int, int]


class Frame(NamedTuple):
    """The header of a frame, as it stands there."""

    page: int
    database_pages: int  # of a commit, after it; 0: the transaction goes on
    salts: Sums
    sums: Sums


class Wal(NamedTuple):
    """What was found: so many frames with the salts of the header, and so many of them in whole commits.

    `damage` is a sentence, if it is damaged; `bad_frame` is then the first that is, from 1, or 0 for the header.
    """

    frames: int = 0
    committed: int = 0
    good_bytes: int = 0  # up to the end of the last commit that SQLite will see
    bad_frame: int = 0
    damage: str = ""


def scan(path: Path) -> Wal:
    """Look at a log, which need not exist. Nobody may write it meanwhile. Raises OSError."""
    try:
        with path.open("rb") as file:
            return _scan(file)
    except FileNotFoundError:
        return Wal()


def _scan(file: BinaryIO) -> Wal:
    head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        return Wal()
    magic, version, page_bytes, _, *rest = _HEADER.unpack(head)
    order = "little" if magic == LITTLE else "big"
    salts, sums = (rest[0], rest[1]), (rest[2], rest[3])
    is_sound = magic in (LITTLE, BIG) and version == VERSION and _is_page_size(page_bytes)
    if not is_sound or checksum(head[:24], (0, 0), order) != sums:
        return _without_header(file, head)
    return _Judge(salts, FRAME_HEADER_BYTES + page_bytes).judge(_frames(file, page_bytes, order, sums, salts))


def _is_page_size(size: int) -> bool:
    return 512 <= size <= 65536 and size & (size - 1) == 0


class _Judge:
    """Follows the frames of a log: which count, and whether one that does not is a torn tail or damage."""

    def __init__(self, salts: Sums, frame_bytes: int) -> None:
        self._salts = salts
        self._frame_bytes = frame_bytes

    def judge(self, frames: Iterator[tuple[Frame, bool, int]]) -> Wal:
        count = committed = bad = good_bytes = 0
        is_over = False  # the transaction of the last frame, if that one is bad or follows a bad one
        for number, (frame, is_valid, end) in enumerate(frames, 1):
            has_salts = frame.salts == self._salts
            count += has_salts
            if bad:
                if is_valid and is_over:
                    return self._damaged(count, committed, good_bytes, bad, number)
                is_over = self._ends(frame, end)
            elif not is_valid:
                bad, is_over = number, self._ends(frame, end)
            elif frame.database_pages:
                committed, good_bytes = number, end
        return Wal(count, committed, good_bytes)

    def _ends(self, frame: Frame, end: int) -> bool:
        """Whether a frame says of itself that it ends a transaction; of what was left from before both salts differ.

        Where a sector ends between the two, one may be from before and the other not: then it is not known.
        """
        if (end - self._frame_bytes + 8) % SECTOR_BYTES == 0:
            return False
        is_of_this_log = frame.salts[0] == self._salts[0] or frame.salts[1] == self._salts[1]
        return frame.database_pages > 0 and is_of_this_log

    def _damaged(self, count: int, committed: int, good_bytes: int, bad: int, later: int) -> Wal:
        damage = f"frame {bad} is not what was written, and frame {later} is of a later commit"
        return Wal(count, committed, good_bytes, bad, damage)


def _frames(file: BinaryIO, page_bytes: int, order: str, sums: Sums, salts: Sums) -> Iterator[tuple[Frame, bool, int]]:
    """Each frame with whether it is valid after the one before, and where it ends."""
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    end = HEADER_BYTES
    computed = sums  # what the checksum of the frame before should be, where that one was not valid
    while block := file.read(BLOCK_FRAMES * frame_bytes):
        count = len(block) // frame_bytes
        block = block[: count * frame_bytes]
        found = [_frame(block, number * frame_bytes) for number in range(count)]
        seeds = [sums, *(frame.sums for frame in found[:-1])]
        if not any(frame.salts == salts for frame in found):
            summed = [(-1, -1)] * count
        else:
            summed = _sums(block, frame_bytes, seeds, order)
        for number, frame in enumerate(found):
            end += frame_bytes
            has_salts = frame.salts == salts and frame.page > 0
            is_valid = has_salts and summed[number] == frame.sums
            if has_salts and not is_valid and computed != seeds[number]:
                # The checksum of the frame before may be what is damaged.
                content = _content(block, number * frame_bytes, frame_bytes)
                is_valid = checksum(content, computed, order) == frame.sums
            computed = frame.sums if is_valid else summed[number]
            yield frame, is_valid, end
        if count:
            sums = found[-1].sums


def _frame(block: bytes, start: int) -> Frame:
    page, database_pages, *rest = _FRAME.unpack_from(block, start)
    return Frame(page, database_pages, (rest[0], rest[1]), (rest[2], rest[3]))


def _content(block: bytes, start: int, frame_bytes: int) -> bytes:
    """What the checksum of a frame is over: the first half of its header less the salts, and the page."""
    return block[start : start + 8] + block[start + FRAME_HEADER_BYTES : start + frame_bytes]


def _sums(block: bytes, frame_bytes: int, seeds: list[Sums], order: str) -> list[Sums]:
    """The checksum of each frame of a block, after its seed."""
    words = array("I", block)
    if order != sys.byteorder:
        words.byteswap()
    if sys.byteorder == "big":  # the first word of two is the lower half of a lane
        words[0::2], words[1::2] = words[1::2], words[0::2]
    pairs = array("Q", words.tobytes())
    count, stride = len(seeds), frame_bytes // 8
    low = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * count, "little")
    first = int.from_bytes(b"".join(seed[0].to_bytes(8, "little") for seed in seeds), "little")
    second = int.from_bytes(b"".join(seed[1].to_bytes(8, "little") for seed in seeds), "little")
    for place in (0, *range(FRAME_HEADER_BYTES // 8, stride)):
        lanes = int.from_bytes(pairs[place::stride].tobytes(), sys.byteorder)
        first = (first + second + (lanes & low)) & low
        second = (second + first + (lanes >> 32 & low)) & low
    sums = (array("Q", lanes.to_bytes(count * 8, "little")) for lanes in (first, second))
    return list(zip(*sums, strict=True))


def checksum(content: bytes, seed: Sums, order: str) -> Sums:
    """SQLite's checksum over words of 32 bits in that byte order, going on from `seed`."""
    first, second = seed
    words = struct.unpack(f"{'<' if order == 'little' else '>'}{len(content) // 4}I", content)
    for number in range(0, len(words), 2):
        first = (first + words[number] + second) & 0xFFFFFFFF
        second = (second + words[number + 1] + first) & 0xFFFFFFFF
    return first, second


def _without_header(file: BinaryIO, head: bytes) -> Wal:
    """Of a log whose header is wrong SQLite reads nothing. It is synced before a frame follows, so none may follow.

    What is wrong with the header is not known; so the frames are looked for in every size and byte order.
    """
    *_, first, second = _HEADER.unpack(head)
    rest = file.read(2 * (FRAME_HEADER_BYTES + 65536))
    for page_bytes in (512 << power for power in range(8)):
        frame_bytes = FRAME_HEADER_BYTES + page_bytes
        if len(rest) < frame_bytes:
            break
        frames = [_frame(rest, start) for start in range(0, len(rest) - frame_bytes + 1, frame_bytes)][:2]
        for order in ("little", "big"):
            seeds = [(first, second), checksum(head[:24], (0, 0), order)]
            for frame, start in zip(frames, (0, frame_bytes), strict=False):
                content = _content(rest, start, frame_bytes)
                if frame.page and any(checksum(content, seed, order) == frame.sums for seed in seeds):
                    return Wal(damage="its header is not what was written, and commits follow it")
                seeds = [frame.sums]
    return Wal()
