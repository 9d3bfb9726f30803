"""The scan of a log, against logs that SQLite itself wrote, and what it takes from them after they were changed."""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from longrun import seeds

from restq.shards.wal import BIG, FRAME_HEADER_BYTES, HEADER_BYTES, checksum, scan

PAGE_BYTES = 1024
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES
COMMITS = 12


class Log:
    """A database of one table whose log holds `COMMITS` commits: as it is left by a process that is killed."""

    def __init__(
        self, path: Path, page_bytes: int = PAGE_BYTES, first: Callable[[sqlite3.Connection], None] | None = None
    ):
        self.path, self.log = path, Path(f"{path}-wal")
        writer = path.with_name("writer.sqlite")
        database = sqlite3.connect(writer, isolation_level=None)
        database.execute(f"PRAGMA page_size = {page_bytes}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text)")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if first is not None:
            first(database)
        self.ends = []  # of the log, after each commit
        log = Path(f"{writer}-wal")
        frame_bytes = FRAME_HEADER_BYTES + page_bytes
        for number in range(COMMITS):
            text = random.Random(number).randbytes(300 + 900 * (number % 3))
            database.execute("INSERT INTO t VALUES (?, ?)", (number, text))
            frames = scan(log).committed
            self.ends.append(HEADER_BYTES + frames * frame_bytes)
        shutil.copy(writer, path)
        shutil.copy(log, self.log)
        database.close()
        self.written = self.log.read_bytes()

    def read(self) -> int:
        """How many commits SQLite takes from the log. It empties it, so this is for the end."""
        database = sqlite3.connect(self.path)
        numbers = [number for (number,) in database.execute("SELECT number FROM t ORDER BY number")]
        database.close()
        assert numbers == list(range(len(numbers)))
        return len(numbers)

    def change(self, at: int, content: bytes) -> None:
        self.log.write_bytes(self.written[:at] + content + self.written[at + len(content) :])

    def flip(self, bit: int) -> None:
        self.change(bit // 8, bytes([self.written[bit // 8] ^ 1 << bit % 8]))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "killed.sqlite")


@pytest.mark.parametrize("page_bytes", [512, 1024, 4096, 65536])
def test_scan_of_log_that_was_left_finds_every_frame(tmp_path: Path, page_bytes: int) -> None:
    log = Log(tmp_path / "killed.sqlite", page_bytes)
    found = scan(log.log)
    frames = (len(log.written) - HEADER_BYTES) // (FRAME_HEADER_BYTES + page_bytes)
    assert (found.frames, found.committed, found.good_bytes, found.damage) == (frames, frames, len(log.written), "")
    assert log.read() == COMMITS


def test_scan_of_log_with_many_blocks_finds_every_frame(tmp_path: Path) -> None:
    def fill(database: sqlite3.Connection) -> None:
        database.execute("CREATE TABLE more (data)")
        database.execute("INSERT INTO more VALUES (zeroblob(2000000))")

    log = Log(tmp_path / "killed.sqlite", first=fill)
    assert scan(log.log).committed > 1900
    log.flip((HEADER_BYTES + 1499 * FRAME_BYTES + 500) * 8)
    assert scan(log.log).bad_frame == 1500


def test_scan_of_missing_or_empty_log_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for content in (None, b"", b"\0" * 31, b"\0" * 5000, random.Random(1).randbytes(9000)):
        if content is not None:
            path.write_bytes(content)
        assert scan(path).frames == 0
        assert not scan(path).damage


def test_scan_of_log_in_the_other_byte_order_finds_every_frame(log: Log) -> None:
    """As a machine of the other kind writes it; SQLite reads both."""
    content = bytearray(log.written)
    struct.pack_into(">I", content, 0, BIG)
    sums = checksum(bytes(content[:24]), (0, 0), "big")
    struct.pack_into(">2I", content, 24, *sums)
    for start in range(HEADER_BYTES, len(content), FRAME_BYTES):
        summed = content[start : start + 8] + content[start + FRAME_HEADER_BYTES : start + FRAME_BYTES]
        sums = checksum(bytes(summed), sums, "big")
        struct.pack_into(">2I", content, start + 16, *sums)
    log.log.write_bytes(content)
    assert scan(log.log).good_bytes == len(content)
    content[HEADER_BYTES + 100] ^= 1
    log.log.write_bytes(content)
    assert scan(log.log).damage
    content[HEADER_BYTES + 100] ^= 1
    log.log.write_bytes(content)
    assert log.read() == COMMITS


def test_scan_of_log_that_was_begun_anew_leaves_what_was_before(tmp_path: Path) -> None:
    """After a checkpoint SQLite writes from the beginning, with other salts; what is not overwritten yet stays."""

    def fill(database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO t VALUES (-1, zeroblob(200000))")
        database.execute("DELETE FROM t")
        database.execute("PRAGMA wal_checkpoint(RESTART)")

    log = Log(tmp_path / "killed.sqlite", first=fill)
    assert log.ends[-1] < len(log.written)
    found = scan(log.log)
    assert (found.good_bytes, found.damage) == (log.ends[-1], "")
    # Its last commit torn: still no later one of its own follows.
    log.change(log.ends[-1] - 600, b"\0" * 600)
    assert (scan(log.log).good_bytes, scan(log.log).damage) == (log.ends[-2], "")
    log.change(log.ends[3] - 600, b"\0" * 600)
    assert scan(log.log).damage
    log.change(0, log.written)
    assert log.read() == COMMITS


@pytest.mark.parametrize("back", [1, 23, 24, 600, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1])
def test_scan_of_log_that_ends_within_the_last_commit_finds_a_torn_tail(log: Log, back: int) -> None:
    log.log.write_bytes(log.written[:-back])
    assert (scan(log.log).good_bytes, scan(log.log).damage) == (log.ends[-2], "")
    assert log.read() == COMMITS - 1


def test_scan_of_log_whose_last_commit_came_to_the_disk_in_part_finds_a_torn_tail(log: Log) -> None:
    """A power cut may keep any of its sectors from the disk: the last frame may be there and the first one not."""
    start = log.ends[-2]
    frames = (log.ends[-1] - start) // FRAME_BYTES
    assert frames > 1
    for frame in range(frames):
        for left in (
            b"\0" * FRAME_BYTES,
            random.Random(2).randbytes(FRAME_BYTES),
            log.written[HEADER_BYTES:][:FRAME_BYTES],
        ):
            log.change(start + frame * FRAME_BYTES, left)
            assert (scan(log.log).good_bytes, scan(log.log).damage) == (start, "")
    assert log.read() == COMMITS - 1


def test_scan_of_log_with_a_bad_frame_before_the_last_commit_names_it(log: Log) -> None:
    for commit, (start, end) in enumerate(zip([HEADER_BYTES, *log.ends[:-2]], log.ends[:-1], strict=True)):
        for frame in range(start, end, FRAME_BYTES):
            log.change(frame + FRAME_HEADER_BYTES + 77, b"?!")
            found = scan(log.log)
            assert found.bad_frame == (frame - HEADER_BYTES) // FRAME_BYTES + 1
            assert found.good_bytes == (start if commit else 0)
            assert f"frame {found.bad_frame} is not what was written" in found.damage
    log.flip((HEADER_BYTES + 500) * 8)
    assert log.read() == 0, "SQLite says nothing and takes what stands before"


def test_scan_of_log_with_a_changed_header_is_damage(log: Log) -> None:
    for bit in range(HEADER_BYTES * 8):
        log.flip(bit)
        assert scan(log.log).damage, f"bit {bit}"
    assert log.read() == 0, "SQLite says nothing and takes nothing"


def test_scan_after_any_flipped_bit_finds_it_or_sqlite_takes_all_but_the_last_commit(log: Log, tmp_path: Path) -> None:
    found_count = 0
    trials = seeds(150, 10_000)
    for seed in trials:
        bit = random.Random(seed).randrange(len(log.written) * 8)
        log.flip(bit)
        if scan(log.log).damage:
            found_count += 1
            continue
        copy = tmp_path / "copy.sqlite"
        database = log.path.read_bytes()
        copy.write_bytes(database)
        (tmp_path / "copy.sqlite-wal").write_bytes(log.log.read_bytes())
        opened = sqlite3.connect(copy)
        (count,) = opened.execute("SELECT count(*) FROM t").fetchone()
        opened.close()
        assert count >= COMMITS - 1, f"RESTQ_SEED={seed}: bit {bit}"
    print(f"{found_count} of {len(trials)} found")
    assert found_count
