"""Imports one module and prints, as a JSON list, what restq itself did while it was imported.

Run in a fresh interpreter: `python tests/import_probe.py restq.names`. Python's audit events tell of files,
sockets, processes and threads; the environment and the making of event loops are wrapped, as they have no event.
What a library does while *it* is imported is the library's affair: blamed is a module of restq only, which is the
nearest one on the stack before the import system. Click's decorators ask gettext for the user's language: allowed.
"""

from __future__ import annotations

import asyncio
import gettext
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = str(ROOT / "restq") + os.sep
EVENTS = ("open", "os.", "shutil.", "socket.", "sqlite3.connect", "subprocess.Popen", "tempfile.", "_thread.")
LOOPS = ("get_event_loop", "new_event_loop", "run", "set_event_loop")

done: list[str] = []


def blamed() -> str | None:
    """The file and line of restq that is at work, or None when a library or the import system is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(SOURCE):
            return f"restq/{name.removeprefix(SOURCE)}:{frame.f_lineno}"
        if name.startswith("<frozen importlib") or name == gettext.__file__:
            return None
        frame = frame.f_back
    return None


def note(what: str) -> None:
    where = blamed()
    if where is not None:
        done.append(f"{where} {what}")


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(EVENTS):
        note(f"{event} {arguments[:1]}")


class Environment(os._Environ[str]):
    """os.environ, with a note of each reading."""

    def __getitem__(self, key: str) -> str:
        note(f"reads the environment: {key}")
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        note("reads the whole environment")
        return super().__iter__()


def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        note(f"asyncio.{name}")
        return function(*arguments, **options)

    return wrapper


def main(module: str) -> None:
    sys.path[0] = str(ROOT)
    os.environ.__class__ = Environment
    for name in LOOPS:
        wrapper = noted(name, getattr(asyncio, name))
        setattr(asyncio, name, wrapper)
        setattr(asyncio.events, name, wrapper)
    sys.addaudithook(audit)
    importlib.import_module(module)
    print(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1])
