"""The configuration: what can be set, where each value came from, and nothing of what is done with it.

The sections below are the one table of options: default, kind, unit, limits, flag and a line of
documentation stand together, and the loader, `restq config show` and the test of `conf/restq.conf` read
them from there. A value is taken from the built-in default, then /etc/restq.conf, ~/.restq.conf, the
environment variable RESTQ_<SECTION>_<KEY> and a flag, each over the one before it. Nothing is ever
written, and only `load_default` looks at the process's own environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from restq.errors import RestqError
from restq.kinds import KINDS

SYSTEM_FILE = "/etc/restq.conf"
USER_FILE = "~/.restq.conf"
VARIABLE_PREFIX = "RESTQ_"
BUILT_IN = "built-in default"
SHOWN_CHARS_MAX = 60


class ConfigError(RestqError, ValueError):
    """A configured value cannot be used. The message names its source, its path, the value and what was expected."""

    code = "config_invalid"
    status = 400
    builtin = ValueError


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _option(
    default: Any,
    kind: str,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    flag: str | None = None,
    default_text: str | None = None,
) -> Any:
    """A field of a section: `kind` is a key of `KINDS`, `default_text` says what a computed default is."""
    table = {"kind": kind, "doc": doc, "unit": unit, "low": low, "high": high, "flag": flag, "text": default_text}
    if callable(default):
        return field(default_factory=default, metadata=table)
    return field(default=default, metadata=table)


@dataclass(frozen=True)
class Webapp:
    """How `restq web` serves."""

    host: str = _option("127.0.0.1", "text", "address to listen on; 0.0.0.0 or :: is every one", flag="HOST:PORT")
    port: int = _option(
        8586, "integer", "port to listen on; 0 takes a free one", unit="TCP port", low=0, high=65535, flag="HOST:PORT"
    )
    debug: bool = _option(False, "boolean", "log every request", flag="--debug")
    quiet: bool = _option(False, "boolean", "log nothing but errors", flag="--quiet")
    shards: int = _option(
        _cores,
        "integer",
        "processes that hold the realms",
        unit="processes",
        low=1,
        high=1024,
        flag="--shards",
        default_text="one for each core",
    )
    frontends: int = _option(
        1, "integer", "processes that speak HTTP", unit="processes", low=1, high=1024, flag="--frontends"
    )
    body_bytes_max: int = _option(33554432, "integer", "largest body of a request", unit="bytes", low=1024, high=2**29)
    shard_jobs_max: int = _option(
        0,
        "integer",
        "most jobs in one shard, of all its realms; 0 is any number",
        unit="jobs",
        low=0,
        high=10**12,
        default_text="no limit",
    )
    shard_memory_max: int = _option(
        0,
        "integer",
        "most memory that the jobs in one shard take; 0 is as much as can be spared",
        unit="bytes",
        low=0,
        high=2**50,
        default_text="what can be spared",
    )


@dataclass(frozen=True)
class Realms:
    """What holds for the realms of a server."""

    default_lease_time: float = _option(
        600, "number", "lease time of a new realm's queues", unit="seconds", low=0, high=1_000_000_000
    )
    realms_config_root: str = _option(
        "~/.restq", "path", "the data directory: all that the server keeps", unit="directory", flag="--data-dir"
    )


@dataclass(frozen=True)
class Cli:
    """What the commands assume where no flag says otherwise."""

    realm: str = _option("default", "text", "realm that the commands speak of", flag="--realm")
    queue_id: int | str = _option(0, "queue id", "queue that `add` adds to", flag="--queue")
    tags: tuple[str, ...] = _option((), "tags", "tags that `add` gives each job", flag="--tags")


@dataclass(frozen=True)
class Client:
    """How the commands and the Python client reach a server."""

    uri: str = _option("http://localhost:8586/", "uri", "the server's address", unit="URI", flag="--uri")
    count: int = _option(5, "integer", "jobs that one pull asks for", unit="jobs", low=1, high=100_000, flag="--count")
    timeout_seconds: float = _option(
        30, "number", "longest wait for the server to connect or answer", unit="seconds", low=0.001, high=86400
    )


@dataclass(frozen=True)
class Config:
    """Every option's value, and in `sources` where it came from, by path such as `webapp.port`."""

    webapp: Webapp = field(default_factory=Webapp)
    realms: Realms = field(default_factory=Realms)
    cli: Cli = field(default_factory=Cli)
    client: Client = field(default_factory=Client)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __getitem__(self, path: str) -> Any:
        """The value at a path such as `webapp.port`; KeyError where there is no such option."""
        option = OPTIONS[path]
        return getattr(getattr(self, option.section), option.key)


@dataclass(frozen=True)
class Option:
    """One row of the table of options."""

    section: str
    key: str
    kind: str
    default: Any
    default_text: str | None
    unit: str
    doc: str
    low: float | None
    high: float | None
    flag: str | None

    @property
    def path(self) -> str:
        """How people and messages name it: `webapp.port`."""
        return f"{self.section}.{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it: `RESTQ_WEBAPP_PORT`."""
        return f"{VARIABLE_PREFIX}{self.section}_{self.key}".upper()

    def read(self, value: Any, source: str, from_text: bool) -> Any:
        """The value to use, or ConfigError. `from_text` for a variable, where all is text; files have types."""
        expected, read = KINDS[self.kind]
        try:
            found = read(value, from_text)
            in_range = (self.low is None or found >= self.low) and (self.high is None or found <= self.high)
        except (TypeError, ValueError, OverflowError):
            in_range = False
        if not in_range:
            limits = "" if self.low is None else f" from {self.low} to {self.high}"
            raise ConfigError(f"{source}: {self.path} is {_shown(value)}, expected {expected}{limits}", self.path)
        return found


def load(flags: Mapping[str, Any], environ: Mapping[str, str], files: Sequence[str]) -> Config:
    """The configuration out of `files` (later over earlier), then `environ`, then `flags`.

    `flags` maps paths such as `webapp.port` to values; None is a flag that was not given. A file that does
    not exist is skipped. Whatever cannot be used is a ConfigError; nothing is corrected silently.
    """
    values = {path: option.default for path, option in OPTIONS.items()}
    sources = dict.fromkeys(OPTIONS, BUILT_IN)
    layers = [*(_from_file(name) for name in files), _from_environ(environ), _from_flags(flags)]
    for layer in layers:
        for option, value, source in layer:
            values[option.path] = value
            sources[option.path] = source
    home = environ.get("HOME") or os.path.expanduser("~")
    values["realms.realms_config_root"] = _expanded(values["realms.realms_config_root"], home)
    sections = {name: cls(**_of_section(name, values)) for name, cls in SECTIONS.items()}
    return Config(**sections, sources=sources)


def load_default(flags: Mapping[str, Any] | None = None) -> Config:
    """The configuration of this process: its two files and its environment, below `flags`."""
    return load(flags or {}, os.environ, (SYSTEM_FILE, os.path.expanduser(USER_FILE)))


# Where values come from: each yields what it holds, read and checked, with the name of its source.
_Found = Iterator[tuple[Option, Any, str]]


def _from_file(name: str) -> _Found:
    for section, keys in _mapping(_parsed(name), name, "the file").items():
        if section not in SECTIONS:
            raise ConfigError(f"{name}: there is no section {_shown(section)}, only {', '.join(SECTIONS)}")
        for key, value in _mapping(keys, name, f"section {section}").items():
            option = OPTIONS.get(f"{section}.{key}")
            if option is None:
                raise ConfigError(f"{name}: there is no option {section}.{key}{_meant(f'{section}.{key}', OPTIONS)}")
            yield option, option.read(value, name, from_text=False), name


def _from_environ(environ: Mapping[str, str]) -> _Found:
    by_variable = {option.variable: option for option in OPTIONS.values()}
    prefixes = tuple(f"{VARIABLE_PREFIX}{section}_".upper() for section in SECTIONS)
    for name, text in environ.items():
        if not name.startswith(prefixes):
            continue  # not ours to judge: RESTQ_HOME may be somebody else's
        if name not in by_variable:
            raise ConfigError(f"{name}: no option has this environment variable{_meant(name, by_variable)}")
        option = by_variable[name]
        yield option, option.read(text, f"environment variable {name}", from_text=True), f"environment variable {name}"


def _from_flags(flags: Mapping[str, Any]) -> _Found:
    for path, value in flags.items():
        if value is not None:
            option = OPTIONS[path]
            source = f"flag {option.flag}"
            yield option, option.read(value, source, from_text=isinstance(value, str)), source


def _parsed(name: str) -> Any:
    """What the YAML file holds; None where there is no such file or nothing in it."""
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{name}: cannot be read: {reason}") from error
    import yaml  # only where there is a file: `restq pull` runs in loops

    try:
        twice = _set_twice(yaml.compose(text, yaml.SafeLoader))
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        if mark := getattr(error, "problem_mark", None):
            reason = f"{getattr(error, 'problem', None)} (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigError(f"{name}: is not YAML: {reason}") from error
    if twice is not None:
        raise ConfigError(f"{name}: {twice}")
    return found


def _set_twice(node: Any, above: str = "") -> str | None:
    """The sentence about a name that stands twice in the file or in a section, of which YAML takes the last."""
    lines: dict[str, int] = {}
    for key, value in node.value if getattr(node, "id", None) == "mapping" else ():
        path, line = f"{above}{key.value}", key.start_mark.line + 1
        if path in lines:
            return f"{_shown(path)} stands there twice, in lines {lines[path]} and {line}"
        lines[path] = line
        if not above and (deeper := _set_twice(value, f"{path}.")):
            return deeper
    return None


def _mapping(value: Any, source: str, what: str) -> Mapping[Any, Any]:
    """The value where it is a mapping; nothing at all, as in a file of comments, is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: {what} is {_shown(value)}, expected a mapping of names to values")
    return value


def _expanded(path: str, home: str) -> str:
    """The path with its leading `~`, if it has one, replaced."""
    if path == "~" or path.startswith("~/"):
        return (home.rstrip("/") + path[1:]) or "/"
    return os.path.expanduser(path)


def _shown(value: Any) -> str:
    """The value as a message may show it: quoted, and not longer than a line."""
    text = "null" if value is None else ascii(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def _meant(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the known name that was probably meant, or nothing."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"; is {near[0]} meant?" if near else ""


SECTIONS: Mapping[str, Callable[..., Any]] = {"webapp": Webapp, "realms": Realms, "cli": Cli, "client": Client}


def _of_section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {option.key: values[option.path] for option in OPTIONS.values() if option.section == section}


def _row(section: str, item: Field[Any]) -> Option:
    table = dict(item.metadata)
    text = table.pop("text")
    default = item.default_factory() if callable(item.default_factory) else item.default
    return Option(section=section, key=item.name, default=default, default_text=text, **table)


OPTIONS: Mapping[str, Option] = {
    row.path: row
    for section, cls in SECTIONS.items()
    for row in (_row(section, item) for item in fields(cls))  # type: ignore[arg-type]
}
