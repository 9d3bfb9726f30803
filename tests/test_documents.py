"""README.rst and CHANGELOG.rst: valid, and in step with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.utils import Reporter

import restq
from restq.cli.root import COMMANDS
from restq.config import OPTIONS
from restq.errors import RestqError, ServerUnreachable, StreamUnopened
from restq.routes import REALM_OPERATIONS, ROUTES

ROOT = Path(__file__).resolve().parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst", "docs/stream.rst"])
def test_read_document_with_docutils_reports_nothing(name: str) -> None:
    settings = {"report_level": Reporter.INFO_LEVEL, "halt_level": Reporter.INFO_LEVEL, "_disable_config": True}
    publish_doctree(text(name), settings_overrides=settings)


def test_read_changelog_begins_with_this_version() -> None:
    found = re.search(r"^(\d+\.\d+\.\d+)", text("CHANGELOG.rst"), re.MULTILINE)
    assert found is not None
    assert found[1] == restq.__version__


@pytest.mark.parametrize("path", OPTIONS)
def test_read_readme_has_option_with_default_and_flag(path: str) -> None:
    option = OPTIONS[path]
    row = re.search(rf"^``{re.escape(path)}`` .*$", text("README.rst"), re.MULTILINE)
    assert row is not None, f"the configuration table of README.rst has no {path}"
    default = str(option.default).lower() if isinstance(option.default, bool) else option.default
    shown = option.default_text or ("none" if default == () else f"``{default}``")
    cells = re.split(r" {2,}", row[0])
    assert cells[1] == shown
    assert (option.flag is None) or cells[2] == f"``{option.flag}``"


def test_read_readme_names_only_files_that_exist() -> None:
    named = re.findall(r"^``((?:restq|tests|bench|conf)/[^`]*)``", text("README.rst"), re.MULTILINE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_read_readme_has_every_route_and_no_other() -> None:
    rows = re.findall(r"^``([A-Z]+) (/[^`?]*)", text("README.rst"), re.MULTILINE)
    shown = {f"{method} {re.sub(r'{[^}]*}', '*', path)}" for method, path in rows}
    assert shown == {f"{method} {path}" for path, methods in ROUTES.items() for method in methods}


def test_read_stream_document_has_every_operation_and_no_other() -> None:
    rows = re.findall(
        r"^``(\w+)`` +([a-z_, -]*?) +``([A-Z]+) (/[^`]*)``\n( +data)?", text("docs/stream.rst"), re.MULTILINE
    )
    for operation, params, method, path, more in rows:
        found = REALM_OPERATIONS[operation]
        assert (found.method, ROUTES[re.sub(r"{[^}]*}", "*", path)][method].operation) == (method, operation)
        named = [name for name in (params + more).replace(",", " ").split() if name]
        assert named == [*re.findall(r"{(\w+)}", path)[1:], *found.route.query]
    assert {found[0] for found in rows} == set(REALM_OPERATIONS)


def test_read_readme_has_every_error_code_and_no_other() -> None:
    rows = re.findall(r"^``([a-z_]+)`` +([0-9]{3}) +``(\w+)``", text("README.rst"), re.MULTILINE)
    # What only a client sees is no reply's.
    raised = {kind for kind in _kinds(RestqError) if kind.__module__ == RestqError.__module__}
    raised -= {ServerUnreachable, StreamUnopened}
    assert sorted(rows) == sorted({(kind.code, str(kind.status), kind.builtin.__name__) for kind in raised})


def _kinds(root: type[RestqError]) -> set[type[RestqError]]:
    return {root}.union(*(_kinds(child) for child in root.__subclasses__()))


def test_read_readme_has_every_command_and_no_other() -> None:
    found = re.search(r"^The commands\n~+\n(.*?)^The exit code", text("README.rst"), re.MULTILINE | re.DOTALL)
    assert found is not None
    rows = re.findall(r"^(``.*?)  ", found[1], re.MULTILINE)
    assert sorted(re.findall(r"``([a-z]+)``", " ".join(rows))) == sorted(COMMANDS)
