"""A job that was pulled, in a program with an event loop. The twin of `restq.client.job`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from restq.aio.connection import Connection, sent
from restq.client.lease_calls import LeaseCalls
from restq.client.leased import JobCalls, Leased, log_extension_failure


class Job(Leased):
    """A leased job. `async with job:` acks it at the block's end, nacks it if the block raises, and extends its lease.

    As `restq.client.Job`, which says more, with an `await` before each method. A task that is cancelled in the
    block was interrupted, and did not fail: the job is released.
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
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    ack = sent(JobCalls.ack)
    nack = sent(JobCalls.nack)
    release = sent(JobCalls.release)
    extend = sent(JobCalls.extend)

    async def __aenter__(self) -> Self:
        self.hold()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        await self.drop()
        failure: Exception | None = None
        call = self._calls.ending(error)
        try:
            if call is not None:
                await self._connection.send(call)
        except Exception as raised:
            failure = raised
        return self.settle(error, failure)

    def hold(self) -> None:
        """Extend the lease from now on. A job that ends before a third of it has passed costs a timer, and no task."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.extension_seconds(time.time()), self._begin)

    async def drop(self) -> None:
        """Extend it no more."""
        if self._timer is not None:
            self._timer.cancel()
        task, self._timer, self._task = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        goes_on = True
        while goes_on:
            goes_on = await self._extended()
            await asyncio.sleep(self.extension_seconds(time.time()))

    async def _extended(self) -> bool:
        """Extend the lease; whether to go on with that."""
        try:
            return not self.ended and await self.extend()
        except Exception as error:
            return log_extension_failure(self, error)
