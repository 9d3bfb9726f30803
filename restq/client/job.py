"""A job that was pulled: what a worker does with it, and the `with` block that does the usual."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from restq.client.connection import Connection, sent
from restq.client.lease_calls import LeaseCalls
from restq.client.leased import JobCalls, Leased


class Job(Leased):
    """A leased job. `with job:` acks it at the block's end, or nacks it if the block raises, and extends its lease.

    The lease is extended in the background at each third of it, while the block runs; what fails there is logged and
    tried again. Look at `cancelled` and `lost` where the work can be broken off. An exception leaves the block after
    its traceback's last 4 KiB went with the nack; in `consume(keep_going=True)` it is logged instead. Where the
    lease was lost, the end of a block that succeeded raises LeaseStale: somebody else may do the work again.
    In a block that ended the lease itself, with ack, nack or release, nothing more is sent.
    """

    def __init__(
        self,
        reply: Mapping[str, Any],
        realm: str,
        lease_time: float | None,
        *,
        calls: LeaseCalls[Any],
        connection: Connection,
    ) -> None:
        """Made by the pulls of `Realm` and `Realms`."""
        super().__init__(reply, realm, lease_time)
        self._calls = JobCalls(self, calls)
        self._connection = connection

    ack = sent(JobCalls.ack)
    nack = sent(JobCalls.nack)
    release = sent(JobCalls.release)
    extend = sent(JobCalls.extend)

    def __enter__(self) -> Self:
        self._connection.extender.hold(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._connection.extender.drop(self)
        failure: Exception | None = None
        call = self._calls.ending(error)
        try:
            if call is not None:
                self._connection.send(call)
        except Exception as raised:
            failure = raised
        return self.settle(error, failure)
