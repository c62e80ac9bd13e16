"""Writes of clients: out of the inbox as few appends, into the log, and their answers back once they are applied."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

from raftkit_core.engine.engine import Engine
from raftkit_core.errors import Overloaded, RaftError
from raftkit_core.instrument import Instruments
from raftkit_core.runtime.batches import Batch, Duplicate
from raftkit_core.runtime.inbox import Inbox, refuse
from raftkit_core.runtime.messages import ClientWrite, ClientWriteResponse
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.log_id import LogId

AFTER_ONE_AT_ONCE = -1000
"""Writes after one that was answered within the call, until another may have its turn within the call."""


class ClientWrites(Inbox):
    """The part of the loop that deals with them; what a turn is besides, is said by who inherits."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], float],
        waiting: WaitingClients,
        max_write_bytes: int,
        instruments: Instruments,
    ) -> None:
        super().__init__(engine.config.id, now, waiting)
        self.engine = engine
        self.instruments = instruments
        self._is_tracing = instruments.is_tracing
        self._max_write_bytes = max_write_bytes
        """What one append may take: a burst must not pass as one request."""

    @abstractmethod
    def _end_turn(self, now: float) -> None:
        """Carry out what was ordered."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Stop the node for good because of ``error``."""

    # --- into the log -----------------------------------------------------------------------------------------------

    def _write_at_once(
        self, payload: bytes, timeout: float, condition: WriteCondition | None, command: Any
    ) -> asyncio.Future[ClientWriteResponse]:
        """Writes have come one after the other, each when the one before was answered: nobody will join this one."""
        future: asyncio.Future[ClientWriteResponse] = asyncio.Future(loop=self._loop)
        self._turn_is_due = True
        try:
            now = self._now()
            self._write([ClientWrite([payload], [command], [future], [timeout], now, condition)], now)
            self._end_turn(now)
        except BaseException as error:
            self.fail(error)
            if not future.done():
                future.set_exception(self.stop_error())  # it may be in the log, or not
            if not isinstance(error, Exception):
                raise
        if future.done():
            # It needed no peer. A caller that writes on without ever waiting would leave no time to anybody else.
            self._writes_alone = AFTER_ONE_AT_ONCE
        return future

    def _write_all(self, message: ClientWrite, share: int, now: float) -> int:
        """Writes side by side become one append; gives how many messages of this turn's share that took."""
        messages, taken = self._side_by_side(message, share)
        self._write(messages, now)
        return taken

    def _side_by_side(self, message: ClientWrite, share: int) -> tuple[list[ClientWrite], int]:
        """``message`` and the writes behind it that may become one append with it; and how many of a turn's share they
        count."""
        inbox = self._inbox
        if not inbox:
            self._close_writes()
        if not message.is_whole():
            inbox.appendleft(message)  # whoever waits is refused with what waits there
            raise AssertionError("a write was put in without its future")
        size_bytes = message.size_bytes()
        if size_bytes > self._max_write_bytes and message.is_joined and len(message.payloads) > 1:
            message = self._cut(message)
        taken = self._leave(message)
        messages = [message]
        while inbox and taken < share and message.condition is None:
            following = inbox[0]
            if type(following) is not ClientWrite or following.condition is not None or not following.is_whole():
                break
            # Limits let one whole request through, but no more: a burst must not pass as one.
            size_bytes += following.size_bytes()
            if size_bytes > self._max_write_bytes:
                break
            inbox.popleft()
            if not inbox:
                self._close_writes()
            taken += self._leave(following)
            messages.append(following)
        return messages, taken

    def _cut(self, message: ClientWrite) -> ClientWrite:
        """The first writes of ``message``, as many as are no burst; the others are the next in the inbox."""
        sizes = list(accumulate(map(len, message.payloads)))
        count = max(1, bisect_right(sizes, self._max_write_bytes))
        self._inbox.appendleft(message.part(count, len(sizes)))
        return message.part(0, count)

    def _leave(self, message: ClientWrite) -> int:
        """``message`` is out of the inbox; gives how many of a turn's share it counts."""
        if not message.is_joined:
            return 1
        count = len(message.payloads)
        self._joined -= count
        return count

    def _write(self, messages: Sequence[ClientWrite], now: float) -> None:
        """Propose everything that waits as one append; refuse all of it alike."""
        if self._is_tracing:
            self.instruments.trace("RaftCore.write")
        payloads = messages[0].payloads
        if len(messages) > 1:
            payloads = list(chain.from_iterable([message.payloads for message in messages]))
        self._writes_alone = self._writes_alone + 1 if len(payloads) == 1 and not self.waiting.writers else 0
        try:
            first = self.engine.handle_client_write(payloads, now, messages[0].condition)
        except BaseException as error:
            # Out of the inbox and not among those who wait: nobody else would tell them.
            self.fail(error)
            for message in messages:
                refuse(message.futures, self.stop_error)
            raise
        if isinstance(first, LogId):
            self.waiting.wait_for_all(first, messages)
        elif isinstance(first, Overloaded) and (parts := _parts(messages)):
            for at, part in enumerate(parts):
                try:
                    self._write([part], now)
                except BaseException:
                    self._inbox.extend(parts[at + 1 :])  # nobody looked at them: they are refused with what waits there
                    raise
        else:
            refusal = first
            for message in messages:
                refuse(message.futures, lambda: refusal)

    # --- and back ---------------------------------------------------------------------------------------------------

    def _answer_writers(self, batch: Batch, results: Sequence[Any]) -> None:
        """Whoever waits for an entry of ``batch``, which the machine has applied."""
        entries = batch.entries
        if len(entries) == len(batch.log):
            self.waiting.resolve_all(batch.log, results)
            return
        resolve = self.waiting.resolve
        normal = 0
        for entry in batch.log:
            log_id = entry.log_id
            if normal < len(entries) and entries[normal].log_id.index == log_id.index:
                result = results[normal]
                normal += 1
                resolve(log_id, result if isinstance(result, RaftError) else ClientWriteResponse(log_id, result))
            elif batch.refused and log_id.index in batch.refused:
                result = batch.refused[log_id.index]
                first, result = result.outcome() if isinstance(result, Duplicate) else (log_id, result)
                resolve(log_id, result if isinstance(result, RaftError) else ClientWriteResponse(first, result))
            elif batch.memberships and log_id.index in batch.memberships:
                resolve(log_id, ClientWriteResponse(log_id, None, batch.memberships[log_id.index]))
            else:
                resolve(log_id, ClientWriteResponse(log_id, None))


def _parts(messages: Sequence[ClientWrite]) -> list[ClientWrite]:
    """What can be taken or refused by itself; nothing if that is all of it."""
    parts: list[ClientWrite] = []
    for message in messages:
        count = len(message.payloads)
        parts += [message.part(at, at + 1) for at in range(count)] if message.is_joined else [message]
    return parts if len(parts) > 1 else []
