"""What the documents show is what happens: the README's sessions and the examples in the commands' help are run."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from conftest import ROOT, StartServer

from restq.cli.root import COMMANDS, root

README = ROOT / "README.rst"
# What differs from run to run: seconds since a check-out, instants, the machine.
_VARYING = re.compile(
    r"\b\d+\.\d\d$|\b\d{10}\.\d+\b|\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b|(?<=\"worker\": )\"[^\"]*\"", re.MULTILINE
)
# A session shows these, and uses them in later commands.
_LEASE = re.compile(r"(?<![-\w])\d+-\d+-[0-9a-f]{13}(?![-\w])")


class Session(NamedTuple):
    """Commands that the README shows below one heading, each with what it prints."""

    heading: str
    commands: list[tuple[str, str]]


def sessions() -> list[Session]:
    """The shell sessions of the README. A command goes on in lines that begin with `>`, as a shell has it."""
    parts = re.split(r"^(\S[^\n]*)\n-+\n", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [Session(heading, list(_commands(text))) for heading, text in zip(parts[1::2], parts[2::2], strict=True)]
    return [session for session in found if session.commands]


def _commands(text: str) -> Iterator[tuple[str, str]]:
    for block in re.findall(r"^    \$ .*(?:\n    .*)*", text, re.MULTILINE):
        for shown in re.split(r"^    \$ ", block, flags=re.MULTILINE)[1:]:
            lines = shown.splitlines()
            last = next((at for at, line in enumerate(lines[1:]) if not line.startswith("    > ")), len(lines) - 1)
            command = [lines[0], *(line[6:] for line in lines[1 : last + 1])]
            yield "\n".join(command), "".join(f"{line[4:]}\n" for line in lines[last + 1 :])


def as_always(printed: str) -> str:
    """What was printed, without what differs from run to run."""
    return _LEASE.sub("LEASE", _VARYING.sub("VARYING", printed))


def help_examples() -> Iterator[list[str]]:
    """The command lines in the help of all commands, without what they are piped into."""
    ctx = click.Context(root)
    for text in [root.help, *(getattr(root.get_command(ctx, name), "help", None) for name in COMMANDS)]:
        for line in (text or "").splitlines():
            example = re.match(r"\s*(?:\w.*\| )?(restq .*?)(?:  +.*| \|.*)?$", line)
            if example and "{" not in line:
                yield shlex.split(example[1])


@pytest.fixture
def shell(start_server: StartServer, tmp_path: Path) -> dict[str, str]:
    """An environment whose `restq` is this one, configured for a server of its own."""
    script = tmp_path / "bin" / "restq"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m restq "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    # In C, programs say why they failed in English.
    return {**os.environ, "PATH": path, "RESTQ_CLIENT_URI": start_server().uri, "LC_ALL": "C"}


@pytest.mark.parametrize("session", sessions(), ids=lambda session: session.heading)
def test_run_shell_session_of_readme_prints_what_it_shows(
    shell: dict[str, str], tmp_path: Path, session: Session
) -> None:
    assert shutil.which("curl"), "the examples need curl: apt-get install curl"
    work = tmp_path / "work"
    work.mkdir()
    leases: dict[str, str] = {}  # the ids that were printed, by those that are shown
    for command, expected in session.commands:
        here = command.replace("http://localhost:8586/", shell["RESTQ_CLIENT_URI"])
        here = _LEASE.sub(lambda shown: leases.get(shown[0], shown[0]), here)
        outcome = subprocess.run(
            ["sh", "-c", here],
            cwd=work,
            env=shell,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        # curl prints no newline after a body; the README does.
        printed = outcome.stdout if outcome.stdout.endswith("\n") or not outcome.stdout else outcome.stdout + "\n"
        assert as_always(printed) == as_always(expected), command
        leases.update(zip(_LEASE.findall(expected), _LEASE.findall(printed), strict=True))


def test_find_sessions_of_readme_finds_those_of_a_new_user() -> None:
    found = {session.heading: len(session.commands) for session in sessions()}
    assert found["From the shell"] >= 20
    assert found["Over HTTP"] >= 10


def test_run_python_session_of_readme_prints_what_it_shows(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTQ_CLIENT_URI", start_server().uri)
    test = doctest.DocTestParser().get_doctest(README.read_text(encoding="utf-8"), {}, "README", str(README), 0)
    assert len(test.examples) >= 10
    reported: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=reported.append)
    assert result.failed == 0, "".join(reported)


def test_parse_examples_in_help_accepts_every_one() -> None:
    examples = list(help_examples())
    assert {example[1] for example in examples} >= set(COMMANDS)
    for example in examples:
        with click.Context(root, obj={}) as ctx:
            command: click.Command | None = root
            arguments = example[1:]
            while isinstance(command, click.Group) and arguments:
                command = command.get_command(ctx, arguments.pop(0))
            assert command is not None, example
            command.make_context(example[1], arguments, parent=ctx)
