"""What the commands print: UTF-8 whatever the locale, so that a job is the same on every machine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from restq.errors import RestqError


class OutputClosed(RestqError, OSError):
    """What was to be printed cannot be: nobody reads it, or its disk is full."""

    code = "output_closed"


def check() -> None:
    """Raise OutputClosed if there is nothing to print to. For before a command changes anything."""
    if sys.stdout is None:
        raise OutputClosed("standard output is closed")


def write(text: str, end: str = "\n") -> None:
    """Print the text and its end."""
    check()
    try:
        sys.stdout.buffer.write((text + end).encode(errors="backslashreplace"))
    except OSError as error:
        raise _closed(error) from error


def write_json(value: Any, end: str = "\n") -> None:
    """Print the value as one line of JSON."""
    write(json.dumps(value), end)


def write_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print columns, each as wide as its widest cell; the last one is to the left, all others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        write("  ".join([*aligned, row[-1]]).rstrip())


def flush() -> None:
    """Hand what was printed to whoever reads it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise _closed(error) from error


def complain(sentence: str) -> None:
    """Print a sentence to stderr, as one line with the program's name before it. It may be that nobody reads it."""
    sentence = " ".join(line.strip() for line in sentence.splitlines())
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"restq: {sentence}", file=sys.stderr, flush=True)


def _closed(error: OSError) -> OutputClosed:
    # Python flushes once more when it exits and would complain in its own words.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return OutputClosed(f"standard output: {error.strerror}")
