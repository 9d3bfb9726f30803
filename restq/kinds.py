"""What a configured value may be, kind by kind: (value, whether it is text out of the environment) -> the value to use.

TypeError or ValueError where it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _read_boolean(value: Any, from_text: bool) -> bool:
    if from_text and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_integer(value: Any, from_text: bool) -> int:
    if from_text and _is_decimal(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _read_number(value: Any, from_text: bool) -> float:
    if from_text:
        value = int(value) if _is_decimal(value) else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return value


def _read_text(value: Any, from_text: bool) -> str:
    if not isinstance(value, str):
        raise TypeError
    if not value or not value.isprintable():
        raise ValueError
    return value


def _read_uri(value: Any, from_text: bool) -> str:
    from urllib.parse import urlsplit

    text = _read_text(value, from_text)
    parts = urlsplit(text)  # ValueError for brackets that do not match, and `.port` for one that is none
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError
    parts.hostname.encode("idna")  # UnicodeError, which is one, for a label that is empty or too long
    if any(mark in text for mark in " ?#"):
        raise ValueError
    return text if text.endswith("/") else text + "/"


def _read_queue_id(value: Any, from_text: bool) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = _read_text(value, from_text)
    return int(text) if _is_decimal(text) else text


def _read_tags(value: Any, from_text: bool) -> tuple[str, ...]:
    """A list, or text with commas between the tags; the text may be empty."""
    if isinstance(value, str):
        return tuple(tag.strip() for tag in value.split(",") if tag.strip())
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_read_text(tag, from_text) for tag in value)


KINDS: Mapping[str, tuple[str, Callable[[Any, bool], Any]]] = {
    "boolean": ("true or false (in the environment also yes, no, on, off, 1, 0)", _read_boolean),
    "integer": ("a whole number", _read_integer),
    "number": ("a number", _read_number),
    "text": ("text", _read_text),
    "path": ("a path", _read_text),
    "uri": ("an address such as http://localhost:8586/", _read_uri),
    "queue id": ("a queue id: a whole number or text", _read_queue_id),
    "tags": ("a list of tags, or text such as a,b", _read_tags),
}


def _is_decimal(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 40
