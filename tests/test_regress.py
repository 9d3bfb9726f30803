"""What counts instructions: counts tell what grew, and nothing is compared that can't be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import hot_paths, regress
from bench.regress import Baseline

ROOT = Path(__file__).resolve().parent.parent
CASES = """
def case(size):
    def run(times, counting):
        with counting:
            for _ in range(times):
                sum(range(size))
        return times
    return run

CASES = {"one": case(%d), "another": case(500)}
"""

needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")


class Bench:
    """`python -m bench.regress` over cases and a baseline of its own."""

    def __init__(self, folder: Path) -> None:
        self.baseline = folder / "baseline.json"
        self._folder = folder

    def run(self, *options: str, size: int = 500, path: str | None = None) -> tuple[int, str]:
        """Its exit status and what it says, where one of the cases is of this size."""
        (self._folder / "few_cases.py").write_text(CASES % size, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self._folder}"}
        if path is not None:
            environment["PATH"] = path
        run = subprocess.run(
            [sys.executable, "-m", "bench.regress", "--cases=few_cases", f"--baseline={self.baseline}", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return run.returncode, run.stdout + run.stderr


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@needs_valgrind
def test_regress_of_case_that_takes_more_names_it_until_accepted(bench: Bench) -> None:
    status, said = bench.run("--accept")
    assert status == 0, said
    assert bench.run()[0] == 0
    status, said = bench.run(size=550)
    assert status == 1
    assert "one: " in said
    assert "another: " not in said
    assert "--accept" in said
    assert bench.run("--accept", size=550)[0] == 0
    assert bench.run(size=550)[0] == 0


@needs_valgrind
def test_regress_of_case_that_takes_less_asks_to_accept_it(bench: Bench) -> None:
    bench.run("--accept")
    status, said = bench.run(size=450)
    assert status == 0
    assert "some take less" in said


@needs_valgrind
def test_regress_of_other_versions_counts_and_compares_nothing(bench: Bench) -> None:
    bench.run("--accept")
    before = Baseline.read(bench.baseline)
    Baseline({**before.versions, "msgpack": "0.9"}, before.counts).write(bench.baseline)
    status, said = bench.run(size=5_000)
    assert status == 0
    assert "msgpack: 0.9 then" in said
    assert "python: " not in said
    assert "%" not in said


@needs_valgrind
def test_regress_of_broken_cases_fails(bench: Bench) -> None:
    status, said = bench.run("--cases=no_such_module")
    assert status == 1
    assert "no_such_module" in said


def test_regress_without_valgrind_says_that_it_is_missing(bench: Bench, tmp_path: Path) -> None:
    status, said = bench.run(path=str(tmp_path))
    assert status == 1
    assert "valgrind is missing" in said


def test_changes_of_cases_are_percent_of_the_baseline() -> None:
    before = Baseline({}, {"same": 100.0, "more": 200.0, "gone": 1.0})
    assert regress.changes({"same": 100.0, "more": 210.0, "new": 5.0}, before) == pytest.approx({"same": 0, "more": 5})


def test_baseline_in_the_repository_is_of_the_cases_that_there_are() -> None:
    assert list(json.loads(regress.BASELINE.read_text(encoding="utf-8"))["counts"]) == list(hot_paths.CASES)


@pytest.mark.parametrize("name", hot_paths.CASES)
def test_hot_path_does_as_many_operations_as_it_says(name: str) -> None:
    counting = Counting()
    assert hot_paths.CASES[name](64, counting) >= 64
    assert counting.calls == ["begin", "end"]


class Counting:
    """Notes where a case begins to be counted and where it ends."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __enter__(self) -> None:
        self.calls.append("begin")

    def __exit__(self, *error: object) -> None:
        self.calls.append("end")
