"""One body with very many parts, done slice by slice, as a sweep is: so that a hundred thousand jobs hold up nobody.

It is all or nothing all the same. First everything is checked, while the realm is held; then the body itself is
written to the file, with the realm's task; then the slices are done, and the file says how many, and what each of them
replied. After a crash the body is read again and what is left of it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from restq.shards.changes import BATCH, Task, payload_keys
from restq.shards.commands.call import Call, Done, Work
from restq.shards.realm import Realm

# Parts in one slice; a body with no more is done at once. The file of a shard that ended during a batch counts slices
# of this size: whoever changes it must have such a batch begin anew.
SLICE_COUNT = 1_000

Part = TypeVar("Part")
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict[str, Any]).decode


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
        if call.is_resumed:
            self._read_done()

    def step(self, count: int) -> bool:
        """Check one slice or do one, whatever `count` says: they are of that size. True once all is done."""
        if not self._is_checked:
            self._check()
            return False
        reply = self._do(self._slices[self._done_count])
        _merge(self._reply, reply)
        self._done_count += 1
        if self._done_count == len(self._slices):
            finish(self._realm)
            return True
        _note_done(self._realm, self._done_count, reply)
        return False

    def _check(self) -> None:
        found = next(self._checked, None)
        if found is not None:
            self._slices.append(found)
            return
        self._is_checked = True
        if not self._call.is_resumed:
            keys = [self._realm.keys.take() for _ in self._slices]  # of the body, and of the slices' replies
            self._realm.changes.payloads[keys[0]] = self._call.body
            self._realm.set_task(Task(BATCH, keys[0], (self._operation, str(self._call.now), 0)))

    def _read_done(self) -> None:
        task = self._realm.task
        assert task is not None, "what is resumed is the realm's task"
        self._done_count = int(task.details[2])
        for key in payload_keys(task)[1:]:
            _merge(self._reply, decode(self._call.archive.payload(key)))

    def reply(self) -> Done:
        """What all slices together reply."""
        return Done(encode(self._reply))


def in_slices(
    realm: Realm, call: Call, operation: str, parts: Sequence[Part], do: Callable[[list[Part]], Any]
) -> Done | Work:
    """Do this with all parts, which are checked: at once, or slice by slice where they are many."""
    if len(parts) <= SLICE_COUNT or not realm.exists:  # where there is nothing, nothing comes to be
        return Done(encode(do(list(parts))))
    batch = Batch(realm, call, operation, (list(found) for found in slices(parts)), do)
    return Work(batch, batch.reply)


def slices(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The parts, a slice at a time."""
    return (parts[start : start + SLICE_COUNT] for start in range(0, len(parts), SLICE_COUNT))


def _note_done(realm: Realm, count: int, reply: dict[str, Any]) -> None:
    """So many slices of the batch that the realm's task names are done, and this is what the last one replied."""
    assert realm.task is not None, "a batch is the realm's task"
    operation, now, _ = realm.task.details
    realm.set_task(realm.task._replace(details=(operation, now, count)))
    realm.changes.payloads[payload_keys(realm.task)[-1]] = encode(reply)


def finish(realm: Realm) -> None:
    """All of it is done: its body and the replies of its slices are needed no more."""
    assert realm.task is not None, "a batch is the realm's task"
    for key in payload_keys(realm.task):
        realm.changes.payloads[key] = None
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
