"""The command line as a whole: the table of commands, and what becomes of an error."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

import click

import restq
from restq import errors
from restq.cli import FAILED, INTERRUPTED, NOTHING_FOUND, UNREACHABLE, WRONG_USAGE, output
from restq.cli.options import realm_option, uri_option
from restq.config import ConfigError

# Command -> the module that has it, as a function of its name (with an underscore at its end).
COMMANDS: Mapping[str, str] = {
    "web": "restq.cli.web",
    "add": "restq.cli.add",
    "pull": "restq.cli.pull",
    "ack": "restq.cli.leases",
    "nack": "restq.cli.leases",
    "release": "restq.cli.leases",
    "extend": "restq.cli.leases",
    "work": "restq.cli.work",
    "remove": "restq.cli.remove",
    "cancel": "restq.cli.operate",
    "list": "restq.cli.listing",
    "status": "restq.cli.show",
    "get": "restq.cli.show",
    "explain": "restq.cli.explain",
    "wait": "restq.cli.explain",
    "move": "restq.cli.operate",
    "clear": "restq.cli.operate",
    "redrive": "restq.cli.operate",
    "pause": "restq.cli.limits",
    "resume": "restq.cli.limits",
    "limit": "restq.cli.limits",
    "configure": "restq.cli.limits",
    "shards": "restq.cli.shards",
    "backup": "restq.cli.backup",
    "check": "restq.cli.check",
    "config": "restq.cli.settings",
}

# The first that fits decides.
EXIT_CODES: Sequence[tuple[type[Exception], int]] = (
    (errors.ServerUnreachable, UNREACHABLE),
    (errors.JobNotFound, NOTHING_FOUND),
    (errors.TagNotFound, NOTHING_FOUND),
    (errors.RealmNotFound, NOTHING_FOUND),
    (errors.QueueNotFound, NOTHING_FOUND),
    (errors.JobNotInQueue, NOTHING_FOUND),
    (errors.FieldInvalid, WRONG_USAGE),
    (errors.FieldMissing, WRONG_USAGE),
    (errors.FieldTypeWrong, WRONG_USAGE),
    (ConfigError, WRONG_USAGE),
    (Exception, FAILED),
)


class Commands(click.Group):
    """A group whose commands are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table: the way a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, loaded now; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), f"{cmd_name}_")
        return command


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Completion of commands and options: put eval "$(_RESTQ_COMPLETE=bash_source restq)" into ~/.bashrc, '
    "or the same with zsh_source or fish_source.",
)
@click.version_option(restq.__version__, message="restq %(version)s")
@realm_option
@uri_option
def root() -> None:
    """Coordinate batches of work over pools of machines.

    \b
    restq web                             start a server on port 8586
    restq add --tags=work "ls -lah"       add an argument, which is the job
    restq pull --count=1                  take one and print it
    restq remove arg "ls -lah"            say that it is done
    restq work                            take one after the other, run it, and say how it ended

    \b
    A worker of your own, on as many machines as you like:
      while job=$(restq pull --count=1 --wait=20 --lease); do
        lease=${job%% *}
        if sh -c -- "${job#* }"; then restq ack "$lease"; else restq nack --exit-code=$? "$lease"; fi
      done

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 nothing found or queue empty,
    4 server unreachable, 130 interrupted.
    """


def run(arguments: Sequence[str] | None) -> int:
    """Run the command line and return the exit code; an error is one sentence on stderr."""
    try:
        code = root.main(arguments, prog_name="restq", standalone_mode=False, obj={})
        output.flush()
        return int(code or 0)
    except click.Abort:
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stdout)
        return WRONG_USAGE
    except click.UsageError as error:
        output.complain(f"{error.format_message()} {_see(error.ctx)}".rstrip())
        return WRONG_USAGE
    except click.ClickException as error:
        output.complain(error.format_message())
        return error.exit_code
    except Exception as error:
        output.complain(_sentence(error))
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def _see(ctx: click.Context | None) -> str:
    return f"(see {ctx.command_path} --help)" if ctx is not None else ""


def _sentence(error: Exception) -> str:
    if isinstance(error, errors.RestqError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # A defect, or a builtin exception that a server of 2013 named.
    return f"{type(error).__name__}: {error.args[0] if error.args else 'no further word'}"
