"""Instructions that a piece of a Python program takes, counted by valgrind's callgrind.

Instructions are the same however busy the machine is, and nearly the same from run to run. The disk's and the kernel's
work is not among them. Where the counting begins and ends is told by calls of `os.getppid`, which nobody else makes:
callgrind writes down what it counted each time it comes by libc's function of that name. So one start of the
interpreter, which takes more than all the rest, is enough for all cases.

A module of cases has a table `CASES`, from the name to a function of how often to do it, which prepares, does it
`with counting:`, and returns how many operations that was. This module, as a program, runs such a table's cases.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

SECONDS_MAX = 600.0
# What libc does to copy and to clear by what the CPU offers: without these, counts are alike on different machines. And
# callgrind takes each byte that one instruction with a repeat prefix clears for an instruction.
PLAIN_LIBC = "glibc.cpu.hwcaps=-AVX2,-AVX,-ERMS,-FSRM,-SSE4_2,-BMI2"
TIMES = 400  # how often a case does what it is about
WARM_UP_TIMES = 50  # before that, uncounted: what the interpreter and libraries do once is then done

Counting = AbstractContextManager[None]
Case = Callable[[int, Counting], int]

_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class CountingFailed(Exception):
    """Nothing was counted: the sentence says why."""


def version() -> str:
    """Valgrind's version. Raises CountingFailed where there is none."""
    if shutil.which("valgrind") is None:
        raise CountingFailed("valgrind is missing, so no instructions were counted: apt-get install valgrind")
    return subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def count(module: str) -> dict[str, float]:
    """Instructions an operation of each case of this module. Raises CountingFailed."""
    version()
    with tempfile.TemporaryDirectory(prefix="restq-counts-") as folder:
        counts = Path(folder) / "counts"
        tool = ["valgrind", "--quiet", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={counts}"]
        run = subprocess.run(
            [*tool, sys.executable, "-P", "-m", __spec__.name, module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            env=_environment(),
            check=False,
        )
        if run.returncode != 0:
            raise CountingFailed(f"the cases ended with {run.returncode} and said: {run.stderr[-2000:].strip()}")
        dumps = sorted(counts.parent.glob("counts.*"), key=lambda dump: int(dump.suffix[1:]))
        totals = [_total(dump) for dump in dumps]
    done: dict[str, int] = json.loads(run.stdout)
    between = totals[1 : 2 * len(done) : 2]  # of each pair the second: from the beginning of a case to its end
    if len(between) != len(done):
        raise CountingFailed(f"valgrind wrote down {len(totals)} counts for {len(done)} cases, and not two for each")
    return {name: total / done[name] for name, total in zip(done, between, strict=True)}


def _environment() -> dict[str, str]:
    """The same for everybody: what a program finds there changes what it does."""
    paths = os.pathsep.join(path for path in sys.path if path)
    python = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": paths}
    return {**python, "LC_ALL": "C.UTF-8", "GLIBC_TUNABLES": PLAIN_LIBC}


def _total(dump: Path) -> int:
    found = _TOTAL.search(dump.read_text(encoding="utf-8"))
    if found is None:
        raise CountingFailed("valgrind wrote down something else than counts")
    return int(found[1])


class _Marks:
    """Tells callgrind where to begin and where to end."""

    def __enter__(self) -> None:
        os.getppid()

    def __exit__(self, *error: object) -> None:
        os.getppid()


def _run(module: str) -> None:
    """Run the cases, and say how many operations each has done."""
    gc.disable()  # as in a shard
    cases: dict[str, Case] = importlib.import_module(module).CASES
    done = {}
    for name, case in cases.items():
        case(WARM_UP_TIMES, contextlib.nullcontext())
        done[name] = case(TIMES, _Marks())
    print(json.dumps(done))


if __name__ == "__main__":
    _run(sys.argv[1])
