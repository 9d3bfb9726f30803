"""`restq config`: what is configured, and by what."""

from __future__ import annotations

from typing import Any

import click

from restq.cli import DONE, output
from restq.cli.options import configured, json_option
from restq.config import OPTIONS


@click.group("config")
def config_() -> None:
    """Look at the configuration.

    It is read from /etc/restq.conf, ~/.restq.conf, environment variables such as RESTQ_CLIENT_URI, and flags,
    each over the one before.

    \b
    restq config show
    """


@config_.command("show")
@json_option
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> int:
    """Print every option, its value, and the source that it came from.

    \b
    restq config show
    RESTQ_CLIENT_COUNT=1 restq config show --json
    """
    config = configured(ctx)
    if as_json:
        table = {path: {"value": config[path], "source": config.sources[path]} for path in OPTIONS}
        output.write_json(table)
        return DONE
    texts = {path: _shown(config[path]) for path in OPTIONS}
    path_width, value_width = max(map(len, texts)), max(map(len, texts.values()))
    for path, text in texts.items():
        output.write(f"{path:{path_width}}  {text:{value_width}}  {config.sources[path]}")
    return DONE


def _shown(value: Any) -> str:
    """The value as a configuration file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return str(value)
