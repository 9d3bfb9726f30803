"""How the commands read values: seconds with a unit, instants, lists with commas, and `none` for no limit.

Each function is the `type` of a click option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from restq import names

_SECONDS = re.compile(r"([0-9]*\.?[0-9]+|[0-9]+\.)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """A time as sleep(1) takes it: 20, 1.5, 30s, 5m, 2h, 7d."""
    found = read_seconds(text)
    if found is None:
        raise click.BadParameter(f"{text!a} is no time such as 20, 1.5, 30s, 5m, 2h or 7d.")
    return found


def read_seconds(text: str) -> float | None:
    """The seconds that the text says, whole ones as an integer; None where it says none."""
    found = _SECONDS.fullmatch(text)
    if found is None:
        return None
    value = float(found[1]) * _UNITS[found[2]]
    return int(value) if value.is_integer() else value


def instant(text: str) -> float:
    """A time in seconds since the epoch; or a day or a time in ISO 8601, in local time unless it has a zone."""
    from datetime import datetime  # only where one is given

    try:
        value = float(text)
    except ValueError:
        try:
            value = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            value = math.nan
    if not math.isfinite(value):
        raise click.BadParameter(f"{text!a} is no time such as 2031-05-01T06:30, or seconds since the epoch.")
    return value


def listed(text: str) -> Sequence[str]:
    """Text with commas between the names: a,b. At least one of them."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise click.BadParameter(f"{text!a} is no list such as a,b.")
    return found


def or_none(number: Callable[[str], float]) -> Callable[[str], tuple[float | None]]:
    """A number, or `none`, which takes a limit away. In a tuple, as None is an option that was not given."""

    def read(text: str) -> tuple[float | None]:
        if text == "none":
            return (None,)
        try:
            return (number(text),)
        except ValueError:
            kind = "whole number" if number is int else "number"
            raise click.BadParameter(f"{text!a} is neither a {kind} nor none.") from None

    return read


def queue_id(value: Any) -> names.QueueId:
    """The queue id that an argument says. QueueIdInvalid where it can be none."""
    return names.queue_id(value, "queue")
