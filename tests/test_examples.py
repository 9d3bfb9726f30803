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

import click
import pytest
from conftest import ROOT, StartServer

from restq.cli.root import COMMANDS, root

README = ROOT / "README.rst"
# What differs from run to run: seconds since a check-out.
_SECONDS = re.compile(r"\b\d+\.\d\d$", re.MULTILINE)


def sessions(heading: str) -> list[tuple[str, str]]:
    """The shell commands below a heading of the README, each with what it prints."""
    text = README.read_text(encoding="utf-8")
    section = re.search(rf"^{heading}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"the README has no section {heading!r}"
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^    \$ .*(?:\n    .*)*", section[1], re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("    $ "):
                found.append((line[6:], ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line[4:] + "\n")
    return found


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
    return {**os.environ, "PATH": path, "RESTQ_CLIENT_URI": start_server().uri}


@pytest.mark.parametrize("heading", ["From the shell", "Over HTTP"])
def test_run_shell_session_of_readme_prints_what_it_shows(shell: dict[str, str], tmp_path: Path, heading: str) -> None:
    found = sessions(heading)
    assert len(found) >= 5
    assert shutil.which("curl"), "the examples need curl: apt-get install curl"
    work = tmp_path / "work"
    work.mkdir()
    for command, expected in found:
        here = command.replace("http://localhost:8586/", shell["RESTQ_CLIENT_URI"])
        outcome = subprocess.run(["sh", "-c", here], cwd=work, env=shell, capture_output=True, text=True, check=False)
        assert outcome.stderr == "", command
        # curl prints no newline after a body; the README does.
        printed = outcome.stdout if outcome.stdout.endswith("\n") or not outcome.stdout else outcome.stdout + "\n"
        assert _SECONDS.sub("SECONDS", printed) == _SECONDS.sub("SECONDS", expected), command


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
