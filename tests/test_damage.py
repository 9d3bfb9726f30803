"""Bits that flip and files that are cut short: a start gives exactly what was there, or refuses with a sentence.

The files are those of a real server, once closed in order and once killed, so that there is a log. Each trial changes a
copy and reads all of it, by the store: what is not refused must be what it was before. Where the log is damaged within
its last commit and there is no witness that it was done, that commit, and it alone, may be gone.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, StartServer, _servers
from longrun import seeds
from processes import kill_at_once, run_web
from shard_rig import Rig, ids
from store_life import contents
from wire import ask

from restq.check import check
from restq.data_dir import shard_path
from restq.errors import RowDamaged
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import StoreRefused
from restq.shards.wal import scan
from restq.shards.witness import Witness

Files = dict[str, bytes]
REALM = "damage"


class Made:
    """The files of a shard, what they hold, and what they held before the last commit, if that is in the log."""

    def __init__(self, files: Files, folder: Path) -> None:
        self.files = files
        self.contents = read(files, folder)
        assert isinstance(self.contents, tuple), self.contents
        self.before: Any = None
        log = files.get("shard-0000.sqlite-wal")
        while log and (self.before is None or self.before[0] == self.contents[0]):
            log = log[:-500]
            self.before = read(without_witness({**files, "shard-0000.sqlite-wal": log}), folder)


def without_witness(files: Files) -> Files:
    return {name: content for name, content in files.items() if not name.endswith(".witness")}


def read(files: Files, folder: Path) -> tuple[Any, ...] | str:
    """All that a store gives after a start from these files, or the sentence in which it refuses."""
    target = folder / "copy"
    target.mkdir()
    try:
        for name, content in files.items():
            (target / name).write_bytes(content)
        with contextlib.closing(SqliteStore(target / "shard-0000.sqlite")) as store:
            return contents(store)
    except (StoreRefused, RowDamaged) as refused:
        return refused.message
    finally:
        shutil.rmtree(target)


def work(server: Server, first: int) -> None:
    """Something of everything that a file holds."""

    def post(path: str, body: Any) -> Any:
        return ask(server, "POST", f"/{REALM}/{path}", body).ok()

    jobs = [
        {
            "job_id": f"job {first + number} é",
            "queue_id": number % 3,
            "data": "x" * (number % 90),
            "tags": [f"t{number % 7}"],
        }
        for number in range(300)
    ]
    post("jobs", {"jobs": jobs})
    large = [
        {"job_id": f"large {first + n}", "queue_id": "q", "data": f"{n}" * 9000, "after": ["t1"]} for n in range(3)
    ]
    post("jobs", {"jobs": large})
    for _ in range(8):
        leases = [job["lease_id"] for job in post("pull", {"count": 6, "worker": "w", "lease_time": 1e6})["jobs"]]
        post("ack", {"leases": leases[:3], "result": {"n": first}})
        post("nack", {"leases": leases[3:5], "error": "no such page\n" * 9, "delay": 1e5})


def files_of(server: Server) -> Files:
    paths = [path for path in server.data_dir.glob("shard-0000.*") if path.suffix not in (".reserve", ".sock")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    with _servers(tmp_path_factory) as start:
        return _make(start, tmp_path_factory.mktemp("made"))


def _make(start: StartServer, folder: Path) -> dict[str, Made]:
    server = start(shards=1)
    ask(server, "PUT", f"/{REALM}/config", {"keep_done": {"count": 1000}})
    ask(server, "PUT", f"/{REALM}/tag/t2/config", {"max_leased": 5, "rate": 2.0})
    work(server, 0)
    server.stop()
    closed = Made(files_of(server), folder)
    server = start(server.data_dir, shards=1)
    work(server, 1000)
    kill_at_once(server)
    killed = Made(files_of(server), folder)
    assert killed.before is not None
    return {"closed": closed, "killed": killed}


# -- what is done to the files -----------------------------------------------------------------------------------------


def flip(chance: random.Random, content: bytes, count: int = 1) -> bytes:
    """One bit, or some: anywhere, or where pages have their structure."""
    changed = bytearray(content)
    for _ in range(count):
        at = chance.randrange(len(changed))
        if chance.random() < 0.3:
            at = min(at // 4096 * 4096 + chance.randrange(120), len(changed) - 1)
        changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_some(chance: random.Random, content: bytes) -> bytes:
    return flip(chance, content, 4)


def cut(chance: random.Random, content: bytes) -> bytes:
    """Cut short: anywhere, between pages, or to nothing."""
    at = chance.randrange(len(content))
    return content[: chance.choice((at, at, at // 4096 * 4096, 0))]


def wipe(chance: random.Random, content: bytes) -> bytes:
    """A sector of zeros, or of something else."""
    at = chance.randrange(len(content)) // 512 * 512
    left = content[at + 512 :]
    return content[:at] + chance.choice((bytes(512), chance.randbytes(512), content[:512])) + left


Change = Callable[[random.Random, bytes], bytes]
CHANGES: dict[str, Change] = {"flip": flip, "some flips": flip_some, "cut": cut, "wipe": wipe}


class Trial:
    """One change to one file of one directory; what the start made of it."""

    def __init__(self, seed: int, made: dict[str, Made]) -> None:
        chance = random.Random(seed)
        self.kind = chance.choice(("killed", "killed", "closed"))
        self.made = made[self.kind]
        self.what = chance.choice(("flip", "flip", "flip", "some flips", "cut", "wipe"))
        suffix = chance.choice(("", "-wal")) if self.kind == "killed" else ""
        self.files = dict(self.made.files)
        name = f"shard-0000.sqlite{suffix}"
        self.files[name] = CHANGES[self.what](chance, self.files[name])
        self.file = suffix or "database"
        # What was cut off a log, nothing but the witness knows; nor, where the header of the last frame of a commit is
        # gone as a whole, whether the next one is not its own end. A single bit the log itself tells.
        self.has_witness = chance.random() < 0.5 or self.what not in (
            ("flip",) if suffix else ("flip", "some flips", "wipe")
        )
        if not self.has_witness:
            self.files = without_witness(self.files)

    def outcome(self, folder: Path) -> str:
        """What became of it; "wrong: .." is what never may."""
        found = read(self.files, folder)
        if isinstance(found, str):
            return "refused" if found.startswith(str(folder)) else f"wrong: not told which file: {found}"
        if found == self.made.contents:
            return "exact"
        if found == self.made.before and self.file == "-wal" and not self.has_witness:
            return "last commit gone"
        pairs = zip(found, self.made.contents, strict=True)
        return "wrong: " + "; ".join(
            f"{str(now)[:500]} in place of {str(then)[:500]}" for now, then in pairs if now != then
        )

    def problems(self, folder: Path) -> list[str]:
        """What `restq check` says."""
        target = folder / "checked"
        target.mkdir()
        try:
            for name, content in self.files.items():
                (target / name).write_bytes(content)
            return check(target).problems
        finally:
            shutil.rmtree(target)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        if memory.is_dir():
            yield Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        else:
            yield tmp_path


def test_start_after_damage_gives_all_that_was_there_or_refuses(made: dict[str, Made], folder: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in seeds(300, 10_000):
        trial = Trial(seed, made)
        outcome = trial.outcome(folder)
        what = f"{trial.what} of {trial.file}, {trial.kind}{'' if trial.has_witness else ', no witness'}"
        assert not outcome.startswith("wrong"), f"RESTQ_SEED={seed}: {what}: {outcome}"
        if seed % 4 == 0:
            problems = trial.problems(folder)
            assert problems or outcome != "refused", f"RESTQ_SEED={seed}: {what}: restq check finds nothing"
            counts["found by restq check"] += bool(problems)
        counts[outcome] += 1
        counts[f"{what}: {outcome}"] += 1
    for line in sorted(counts.items()):
        print(*line)
    assert counts["exact"]
    assert counts["refused"]


def test_start_after_damage_to_the_witness_gives_all_that_was_there(made: dict[str, Made], folder: Path) -> None:
    """It is asked, and nothing depends on it."""
    whole = made["killed"]
    for number in range(len(whole.files["shard-0000.witness"]) * 8):
        content = bytearray(whole.files["shard-0000.witness"])
        content[number // 8] ^= 1 << number % 8
        assert read({**whole.files, "shard-0000.witness": bytes(content)}, folder) == whole.contents


def test_start_without_log_or_database_is_refused_by_the_witness(made: dict[str, Made], folder: Path) -> None:
    whole = made["killed"].files
    for name in ("shard-0000.sqlite-wal", "shard-0000.sqlite"):
        for gone in ({key: value for key, value in whole.items() if key != name}, {**whole, name: b""}):
            told = "Put back a copy" if name.endswith("-wal") else "is not there, or is empty, but its log is"
            assert told in str(read(gone, folder)), name


def test_refusal_of_damaged_log_says_how_to_go_on_without_what_follows(made: dict[str, Made], folder: Path) -> None:
    """The command that the sentence names gives what was committed before, and no more."""
    whole = made["killed"]
    log = bytearray(whole.files["shard-0000.sqlite-wal"])
    log[len(log) // 2] ^= 1
    damaged = {**whole.files, "shard-0000.sqlite-wal": bytes(log)}
    said = str(read(damaged, folder))
    size = int(said.partition("truncate --size=")[2].partition(" ")[0])
    path = folder / "log"
    path.write_bytes(log)
    assert size == scan(path).good_bytes
    left = read(without_witness({**damaged, "shard-0000.sqlite-wal": bytes(log[:size])}), folder)
    assert 0 < left[0].group < whole.contents[0].group


def test_server_with_a_damaged_log_does_not_start_and_says_why(made: dict[str, Made], tmp_path: Path) -> None:
    for name, content in made["killed"].files.items():
        (tmp_path / name).write_bytes(content)
    path = shard_path(tmp_path, 0)
    log = bytearray(Path(f"{path}-wal").read_bytes())
    log[len(log) // 2] ^= 1
    Path(f"{path}-wal").write_bytes(log)
    run = run_web("127.0.0.1:0", f"--data-dir={tmp_path}", "--shards=1")
    assert run.returncode == 1
    assert f"{path}-wal is damaged: frame " in run.stderr
    assert Path(f"{path}-wal").read_bytes() == log
    assert Witness(path).claims() > 0


@pytest.mark.parametrize("which", ["min", "max"])
def test_server_that_can_not_go_on_with_a_bulk_request_does_not_start_and_says_why(tmp_path: Path, which: str) -> None:
    """Its body is damaged, or what its last slice replied."""
    path = shard_path(tmp_path, 0)
    store = SqliteStore(path)
    rig = Rig(store=store)  # type: ignore[arg-type]
    job_ids = ids(3_000)
    for start in range(0, 3_000, 1_000):
        rig.add("r", *job_ids[start : start + 1_000])
    bulk = rig.send("remove_jobs", "r", [], {"jobs": job_ids})
    while rig.shard.find("r").task is None or int(rig.shard.find("r").task.details[2]) < 2:  # type: ignore[union-attr]
        rig.turn()
    assert bulk not in rig.replies
    store._database.execute(f"UPDATE payloads SET data = 'else' WHERE key = (SELECT {which}(key) FROM payloads)")
    store.close()
    run = run_web("127.0.0.1:0", f"--data-dir={tmp_path}", "--shards=1")
    assert run.returncode == 1
    assert "of table 'payloads' is not what was written" in run.stderr
    assert "Traceback" not in run.stderr


# -- what is read while the shard serves -----------------------------------------------------------------------------


def test_pull_of_job_whose_large_data_is_damaged_sets_it_aside_and_gives_the_others(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(shards=1)
    for name in ("a", "lost", "z"):
        ask(server, "PUT", f"/r/job/{name}", {"queue_id": 0, "data": name * 5000}).ok()
    server.stop()
    path = shard_path(server.data_dir, 0)
    content = path.read_bytes()
    at = content.index(b"lost" * 200)
    path.write_bytes(content[:at] + b"lust" + content[at + 4 :])
    assert any("of table 'payloads' is not what was written" in problem for problem in check(server.data_dir).problems)
    server = start_server(server.data_dir, shards=1)
    assert "is not what was written" in ask(server, "GET", "/r/job/lost").refused(500, "OSError", "row_damaged")
    jobs = ask(server, "POST", "/r/pull", {"count": 5}).ok()["jobs"]
    assert [job["data"][:1] for job in jobs] == ["a", "z"]
    assert ask(server, "POST", "/r/pull", {"count": 5}).ok()["jobs"] == []
    (found,) = ask(server, "GET", "/r/jobs?state=dead").ok()["jobs"]
    assert found["job_id"] == "lost"
    assert "is not what was written" in json.dumps(ask(server, "GET", "/r/job/lost/explain").ok())
    ask(server, "DELETE", "/r/job/lost").ok()
    server.stop()
    assert check(server.data_dir).problems == []


def test_move_of_realm_whose_kept_rows_say_to_be_of_another_is_refused(made: dict[str, Made], folder: Path) -> None:
    """They are looked at as well: what is left out in silence would be lost."""
    path = folder / "shard-0000.sqlite"
    path.write_bytes(made["closed"].files["shard-0000.sqlite"])
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("UPDATE failures SET realm = 77")
    database.execute("UPDATE results SET realm = 77 WHERE key = (SELECT min(key) FROM results)")
    database.close()
    with contextlib.closing(SqliteStore(path)) as store:
        for table in ("failures", "results"):
            with pytest.raises(StoreRefused, match=f"of table '{table}' is not what was written"):
                list(store.kept_of(table, [1]))
        with pytest.raises(RowDamaged):
            store.rows_of("failures", 1, 0, 5)
