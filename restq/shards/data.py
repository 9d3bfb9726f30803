"""A job's data: JSON text kept as the bytes that came, what may be in it, and when two texts say the same.

Pure. Data above `INLINE_BYTES_MAX` lives in the file only; memory keeps a `Large` in its place, whose digest
answers the one question a realm asks of data: is this the same?
"""

from __future__ import annotations

import hashlib
from typing import Any, Self

import msgspec

from restq.bodies import DEPTH_MAX
from restq.errors import BodyMalformed

INLINE_BYTES_MAX = 4096

_SIZE_BYTES = 6

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode
_pack = msgspec.msgpack.Encoder().encode


class Large(bytes):
    """Stands for data that lives in the file: its digest and its size, in one object of 80 bytes, not three of 200."""

    __slots__ = ()

    def __new__(cls, digest: str, size: int) -> Self:
        """`digest` in hexadecimal digits, `size` in bytes."""
        return super().__new__(cls, bytes.fromhex(digest) + size.to_bytes(_SIZE_BYTES))

    @property
    def digest(self) -> str:
        """What tells whether other data are the same."""
        return self[:-_SIZE_BYTES].hex()

    @property
    def size(self) -> int:
        """The length of the data."""
        return int.from_bytes(self[-_SIZE_BYTES:])


def large(text: bytes) -> Large:
    """What memory keeps of data above `INLINE_BYTES_MAX`."""
    return Large(_digest(text), len(text))


def same(old: bytes | Large | None, new: bytes) -> bool:
    """Whether both say the same value: key order, white space and the way a number is written don't count.

    `true` is not `1`; `1` is `1.0`. No data (None) is the same as no text.
    """
    if isinstance(old, Large):
        return old.digest == _digest(new)
    return old is not None and (old == new or _canonical(old) == _canonical(new))


def check(text: bytes, field: str) -> None:
    """Refuse JSON that restq does not carry: integers beyond 64 bits, depth over 64, lone surrogates, NaN.

    Raises BodyMalformed, which names `field`.
    """
    try:
        value = _decode(text)
        if isinstance(value, str):
            return
        if isinstance(value, (int, dict, list)):
            _pack(value)  # refuses integers beyond 64 bits, in C
    except OverflowError:
        raise BodyMalformed(f"{field}: holds an integer that does not fit into 64 bits", field) from None
    except RecursionError:
        raise BodyMalformed(f"{field}: is nested deeper than {DEPTH_MAX} levels", field) from None
    except msgspec.ValidationError as error:
        raise BodyMalformed(f"{field}: {error}", field) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BodyMalformed(f"{field}: is not valid JSON, or holds what is no character", field) from None
    # Counting brackets is an upper bound that nearly all data stays below.
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX and _depth(value) > DEPTH_MAX:
        raise BodyMalformed(f"{field}: is nested deeper than {DEPTH_MAX} levels", field)


def _depth(value: Any) -> int:
    """Levels of arrays and objects, without recursion."""
    depth = 0
    level = [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _digest(text: bytes) -> str:
    return hashlib.blake2b(_canonical(text), digest_size=16).hexdigest()


def _canonical(text: bytes) -> bytes:
    """One text for one value: sorted keys, no white space, integral numbers without a point."""
    value = _decode(text)
    return _encode(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**64:
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
