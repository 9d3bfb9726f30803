"""No power cut loses what was answered: files as one may leave them, by the hundred, and a start on each.

RESTQ_TEST_LONG=1 tries a hundred thousand. RESTQ_SEED and RESTQ_TRIALS (states) try others.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import ROOT
from longrun import LONG, trials
from powercut import FATES, SECTOR, Disk, Files
from recorded_vfs import IOERR_WRITE, library, recorded
from store_life import Workload, contents

from restq.shards import schema, sqlite_store
from restq.shards.sqlite_store import SqliteStore

pytestmark = pytest.mark.skipif(library() is None, reason="this Python holds its SQLite where ctypes can't reach it")

SESSIONS = 6
COMMITS = 8  # at most, in one session
CUTS = 0.1 if LONG else 0.03  # states after each call, on average: many lives show more than many cuts of one
FIRST_SEED = int(os.environ.get("RESTQ_SEED", "1"))


@pytest.fixture(autouse=True)
def _time() -> None:
    """The long run takes longer than a test that hangs may."""
    if LONG:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def folder() -> Iterator[Path]:
    """A directory in memory, where there is one: what is cut here never needs the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


def live(seed: int, cuts: float = CUTS, **options: Any) -> Workload:
    with folder() as path:
        return Workload(seed, path, cuts, **options).run(SESSIONS, COMMITS)


def live_through(states: int, **options: Any) -> Counter[str]:
    """Lives of seeds that follow each other, until so many different states were tried; fails at the first problem."""
    counts: Counter[str] = Counter()
    for seed in itertools.count(FIRST_SEED):
        workload = live(seed, **options)
        assert not workload.problems, f"RESTQ_SEED={seed}: {workload.problems[:5]}"
        counts += workload.counts
        if counts["different states"] >= states:
            print(f"seeds {FIRST_SEED} to {seed}: {dict(counts)}")
            return counts
    raise AssertionError("never")


def first_problem(seeds: int, **options: Any) -> str:
    """What is found with a planted fault."""
    for seed in range(1, seeds + 1):
        if problems := live(seed, **options).problems:
            return problems[0]
    return ""


# -- the store -------------------------------------------------------------------------------------------------------


def test_cut_power_after_any_call_loses_nothing_that_was_answered() -> None:
    counts = live_through(trials(250, 80_000))
    for kind in ("commits", "kills in a call", "sync", "sync directory", "truncate", "create", "delete"):
        assert counts[kind], f"no {kind} among {counts}"


def test_cut_power_after_errors_of_the_disk_loses_nothing_that_was_answered() -> None:
    counts = live_through(trials(100, 20_000), failing=("sync", "write", ""))
    for kind in ("failed syncs", "full", "kills in a call"):
        assert counts[kind], f"no {kind} among {counts}"


def test_cut_power_after_errors_of_the_disk_at_a_start_loses_nothing_that_was_answered() -> None:
    counts = live_through(trials(100, 10_000), failing=("open", "open", "sync", ""))
    assert counts["failed syncs"], counts


def test_cut_power_while_a_file_is_brought_up_to_date_leaves_it_whole() -> None:
    """From format 1: all rows are there after a start, and none twice."""
    files = old_files()
    with folder() as path:
        (path / "shard.sqlite").write_bytes(files["shard.sqlite"])
        store = SqliteStore(path / "shard.sqlite")
        expected = contents(store)
        store.close()
    assert len(expected[5]) == 300
    for seed in range(FIRST_SEED, FIRST_SEED + trials(2, 100)):
        with folder() as path:
            workload = Workload(seed, path, 1.0, files=files, first=expected).run(3, 0)
        assert not workload.problems, f"RESTQ_SEED={seed}: {workload.problems[:5]}"
        assert workload.counts["different states"]


def old_files() -> Files:
    with folder() as path:
        database = sqlite3.connect(path / "shard.sqlite")
        database.executescript(schema.MIGRATIONS[1])
        database.execute("INSERT INTO realms VALUES (1, 'r', 600.0, 1, 0, NULL)")
        database.execute("INSERT INTO queues VALUES (2, 1, 'q', 0.0)")
        for key in range(3, 303):
            database.execute("INSERT INTO jobs VALUES (?, 1, ?, '[]', '', '', 0)", (key, f"job {key}"))
            database.execute("INSERT INTO places VALUES (?, ?, 2, 1.0, 0.0, 0)", (key, key))
        database.execute("UPDATE mark SET next_key = 303")
        database.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        database.execute("PRAGMA user_version = 1")
        database.execute("PRAGMA journal_mode = WAL")
        database.commit()
        database.close()
        return {"shard.sqlite": (path / "shard.sqlite").read_bytes()}


# -- that these tests find what they look for ------------------------------------------------------------------------


def test_cut_power_with_commits_that_are_not_synced_is_found_to_lose_them() -> None:
    assert "lost" in first_problem(10, pragma="PRAGMA synchronous = NORMAL")


def test_cut_power_without_any_sync_is_found_to_damage() -> None:
    assert first_problem(10, pragma="PRAGMA synchronous = OFF")


def test_cut_power_with_a_log_that_only_the_kernel_knows_is_found_to_leave_a_gap() -> None:
    """The commits after the gap are lost, or the start says that the log is damaged."""
    with mock.patch.object(sqlite_store, "_write_log_again"):
        assert first_problem(40, failing=("sync",))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_calls_that_are_noted_are_those_that_the_system_sees(tmp_path: Path) -> None:
    """The same group, once with each: the same calls, of the same sizes at the same places, in the same order."""
    script = tmp_path / "commit.py"
    script.write_text(COMMIT)
    trace = tmp_path / "trace"
    calls = "trace=pwrite64,ftruncate,fdatasync,fsync,unlink"
    strace = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", calls]
    run = subprocess.run(
        [*strace, sys.executable, str(script), str(tmp_path / "seen")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "PTRACE" in run.stderr:
        pytest.skip(f"nothing may be traced here: {run.stderr}")
    assert run.returncode == 0, run.stderr
    noted = run.stdout.split("\n")[:-1]
    seen = [words for line in trace.read_text().splitlines() if (words := seen_call(line))]
    assert noted == seen
    assert {line.split()[0] for line in noted} == {"write", "sync", "directory", "truncate", "delete"}


COMMIT = """
import asyncio, os, pathlib, sys
from recorded_vfs import recorded
from restq.shards.changes import Changes
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Mark

def note(call):
    kind, path, *what = call
    if kind == "write":
        what = [len(what[1]), what[0]]
    if kind == "sync directory":
        kind, path = "directory", os.path.dirname(path)
    if kind != "create":
        print(kind, os.path.basename(path), *what)
    return 0

def noted(function, kind):
    def call(descriptor, *what):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            note(("sync directory", path + "/"))
        else:
            note((kind, path, *what[::-1]))
        return function(descriptor, *what)

    return call

os.pwrite, os.fsync = noted(os.pwrite, "write"), noted(os.fsync, "sync")
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
with recorded(note):
    store = SqliteStore(folder / "shard.sqlite")
    changes = Changes()
    changes.payloads[1] = b"x" * 10000
    asyncio.run(store.commit(changes, Mark(1, 2, 1.0)))
    store.close()
"""


def seen_call(line: str) -> str:
    """A line of strace as the script above would print it; nothing for what is no file of the store."""
    found = re.search(r"(\w+)\((?:\d+<([^>]*)>|\"([^\"]*)\")(?:, \"\"\.\.\.)?(?:, (\d+))?(?:, (\d+))?\) = ", line)
    if found is None or "/seen" not in (path := found[2] or found[3]):
        return ""
    name, call = os.path.basename(path), found[1]
    if call == "pwrite64":
        return f"write {name} {found[4]} {found[5]}"
    if call == "ftruncate":
        return f"truncate {name} {found[4]}"
    if call == "unlink":
        return f"delete {name}"
    return f"directory {name}" if name == "seen" else f"sync {name}"


# -- the disk --------------------------------------------------------------------------------------------------------


def disk_with(content: bytes) -> Disk:
    disk = Disk({})
    disk.follow("create", "f")
    disk.follow("write", "f", 0, content)
    disk.follow("sync", "f")
    disk.follow("sync directory", "f")
    return disk


def cuts(disk: Disk, fate: str, count: int = 200) -> set[bytes | None]:
    """The contents that are found of the file."""
    return {disk.cut(random.Random(seed), fate).get("f") for seed in range(count)}


@pytest.mark.parametrize("fate", FATES)
def test_cut_after_sync_finds_all(fate: str) -> None:
    assert cuts(disk_with(b"a" * 2000), fate) == {b"a" * 2000}


def test_cut_before_sync_finds_any_sectors_of_each_state() -> None:
    disk = disk_with(b"a" * 2 * SECTOR)
    disk.follow("write", "f", 0, b"b" * 2 * SECTOR)
    disk.follow("write", "f", SECTOR, b"c" * SECTOR)
    assert cuts(disk, "lost") == {b"a" * 2 * SECTOR}
    assert cuts(disk, "kept") == {b"b" * SECTOR + b"c" * SECTOR}
    both = {first * SECTOR + second * SECTOR for first in (b"a", b"b") for second in (b"a", b"b", b"c")}
    assert cuts(disk, "torn") == both
    assert cuts(disk, "one lost") == {b"a" * SECTOR + b"c" * SECTOR, b"b" * 2 * SECTOR}


def test_cut_before_sync_finds_file_of_any_length_since() -> None:
    disk = disk_with(b"a" * 100)
    disk.follow("write", "f", 100, b"b" * 100)
    disk.follow("truncate", "f", 50)
    assert {len(content or b"") for content in cuts(disk, "torn")} == {100, 200, 50}


def test_cut_before_directory_is_synced_may_miss_the_file_or_find_it_again() -> None:
    disk = Disk({})
    disk.follow("create", "f")
    disk.follow("write", "f", 0, b"a")
    disk.follow("sync", "f")
    assert cuts(disk, "torn") == {None, b"a"}
    disk.follow("sync directory", "f")
    disk.follow("delete", "f")
    assert cuts(disk, "torn") == {None, b"a"}
    disk.follow("sync directory", "f")
    assert cuts(disk, "torn") == {None}


def test_cut_after_failed_sync_may_miss_what_no_later_sync_writes() -> None:
    disk = disk_with(b"a" * 8192)
    disk.follow("write", "f", 0, b"b" * 8192)
    disk.follow("sync failed", "f")
    disk.follow("write", "f", 0, b"c" * SECTOR)
    disk.follow("sync", "f")
    assert cuts(disk, "lost") == {b"c" * SECTOR + b"b" * (4096 - SECTOR) + b"a" * 4096}, "a page is written whole"
    assert cuts(disk, "kept") == {b"c" * SECTOR + b"b" * (8192 - SECTOR)}


def test_refuse_call_of_the_vfs_fails_the_commit_and_writes_nothing(tmp_path: Path) -> None:
    sizes = []
    with recorded(lambda call: 0 if call[0] != "write" or len(sizes) == 0 else IOERR_WRITE):
        database = sqlite3.connect(tmp_path / "db", isolation_level=None)
        database.execute("CREATE TABLE t (x)")
        sizes.append((tmp_path / "db").stat().st_size)
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            database.execute("INSERT INTO t VALUES (1)")
        database.close()
    assert (tmp_path / "db").stat().st_size == sizes[0]
