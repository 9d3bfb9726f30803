"""One body with very many parts, done slice by slice, as a sweep is: so that a hundred thousand jobs hold up nobody.

It is all or nothing all the same. First everything is checked, while the realm is held; then the body itself is
written to the file, with the realm's task; then the slices are done. After a crash the body is read again and done
once more from its beginning: what was done already changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from restq.shards.changes import BATCH, Task
from restq.shards.commands.call import Call, Done, Work
from restq.shards.realm import Realm

SLICE_COUNT = 1_000  # parts in one slice; a body with no more is done at once

Part = TypeVar("Part")
encode = msgspec.json.Encoder().encode


class Batch(Generic[Part]):
    """The slices of one body. `checked` gives them once they are checked, `do` does one and returns its reply."""

    def __init__(
        self, realm: Realm, call: Call, operation: str, checked: Iterator[list[Part]], do: Callable[[list[Part]], Any]
    ) -> None:
        self._realm = realm
        self._call = call
        self._operation = operation
        self._checked = checked
        self._do = do
        self._slices: list[list[Part]] = []
        self._done_count = 0
        self._reply: dict[str, Any] = {}
        self._is_checked = False

    def step(self, count: int) -> bool:
        """Check one slice or do one, whatever `count` says: they are of that size. True once all is done."""
        if not self._is_checked:
            self._check()
            return False
        _merge(self._reply, self._do(self._slices[self._done_count]))
        self._done_count += 1
        if self._done_count < len(self._slices):
            return False
        finish(self._realm)
        return True

    def _check(self) -> None:
        found = next(self._checked, None)
        if found is not None:
            self._slices.append(found)
            return
        self._is_checked = True
        if self._realm.task is None:
            key = self._realm.keys.take()
            self._realm.changes.payloads[key] = self._call.body
            self._realm.set_task(Task(BATCH, key, (self._operation, str(self._call.now))))

    def reply(self) -> Done:
        """What all slices together reply."""
        return Done(encode(self._reply))


def in_slices(
    realm: Realm, call: Call, operation: str, parts: Sequence[Part], do: Callable[[list[Part]], Any]
) -> Done | Work:
    """Do this with all parts, which are checked: at once, or slice by slice where they are many."""
    if len(parts) <= SLICE_COUNT:
        return Done(encode(do(list(parts))))
    batch = Batch(realm, call, operation, (list(found) for found in slices(parts)), do)
    return Work(batch, batch.reply)


def slices(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The parts, a slice at a time."""
    return (parts[start : start + SLICE_COUNT] for start in range(0, len(parts), SLICE_COUNT))


def finish(realm: Realm) -> None:
    """The batch that the realm's task names is done, and its body is needed no more."""
    assert realm.task is not None, "a batch is the realm's task"
    realm.changes.payloads[int(realm.task.target or 0)] = None
    realm.set_task(None)


def _merge(reply: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if name not in reply:
            reply[name] = value
        elif isinstance(value, dict):
            reply[name].update(value)
        elif isinstance(value, list):
            reply[name].extend(value)
        else:
            reply[name] += value
