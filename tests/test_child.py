"""The contract between the supervisor and a process, with processes that keep dying."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from polling import eventually
from processes import is_running

from restq import child
from restq.child import Child


def write_module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


def test_stop_while_a_dead_process_waits_to_start_again_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "starts"
    write_module(tmp_path, "dies", f"open({str(log)!r}, 'a').write('x'); raise SystemExit(7)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(child, "RESTART_SECONDS_MAX", 3600.0)

    async def run() -> None:
        process = Child("dies", "process", {})
        starts = 0
        waiting = asyncio.Event()
        real_timeout = asyncio.timeout

        def timeout(delay: float | None) -> asyncio.Timeout:
            nonlocal starts
            starts += 1
            if starts < 2:
                return real_timeout(delay)
            waiting.set()
            return real_timeout(3600.0)

        monkeypatch.setattr(asyncio, "timeout", timeout)
        kept = asyncio.ensure_future(process.keep())
        await waiting.wait()
        monkeypatch.setattr(asyncio, "timeout", real_timeout)
        await process.stop(5.0)
        async with asyncio.timeout(20.0):
            await kept

    asyncio.run(run())
    assert log.read_text() == "xx"


def test_keep_of_a_process_that_refuses_its_first_start_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, "refuses", f"raise SystemExit({child.EXIT_REFUSED})")
    monkeypatch.syspath_prepend(str(tmp_path))
    process = Child("refuses", "process", {})
    asyncio.run(process.keep())
    assert process.refused
    assert not process.ready.is_set()


def test_keep_of_a_process_that_cannot_be_started_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "refuses", f"raise SystemExit({child.EXIT_REFUSED})")
    monkeypatch.syspath_prepend(str(tmp_path))
    real_start = asyncio.create_subprocess_exec
    failures = iter([OSError("no more processes")])

    async def start(*args: object, **options: object) -> asyncio.subprocess.Process:
        for failure in failures:
            raise failure
        return await real_start(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    process = Child("refuses", "process", {})
    asyncio.run(process.keep())
    assert process.refused


# -- processes that stand still --------------------------------------------------------------------------------------

SERVES = """
import asyncio, os
from restq import child

async def serve():
    end = asyncio.Event()
    await child.on_end(end.set)
    with open({log!r}, "a") as log:
        log.write(f"{{os.getpid()}} ")
    child.say_ready()
    await end.wait()

child.begin()
asyncio.run(serve())
"""


class Kept:
    """A child that runs, and the processes that it was so far."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "pids"
        write_module(folder, "serves", SERVES.format(log=str(self.log)))
        self.child = Child("serves", "process", {"log_level": 30})

    def pids(self) -> list[int]:
        return [int(pid) for pid in self.log.read_text().split()] if self.log.exists() else []

    async def pid(self, number: int) -> int:
        """The process that was started as the n-th, once it is there."""
        await asyncio.to_thread(eventually, lambda: len(self.pids()) > number)
        await self.child.ready.wait()
        return self.pids()[number]


@contextlib.asynccontextmanager
async def kept(folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    """A child of which it is known within a quarter of a second that it stands still."""
    patch.syspath_prepend(str(folder))
    patch.setattr(child, "ASK_SECONDS", 0.05)
    patch.setattr(child, "STUCK_COUNT", 5)
    own = Kept(folder)
    keeping = asyncio.ensure_future(own.child.keep())
    try:
        yield own
    finally:
        await own.child.stop(5.0)
        await keeping


@pytest.mark.parametrize("own", [None, "4096"])
def test_process_gives_large_blocks_of_memory_back_unless_its_user_set_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    log = tmp_path / "set"
    name = "MALLOC_MMAP_THRESHOLD_"
    write_module(
        tmp_path, "tells", f"import os; open({str(log)!r}, 'w').write(os.environ[{name!r}]); raise SystemExit(3)"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv(name, own)

    async def run() -> None:
        async with asyncio.timeout(20.0):
            await Child("tells", "process", {}).keep()

    asyncio.run(run())
    assert log.read_text() == (own or child.MEMORY_SETTINGS[name])


def test_process_whose_supervisor_is_gone_says_nothing_of_being_ready() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from restq import child; input(); child.say_ready()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert process.communicate(b"\n", timeout=20)[1] == b""
    assert process.returncode == 0


def test_keep_of_a_process_that_stands_still_kills_it_and_starts_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with kept(tmp_path, monkeypatch) as own:
            stopped = await own.pid(0)
            os.kill(stopped, signal.SIGSTOP)
            assert await own.pid(1) != stopped
            assert not is_running(stopped)

    asyncio.run(run())


def test_keep_of_a_process_that_answers_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with kept(tmp_path, monkeypatch) as own:
            serving = await own.pid(0)
            await asyncio.sleep(0.6)  # more than twice what one that stands still is given
            assert own.pids() == [serving]
            assert is_running(serving)

    asyncio.run(run())


def stand_still(seconds: float) -> None:
    """Have this process do nothing."""
    time.sleep(seconds)


def test_keep_after_a_stop_of_everything_gives_the_process_its_time_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with kept(tmp_path, monkeypatch) as own:
            stopped = await own.pid(0)
            for _ in range(3):
                os.kill(stopped, signal.SIGSTOP)
                await asyncio.sleep(0.08)  # it is asked meanwhile
                stand_still(0.5)  # the supervisor as well
                os.kill(stopped, signal.SIGCONT)
                await asyncio.sleep(0.2)
            assert own.pids() == [stopped]
            assert is_running(stopped)

    asyncio.run(run())
