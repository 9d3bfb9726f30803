"""`restq check`: it finds what is wrong, calls nothing wrong that is not, and changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RESTQ, Server, StartServer
from processes import kill_at_once
from test_store import full_group, place_row
from test_upgrade import FORMAT_1, WORK
from wire import ask

from restq.check import CheckRefused, Report, check
from restq.data_dir import note_shard_count, shard_path
from restq.shards.changes import Changes, RealmRow, Task
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Mark
from restq.shards.witness import Witness


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """One shard's file with something in every table, closed."""
    folder = tmp_path / "data"
    folder.mkdir()
    put(folder, full_group(), Mark(1, 20, 1.5))
    return folder


def put(folder: Path, changes: Changes, mark: Mark, shard: int = 0) -> None:
    store = SqliteStore(shard_path(folder, shard))
    asyncio.run(store.commit(changes, mark))
    store.close()


def change(folder: Path, statement: str) -> None:
    """Behind the back of restq."""
    database = sqlite3.connect(shard_path(folder, 0))
    database.execute(statement)
    database.commit()
    database.close()


def hashes(folder: Path) -> dict[str, Any]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }


def checked(folder: Path) -> Report:
    """The report, after a look that nothing was changed and nothing left anywhere."""
    before = hashes(folder)
    report = check(folder)
    assert hashes(folder) == before
    return report


def test_check_of_sound_directory_finds_nothing_and_counts(data_dir: Path) -> None:
    report = checked(data_dir)
    assert (report.problems, report.notes) == ([], [])
    (shard,) = report.shards
    assert (shard.file, shard.last_commit, shard.unchecked_count) == ("shard-0000.sqlite", 1, 0)
    assert (shard.counts["jobs"], shard.counts["places"], shard.counts["results"]) == (3, 4, 5)


def test_check_of_directory_that_a_killed_server_left_reads_its_log(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(shards=2)
    for number in range(40):
        body = {"queue_id": 0, "data": "x" * 5000, "tags": ["t"]}
        ask(server, "PUT", f"/realm-{number % 5}/job/{number}", body).ok()
    running = hashes_of_files(server)
    with pytest.raises(CheckRefused, match="is in use by process"):
        check(server.data_dir)
    assert hashes_of_files(server) == running
    kill_at_once(server)
    left = tmp_path / "left"
    left.mkdir()
    for path in server.data_dir.iterdir():
        if not path.is_socket():
            shutil.copy2(path, left)
    report = checked(left)
    assert (report.problems, report.notes) == ([], [])
    assert sum(shard.counts["jobs"] for shard in report.shards) == 40
    assert sum(shard.counts["payloads"] for shard in report.shards) == 40
    assert any(shard.log_frames for shard in report.shards)


def hashes_of_files(server: Server) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in server.data_dir.iterdir() if not path.is_socket()}


WRONG = {
    "UPDATE jobs SET tags = '[\"y\"]' WHERE key = 4": "row 4 of table 'jobs' is not what was written",
    "UPDATE jobs SET tags = '[' WHERE key = 4": "1 jobs whose tags can't be read, the first is row 4",
    "UPDATE places SET at = at + 1 WHERE key = 7": "row 7 of table 'places' is not what was written",
    "UPDATE places SET queue = 77 WHERE key = 7": "1 places in queues that are not there, the first is row 7",
    "UPDATE places SET checksum = NULL WHERE key = 7": "row 7 of table 'places' is not what was written",
    "UPDATE payloads SET data = zeroblob(9)": "row 5 of table 'payloads' is not what was written",
    "UPDATE replies SET body = x'00' WHERE key = 19": "row 19 of table 'replies' is not what was written",
    "UPDATE failures SET exit_code = 1 WHERE key = 5": "row 5 of table 'failures' is not what was written",
    "UPDATE results SET at = 0.0 WHERE key = 12": "row 12 of table 'results' is not what was written",
    "UPDATE tags SET next_at = 1.0 WHERE key = 11": "row 11 of table 'tags' is not what was written",
    "UPDATE queues SET lease_time = 1.0 WHERE key = 2": "row 2 of table 'queues' is not what was written",
    "UPDATE realms SET epoch = 9": "row 1 of table 'realms' is not what was written",
    "UPDATE moved SET shard = 9 WHERE name = 'b'": "row 'b' of table 'moved' is not what was written",
    "UPDATE mark SET next_key = 99": "the row of table 'mark' is not what was written",
    "DELETE FROM payloads": "1 jobs whose large data is not there, the first is row 5",
    "DELETE FROM jobs WHERE key = 6": "1 places of jobs that are not there, the first is row 8",
    "DELETE FROM jobs WHERE key = 5": "large data of 1 jobs that are not there, the first is row 5",
    "DELETE FROM places WHERE key = 8": "1 jobs that stand in no queue, the first is row 6",
    "DELETE FROM realms": "3 jobs of realms that are not there, the first is row 4",
    "DELETE FROM mark": "the row of table 'mark' is not what was written",
    "CREATE TABLE mine (x)": "its table 'mine' is not as restq made it",
    "DROP INDEX results_by_realm": "its table 'results_by_realm' is not as restq made it",
    "PRAGMA user_version = 99": "it is of format 99, made by a newer restq",
    "PRAGMA application_id = 7": "it is not a database of restq",
}


@pytest.mark.parametrize("statement", WRONG)
def test_check_of_changed_row_says_what_is_wrong(data_dir: Path, statement: str) -> None:
    change(data_dir, statement)
    problems = checked(data_dir).problems
    assert any(WRONG[statement] in problem for problem in problems), problems
    assert all(problem.startswith("shard-0000.sqlite: ") for problem in problems)


def test_check_of_key_that_was_not_given_out_says_so(data_dir: Path) -> None:
    changes = Changes()
    changes.places[40] = place_row(40, 4, 2)
    put(data_dir, changes, Mark(2, 20, 2.5))
    assert checked(data_dir).problems == [
        "shard-0000.sqlite: row 40 of table 'places' has a key that was not given out yet"
    ]


def test_check_of_older_file_than_its_witness_says_so(data_dir: Path) -> None:
    Witness(shard_path(data_dir, 0)).note(7)
    assert checked(data_dir).problems == [
        "shard-0000.sqlite: it ends with commit 1, but commit 7 was done: it was cut short or replaced"
    ]
    Witness(shard_path(data_dir, 0)).path.write_text("7")
    (problem,) = checked(data_dir).problems
    assert "shard-0000.witness is not what was written" in problem


def test_check_of_damaged_log_says_at_which_frame(data_dir: Path, tmp_path: Path) -> None:
    store = SqliteStore(shard_path(data_dir, 0))
    for group in range(2, 6):
        changes = Changes()
        changes.realms[1] = RealmRow(1, "größe", float(group), 3, 1, None)
        asyncio.run(store.commit(changes, Mark(group, 20, 1.5)))
    left = tmp_path / "left"
    left.mkdir()
    for path in data_dir.iterdir():
        (left / path.name).write_bytes(path.read_bytes())
    store.close()
    assert checked(left).problems == []
    log = Path(f"{shard_path(left, 0)}-wal")
    content = bytearray(log.read_bytes())
    content[32 + 500] ^= 4
    log.write_bytes(content)
    said, cut_short = checked(left).problems
    assert said.startswith("shard-0000.sqlite: its log is damaged: frame 1 is not what was written")
    assert "but commit 5 was done" in cut_short


def test_check_of_page_that_lost_its_shape_says_what_sqlite_says(data_dir: Path) -> None:
    path = shard_path(data_dir, 0)
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 + 3] ^= 1  # how many rows stand in it
    path.write_bytes(content)
    assert any("SQLite says: " in problem or "it can't be read: " in problem for problem in checked(data_dir).problems)
    path.write_bytes(b"no database at all" * 400)
    assert any("it can't be read: " in problem for problem in checked(data_dir).problems)
    path.write_bytes(b"")
    assert any("or it is empty" in problem for problem in checked(data_dir).problems)


def test_check_of_file_of_an_earlier_format_is_a_note(tmp_path: Path) -> None:
    database = sqlite3.connect(shard_path(tmp_path, 0))
    database.executescript(FORMAT_1)
    database.execute("INSERT INTO realms VALUES (1, ?, 600.0, 1, 0, NULL)", (WORK,))
    database.execute("INSERT INTO queues VALUES (2, 1, 0, 600.0)")
    database.execute("INSERT INTO jobs VALUES (3, 1, 'x', '[]', '', '', 0)")
    database.execute("INSERT INTO places VALUES (3, 3, 2, 1.0, 0.0, 0)")
    database.execute("UPDATE mark SET next_key = 4")
    database.commit()
    database.close()
    report = checked(tmp_path)
    assert report.problems == []
    assert report.notes == ["shard-0000.sqlite: it is of format 1; the next start brings it up to date"]
    assert report.shards[0].unchecked_count == 4


def test_check_of_realm_in_two_files_notes_which_one_counts(data_dir: Path) -> None:
    changes = Changes()
    changes.realms[1] = RealmRow(1, "größe", 600.0, 4, 0, None)
    changes.realms[2] = RealmRow(2, "half there", 600.0, 4, 0, Task("arrive").text())
    put(data_dir, changes, Mark(1, 20, 1.5), shard=1)
    report = checked(data_dir)
    assert report.problems == []
    (note,) = report.notes
    assert "is in shard-0000.sqlite and shard-0001.sqlite" in note
    assert note.endswith("goes on with the one in shard-0001.sqlite")


def test_check_of_log_without_its_database_says_so(data_dir: Path) -> None:
    (data_dir / "shard-0003.sqlite-wal").write_bytes(b"x" * 5000)
    assert checked(data_dir).problems == ["shard-0003.sqlite-wal: its database is not there"]


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_check_of_directory_without_one_of_its_databases_says_so(data_dir: Path, what: str) -> None:
    note_shard_count(data_dir, 2)
    path = shard_path(data_dir, 1)
    path.unlink(missing_ok=True)
    if what == "empty":
        path.write_bytes(b"")
    problems = checked(data_dir).problems
    assert "shard-0001.sqlite: it is not there, or is empty, but belongs to this directory" in problems


def test_check_where_nothing_is_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckRefused):
            check(missing)
    assert list(tmp_path.iterdir()) == []


# -- the command -------------------------------------------------------------------------------------------------------


def run_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*RESTQ, "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=sys.prefix)


def test_check_command_exits_with_0_or_1_and_prints_sentences_or_json(data_dir: Path) -> None:
    run = run_check(data_dir)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[-1] == "nothing is wrong"
    assert "shard-0000.sqlite: commit 1; " in run.stdout
    change(data_dir, "DELETE FROM places WHERE key = 8")
    run = run_check(f"--data-dir={data_dir}")
    assert run.returncode == 1
    assert run.stdout.splitlines()[-2:] == [
        "wrong: shard-0000.sqlite: it has 1 jobs that stand in no queue, the first is row 6",
        "1 things are wrong",
    ]
    run = run_check(data_dir, "--json")
    assert run.returncode == 1
    said = json.loads(run.stdout)
    assert said["problems"] == ["shard-0000.sqlite: it has 1 jobs that stand in no queue, the first is row 6"]
    assert said["shards"][0]["counts"]["jobs"] == 3


def test_check_command_where_nothing_is_says_so(tmp_path: Path) -> None:
    run = run_check(tmp_path)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"restq: there is no data of restq in {tmp_path}\n"
