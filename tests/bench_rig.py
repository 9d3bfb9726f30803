"""A command of the bench, run as its users run it, with data directories and figures of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def said_by(module: str, options: str, home: Path) -> str:
    """What it prints. It ends well, and leaves nothing behind where its servers had their data."""
    # Not below pytest's own directories: sockets allow no path as long as those.
    with tempfile.TemporaryDirectory() as data_root:
        run = subprocess.run(
            [sys.executable, "-m", module, *options.split(), "--data-root", data_root],
            cwd=ROOT,
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert os.listdir(data_root) == []
    return run.stdout


def figures_of(module: str, options: str, home: Path) -> tuple[dict[str, Any], str]:
    """The JSON that it writes, and what it prints."""
    file = home / "figures.json"
    said = said_by(module, f"{options} --json {file}", home)
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return written, said
