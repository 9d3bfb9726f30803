"""The contract between the supervisor and a process, with processes that keep dying."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

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
