"""The shape of the code: who may import whom, what an import may do, how long a module and a function may be.

A new module needs a row in ARROWS. Widen a row only when the shape itself is to change.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tests" / "import_probe.py"
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50

# Module -> the modules that it may import, both as patterns and without the `restq.` before them. The first row
# that fits counts. Imports inside of functions and under TYPE_CHECKING count as well. `restq` itself: its version.
ARROWS: dict[str, str] = {
    "restq": "client",
    "__main__": "cli",
    "errors": "",
    "names": "errors",
    "config": "errors kinds",
    "kinds": "",
    "memory": "",
    "data_dir": "",
    "bodies": "errors names",
    "protocol": "errors",
    "placement": "",
    "routes": "errors",
    "child": "",
    "loop": "",
    "pipe": "errors protocol",
    "web": "web.*",
    "web.*": "restq bodies child errors loop memory names pipe placement protocol routes web web.*",
    "supervisor": "child config data_dir errors shards.relocation shards.store",
    "backup": "data_dir errors pipe shards.wal shards.witness",
    "check": "data_dir errors shards shards.changes shards.checksums shards.schema shards.wal shards.witness",
    "client": "client.*",
    "client.*": "restq client.* config errors names routes",
    "aio": "aio.*",
    "aio.*": "restq aio.* client.* config errors names",
    "cli": "cli.*",
    "cli.*": "restq backup check cli cli.* client client.* config errors names supervisor",
    "shards": "",
    # The core, from what knows least to what knows most.
    "shards.heap": "",
    "shards.data": "bodies errors",
    "shards.changes": "names shards.data",
    "shards.settings": "",
    "shards.gates": "shards.queue shards.settings",  # of the queue, the types alone
    "shards.job": "names shards.changes shards.data shards.gates shards.queue",  # of the queue, the types alone
    "shards.queue": "names shards.gates shards.heap shards.job shards.roll shards.settings",
    "shards.agenda": "shards.heap shards.job",
    "shards.roll": "shards.job",
    "shards.renumbering": "",
    "shards.tags": "shards.gates shards.job shards.roll",
    # Beside the realm, and of it the types alone.
    "shards.invariants": (
        "names shards.finishing shards.limits shards.gates shards.heap shards.job shards.queue shards.realm"
    ),
    "shards.rows": "shards.changes shards.data shards.gates shards.job shards.queue shards.realm shards.settings",
    "shards.limits": "shards.gates shards.job shards.queue shards.realm shards.rows shards.settings",
    "shards.endings": "shards.changes shards.job shards.realm",
    "shards.bounds": "errors names shards.adding shards.data shards.realm",  # of the last two, the types alone
    "shards.adding": (
        "errors names shards.bounds shards.data shards.endings shards.job shards.limits shards.queue shards.realm"
    ),
    "shards.leasing": "names shards.endings shards.heap shards.job shards.queue shards.realm shards.roll",
    "shards.finishing": "errors shards.changes shards.endings shards.job shards.limits shards.realm",
    "shards.operating": "errors names shards.endings shards.job shards.realm",
    "shards.realm": (
        "errors names shards.agenda shards.bounds shards.changes shards.data shards.endings shards.events shards.gates"
        " shards.heap shards.invariants shards.job shards.limits shards.queue shards.renumbering shards.roll"
        " shards.rows shards.settings shards.tags"
    ),
    "shards.sweeps": (
        "errors names shards.changes shards.job shards.leasing shards.limits shards.operating shards.queue shards.realm"
    ),
    "shards.loader": (
        "shards.changes shards.data shards.gates shards.job shards.limits shards.queue shards.realm"
        " shards.renumbering shards.settings shards.store shards.tags"
    ),
    # Around it: bodies in, replies out; what is durable; the turn and the loop.
    "shards.archive": "shards.changes",
    "shards.configuring": "bodies errors shards.settings",
    "shards.listing": (
        "errors names shards.archive shards.configuring shards.gates shards.job shards.limits shards.queue"
        " shards.realm shards.settings"
    ),
    "shards.new_jobs": "bodies errors names shards.adding shards.data",
    "shards.commands.call": "shards.archive shards.data shards.job shards.realm",
    "shards.commands*": (
        "bodies errors names shards.adding shards.changes shards.commands.* shards.configuring shards.data"
        " shards.endings"
        " shards.finishing shards.job shards.leasing shards.limits shards.listing shards.new_jobs shards.operating"
        " shards.realm"
        " shards.settings shards.sweeps"
    ),
    "shards.store": "errors shards.changes shards.data",
    "shards.reserve": "shards.store",
    "shards.wal": "",
    "shards.witness": "",
    "shards.schema": "",
    "shards.checksums": "shards.changes",
    "shards.removal": "shards.changes shards.store",
    "shards.sound_rows": "errors shards.changes shards.checksums shards.store",
    "shards.*_store": (
        "data_dir errors shards shards.changes shards.checksums shards.data shards.removal shards.renumbering"
        " shards.reserve shards.schema shards.sound_rows shards.store shards.wal shards.witness"
    ),
    "shards.stats": "",
    "shards.moving": (
        "errors pipe shards.actor shards.changes shards.data shards.loader shards.realm shards.renumbering"
        " shards.replies shards.rows shards.store"
    ),
    "shards.relocation": (
        "data_dir errors placement shards.changes shards.renumbering shards.reserve shards.store shards.*_store"
    ),
    "shards.claims": "errors",
    "shards.replies": "errors shards.actor shards.changes shards.claims shards.commands.call",
    "shards.actor": "errors protocol shards.commands.call shards.realm",
    "shards.room": "errors shards.actor shards.changes shards.commands shards.store",
    "shards.several": (
        "placement protocol shards.actor shards.commands shards.commands.call shards.internal shards.moving"
        " shards.realm shards.replies shards.shard"
    ),
    "shards.waiting": "shards.actor shards.commands.call shards.heap",
    "shards.waking": (
        "errors protocol shards.actor shards.archive shards.commands.call shards.leasing shards.realm shards.replies"
        " shards.waiting"
    ),
    "shards.events": "names",
    "shards.mailboxes": "shards.actor",
    "shards.chores": "shards.archive shards.changes shards.realm shards.replies",
    "shards.internal": "protocol shards.actor shards.commands.call shards.events shards.job shards.realm shards.shard",
    "shards.tasks": (
        "errors shards.actor shards.agenda shards.changes shards.commands shards.commands.* shards.endings shards.realm"
        " shards.room shards.shard shards.store shards.sweeps"
    ),
    "shards.moves": (
        "bodies errors placement protocol shards.actor shards.changes shards.commands.call shards.realm shards.shard"
    ),
    "shards.shard": (
        "errors placement protocol shards.actor shards.agenda shards.archive shards.bounds shards.changes shards.chores"
        " shards.commands shards.commands.call shards.events shards.internal shards.loader shards.mailboxes"
        " shards.moves shards.moving shards.realm shards.replies shards.room shards.several shards.stats shards.store"
        " shards.tasks shards.waking"
    ),
    "shards.full": "errors protocol shards.actor shards.room shards.shard shards.store",
    "shards.process": (
        "child errors loop memory pipe placement protocol shards.actor shards.bounds shards.commands.call shards.full"
        " shards.moving"
        " shards.shard shards.store"
        " shards.*_store"
    ),
}

# These compute and do nothing else: no clock, no file, no socket, no chance.
PURE = (
    "bodies errors kinds names placement protocol shards.actor shards.adding shards.agenda shards.archive shards.bounds"
    " shards.changes"
    " shards.commands* shards.configuring shards.data shards.endings shards.finishing shards.gates shards.heap"
    " shards.invariants shards.job shards.leasing shards.limits shards.listing shards.loader shards.new_jobs"
    " shards.operating shards.queue shards.realm shards.replies shards.roll shards.rows shards.settings shards.several"
    " shards.sweeps shards.tags shards.waiting shards.waking"
)
IMPURE = frozenset(
    "asyncio concurrent datetime io logging multiprocessing os pathlib random secrets select selectors signal socket"
    " sqlite3 subprocess tempfile threading time tornado uuid uvloop".split()
)


def modules() -> dict[str, Path]:
    """Every module of restq by its dotted name."""
    found = {}
    for path in sorted((ROOT / "restq").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
each_module = pytest.mark.parametrize("module", MODULES)


def fits(module: str, patterns: str) -> bool:
    return any(fnmatchcase(module.removeprefix("restq."), pattern) for pattern in patterns.split())


def imports(module: str) -> Iterator[tuple[str, int]]:
    """The module that each import of `module` names, with its line: of this package by full name, or as written."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, source] if source else above)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield (inner if inner in MODULES else source), node.lineno


@each_module
def test_import_of_restq_module_stands_in_the_table(module: str) -> None:
    rows = [allowed for pattern, allowed in ARROWS.items() if fits(module, pattern)]
    assert rows, f"{module} has no row in ARROWS: say what it may import"
    wrong = {
        f"line {line}: {module} may not import {target}"
        for target, line in imports(module)
        if target.partition(".")[0] == "restq" and target != module and not fits(target, rows[0])
    }
    assert not wrong


@pytest.mark.parametrize("module", [module for module in MODULES if fits(module, PURE)])
def test_import_of_clock_files_or_network_is_not_in_pure_modules(module: str) -> None:
    wrong = [f"line {line}: {target}" for target, line in imports(module) if target.partition(".")[0] in IMPURE]
    assert not wrong


@each_module
def test_import_in_fresh_interpreter_does_nothing(module: str) -> None:
    run = subprocess.run(
        [sys.executable, str(PROBE), module], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


def test_import_probe_of_module_that_acts_names_each_act(tmp_path: Path) -> None:
    """The probe itself: without this test, one that sees nothing would look like one that finds nothing."""
    (tmp_path / "restq").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / PROBE.name).write_text(PROBE.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "restq" / "__init__.py").write_text(
        "import asyncio, os, socket\n"
        "from pathlib import Path\n"
        "os.environ.get('HOME')\n"
        "os.getenv('PATH')\n"
        "'HOME' in os.environ\n"
        "Path(__file__).read_text()\n"
        "socket.socket().close()\n"
        "asyncio.new_event_loop().close()\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(tmp_path / "tests" / PROBE.name), "restq"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = {int(act.split(":")[1].split()[0]) for act in json.loads(run.stdout)}
    assert lines == {3, 4, 5, 6, 7, 8}


@each_module
def test_size_of_module_and_functions_is_within_limits(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MODULE_LINES_MAX
    long = [
        f"line {node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long
