"""`restq pause`, `resume`, `limit` and `configure`: what holds for a queue, for a tag, or for a whole realm.

What a setting means is the server's to say, and which there are: here, only texts become values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from restq.cli import DONE, output
from restq.cli.options import configured, joined, json_option, open_realm, realm_option, uri_option
from restq.cli.values import or_none, queue_id, read_seconds
from restq.client import Realm
from restq.errors import QueueNotFound
from restq.names import QueueId

LIMITS = ("max_leased", "rate", "paused")

kind_argument = click.argument("kind", type=click.Choice(["queue", "tag"]), metavar="queue|tag")
name_argument = click.argument("name", nargs=-1, required=True, metavar="X")


@click.command("pause")
@kind_argument
@name_argument
@realm_option
@json_option
@uri_option
@click.pass_context
def pause_(ctx: click.Context, kind: str, name: tuple[str, ...], as_json: bool) -> int:
    """Hand out nothing more of a queue, or of a tag.

    It lasts until `resume`. What is leased stays leased, and can be acked as ever. Both may be paused before there
    is a job.

    \b
    restq pause queue 3
    restq pause tag nightly
    """
    return _set_paused(ctx, kind, _named(kind, name), True, as_json)


@click.command("resume")
@kind_argument
@name_argument
@realm_option
@json_option
@uri_option
@click.pass_context
def resume_(ctx: click.Context, kind: str, name: tuple[str, ...], as_json: bool) -> int:
    """Hand out again what was paused.

    Exit code 3: there is no such queue.

    \b
    restq resume queue 3
    restq resume tag nightly
    """
    return _set_paused(ctx, kind, _named(kind, name), False, as_json)


@click.command("limit")
@kind_argument
@name_argument
@click.option("--max-leased", type=or_none(int), metavar="N|none", help="Jobs that may be leased at a time.")
@click.option("--rate", type=or_none(float), metavar="R|none", help="Jobs handed out in a second; 0.1 is 6 a minute.")
@realm_option
@json_option
@uri_option
@click.pass_context
def limit_(
    ctx: click.Context,
    kind: str,
    name: tuple[str, ...],
    max_leased: tuple[Any] | None,
    rate: tuple[Any] | None,
    as_json: bool,
) -> int:
    """Limit what is handed out of a queue, or of a tag.

    A tag's limits hold over all queues of the realm. `none` takes a limit away; without an option the limits are
    only shown. Exit code 3: there is no such queue to show.

    \b
    restq limit queue 3 --max-leased=10
    restq limit tag example.com --rate=0.5 --max-leased=2
    restq limit tag example.com --rate=none
    restq limit tag example.com
    """
    given = {"max_leased": max_leased, "rate": rate}
    changes = {setting: value[0] for setting, value in given.items() if value is not None}
    named = _named(kind, name)
    with open_realm(configured(ctx)) as realm:
        settings = _settings(realm, kind, named, changes)
    if as_json:
        output.write_json({kind: named, "settings": settings})
    else:
        output.write(f"Limits of {kind} {named}:")
        _write_settings({setting: settings.get(setting) for setting in LIMITS})
    return DONE


@click.command("configure")
@click.argument("words", nargs=-1, metavar="[queue|tag X] [NAME=VALUE...]")
@realm_option
@json_option
@uri_option
@click.pass_context
def configure_(ctx: click.Context, words: tuple[str, ...], as_json: bool) -> int:
    """Set and show the settings of a realm, queue or tag.

    It is the realm where neither a queue nor a tag is named. A value is a number, a time such as 10m, true or
    false, or `none`, which takes the setting away. What is not named stays. With a realm: default_lease_time,
    max_attempts, crash_limit, backoff, max_jobs, max_bytes, keep_done (seconds and count). With a queue:
    lease_time, max_attempts, backoff (base, factor, max, jitter), max_leased, rate, paused; a queue is made if need
    be. With a tag: max_leased, rate, paused.

    \b
    restq configure
    restq configure max_attempts=5 backoff.base=10s backoff.max=1h
    restq configure keep_done.seconds=7d keep_done.count=10000
    restq configure queue 3 lease_time=30m max_attempts=none
    """
    kind, name = None, None
    if words and words[0] in ("queue", "tag"):
        kind, *words_left = words
        if not words_left or "=" in words_left[0]:
            raise click.UsageError(f"which {kind}?")
        named, *changes = words_left
        name = _named(kind, [named])
    else:
        changes = list(words)
    with open_realm(configured(ctx)) as realm:
        whole, parts = _read_changes(changes)
        settings = _settings(realm, kind, name, whole | _completed(realm, kind, name, parts))
    shown = realm.name if name is None else name
    if as_json:
        output.write_json({kind or "realm": shown, "settings": settings})
    else:
        output.write(f"Settings of {kind or 'realm'} {shown}:")
        _write_settings(settings)
    return DONE


def _named(kind: str, words: Sequence[str]) -> QueueId:
    """The queue's id or the tag that the words name."""
    name = joined(kind, words)
    return queue_id(name) if kind == "queue" else name


def _set_paused(ctx: click.Context, kind: str, name: QueueId, paused: bool, as_json: bool) -> int:
    with open_realm(configured(ctx)) as realm:
        if kind == "queue" and not paused:
            realm.get_queue(name)  # a slip of the pen must not make a queue
        settings = _settings(realm, kind, name, {"paused": paused})
    if as_json:
        output.write_json({kind: name, "settings": settings})
    else:
        output.write(f"{'paused' if paused else 'resumed'} {kind} {name}")
    return DONE


def _settings(realm: Realm, kind: str | None, name: QueueId | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Change the settings of a queue, a tag or the realm, and return all of them; without changes, only look."""
    if kind is None or name is None:
        return realm.configure(**changes) if changes else realm.get_config()
    if kind == "queue":
        return realm.configure_queue(name, **changes) if changes else realm.get_queue(name)["settings"]
    return realm.configure_tag(str(name), **changes) if changes else realm.get_tag(str(name))["settings"]


def _read_changes(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that `max_attempts=5 backoff.base=10s` says: as a whole, and in parts."""
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{word!a} is not NAME=VALUE")
        above, dot, part = name.partition(".")
        if dot:
            parts.setdefault(above, {})[part] = _read_value(text)
        else:
            whole[name] = _read_value(text)
    if both := whole.keys() & parts.keys():
        raise click.UsageError(f"{min(both)} is given both as a whole and in parts")
    return whole, parts


def _completed(
    realm: Realm, kind: str | None, name: QueueId | None, parts: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The settings that are given in parts, with their other parts as they are: the server takes such a one whole."""
    if not parts:
        return {}
    try:
        known = _settings(realm, kind, name, {})
    except QueueNotFound:  # it is yet to be made
        known = {}
    merged = {above: (known.get(above) or {}) | said for above, said in parts.items()}
    return {above: {part: value for part, value in said.items() if value is not None} for above, said in merged.items()}


def _read_value(text: str) -> Any:
    """A time, a JSON value, or None; a text that is none of these, for the server to refuse."""
    if text == "none":
        return None
    seconds = read_seconds(text)
    if seconds is not None:
        return seconds
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _write_settings(settings: dict[str, Any]) -> None:
    """Print a name and its value a line, as `configure` takes them."""
    shown: dict[str, Any] = {}
    for name, value in settings.items():
        shown |= (
            {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        output.write(f"{name:{width}}  {'none' if value is None else json.dumps(value)}")
