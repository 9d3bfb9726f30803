"""The options that commands share, and the client that they lead to.

An option that stands in the configuration is not checked here: it goes into the configuration as its last
and strongest source, so that a flag, a variable and a file are judged by one rule. It may stand before the
command as well as after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from restq.client import Realm, Realms
from restq.client.connection import Requester
from restq.config import OPTIONS, Config, load_default

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def setting(
    path: str, *names: str, metavar: str | None = None, is_flag: bool = False
) -> Callable[[Decorated], Decorated]:
    """A click option that sets the configured value at `path`; the command takes no parameter for it."""
    option = OPTIONS[path]

    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.find_root().obj[path] = value

    return click.option(
        *names,
        metavar=metavar,
        is_flag=is_flag,
        default=None,
        callback=keep,
        expose_value=False,
        help=f"{option.doc[0].upper()}{option.doc[1:]}. Configured as {path}.",
    )


realm_option = setting("cli.realm", "-r", "--realm", metavar="NAME")
uri_option = setting("client.uri", "--uri", metavar="URI")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with all that the text shows.")
null_option = click.option(
    "-0", "--null", is_flag=True, help="NUL in place of newline ends each argument, so that it may hold newlines."
)


def configured(ctx: click.Context) -> Config:
    """The configuration with the flags of this command line over it."""
    return load_default(ctx.find_root().obj)


def open_realm(config: Config) -> Realm:
    """The client of the configured realm. Use it in a `with`."""
    return Realm(config.cli.realm, requester=_requester(config, os.environ), config=config)


def open_realms(config: Config) -> Realms:
    """The client of the configured server. Use it in a `with`."""
    return Realms(requester=_requester(config, os.environ), config=config)


def argument_text(value: str) -> str:
    """An argument as UTF-8 reads it, whatever the locale: it has to come out of another machine's `pull` the same."""
    try:
        return os.fsencode(value).decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"an argument is not UTF-8: {value!a}") from error


def joined(what: str, words: Sequence[str]) -> str:
    """The X of `arg X..` or `tag X`: an argument may be several words, as in `add`; a tag is one."""
    if what == "tag" and len(words) > 1:
        raise click.UsageError(f"one tag, not {len(words)}: put quotes around it if it holds spaces")
    return argument_text(" ".join(words))


def _requester(config: Config, environ: Mapping[str, str]) -> Requester | None:
    """The quick requester where it suffices; None, which is requests, for all else, such as TLS or a proxy."""
    proxied = any(name.lower() in ("http_proxy", "all_proxy") for name in environ)
    uri = config.client.uri
    if proxied or not uri.startswith("http://") or "@" in uri or not uri.isascii():
        return None
    from restq.cli.requester import QuickRequester

    return QuickRequester()
