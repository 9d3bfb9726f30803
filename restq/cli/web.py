"""`restq web`: start a server."""

from __future__ import annotations

import re

import click

from restq.cli.options import configured, setting

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^:\[\]]*):)?(?P<port>[0-9]+)")


@click.command("web")
@click.argument("address", required=False, metavar="[HOST:PORT|PORT]")
@setting("webapp.shards", "--shards", metavar="N")
@setting("webapp.frontends", "--frontends", metavar="M")
@setting("realms.realms_config_root", "--data-dir", metavar="DIR")
@setting("webapp.quiet", "--quiet", is_flag=True)
@setting("webapp.debug", "--debug", is_flag=True)
@click.pass_context
def web_(ctx: click.Context, address: str | None) -> int:
    """Serve until told to stop, by Ctrl-C or SIGTERM.

    Prints the address once all is ready. Port 0 takes a free one; without HOST it is the configured host.

    \b
    restq web
    restq web 0.0.0.0:8586 --shards=4 --data-dir=/var/lib/restq
    restq web [::1]:8586
    """
    if address is not None:
        host, port = _parsed(address)
        ctx.find_root().obj["webapp.port"] = port
        if host:
            ctx.find_root().obj["webapp.host"] = host
    config = configured(ctx)
    from restq import supervisor  # the whole server: no other command needs it

    code: int = supervisor.serve(config)
    return code


def _parsed(address: str) -> tuple[str, str]:
    """Host, which may be empty, and port."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise click.UsageError(f"{address!r} is not HOST:PORT or PORT (an IPv6 host stands in brackets: [::1]:8586)")
    return (found["host"] or "").strip("[]"), found["port"]
