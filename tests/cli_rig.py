"""What the tests of the commands share: a command run in this process, and one run in a process of its own.

A file that wants the fixtures says `cli, run = cli_rig.cli, cli_rig.run`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Server

from restq.cli import main

COMMAND = (sys.executable, "-m", "restq")


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, in a directory of its own: `run("add", "pwd")`, or the line `run("add pwd")`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = main(shlex.split(arguments[0]) if len(arguments) == 1 else arguments)
        captured = capfdbinary.readouterr()
        return Outcome(code, captured.out.decode(), captured.err.decode())

    return call


@pytest.fixture
def cli(run: Run, server: Server, realm_name: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run`, configured for the shared server and a realm of the test's own."""
    monkeypatch.setenv("RESTQ_CLIENT_URI", server.uri)
    monkeypatch.setenv("RESTQ_CLI_REALM", realm_name)
    return run


def process(*arguments: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, check=False, **options)
