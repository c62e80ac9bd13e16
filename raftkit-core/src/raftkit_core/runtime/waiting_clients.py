"""Callers that wait: by log id until their entry's index is committed here, or by request id until they are answered.

A waiter learns the truth about its entry, never a guess: applied, or *not applied* because another entry was committed
in its place, or *unknown* (deadline, shutdown, superseded by a snapshot). Truncation answers nobody: a truncated entry
can still commit later. Deadlines are swept by the tick: no timer per call.
"""

from __future__ import annotations

import asyncio
from asyncio import InvalidStateError
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import is_not
from typing import Any

from raftkit_core.errors import NotApplied, OutcomeUnknown, RaftError, RPCTimeout
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.messages import ClientWrite, ClientWriteResponse
from raftkit_core.state_machine.interface import NoneRefused
from raftkit_core.types.entry import Entries, Entry, ends_of
from raftkit_core.types.ids import RequestId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

SWEEP_SECONDS = 0.05


class _Writers:
    """Who waits for consecutive entries of one append."""

    __slots__ = ("commands", "first", "futures", "leader_id", "since", "timeouts")

    def __init__(
        self,
        leader_id: LeaderId,
        first: int,
        commands: list[Any],
        futures: list[asyncio.Future[Any]],
        timeouts: list[float],
        since: float,
    ) -> None:
        self.leader_id = leader_id
        self.first = first
        self.commands = commands
        self.futures = futures
        self.timeouts = timeouts
        self.since = since

    def waiting(self) -> Iterator[tuple[int, asyncio.Future[Any], float]]:
        """Index, future and deadline of everybody who was not told yet."""
        since = self.since
        for index, (future, timeout) in enumerate(zip(self.futures, self.timeouts, strict=True), self.first):
            if not future.done():
                yield index, future, since + timeout


def _cut(queue: deque[_Writers], stop: int) -> _Writers:
    """Of those at the head of ``queue`` the ones below index ``stop``, who leave it."""
    head = queue[0]
    count = stop - head.first
    if count >= len(head.futures):
        return queue.popleft()
    cut = _Writers(
        head.leader_id, head.first, head.commands[:count], head.futures[:count], head.timeouts[:count], head.since
    )
    head.first, head.commands = stop, head.commands[count:]
    head.futures, head.timeouts = head.futures[count:], head.timeouts[count:]
    return cut


class WaitingClients:
    """Answers every future exactly once, or finds it cancelled and leaves it alone."""

    def __init__(self) -> None:
        self.writers: dict[LeaderId, deque[_Writers]] = {}
        """Who waits for an entry, in the order of these. Under several leader ids where an earlier one's entries are
        undecided: its indexes may be those of later entries that replaced them."""
        self._requests: dict[RequestId, tuple[Reply[Any], float]] = {}
        self._request_id = 0
        self._swept_at = float("-inf")

    def __len__(self) -> int:
        return sum(len(writers.futures) for queue in self.writers.values() for writers in queue)

    # --- writes -----------------------------------------------------------------------------------------------------

    def wait_for_all(self, first: LogId, messages: Sequence[ClientWrite]) -> None:
        """Whoever is named in ``messages`` waits for consecutive entries from ``first`` on."""
        leader_id, index = first.leader_id, first.index
        queue = self.writers.get(leader_id)
        if queue is None:
            queue = self.writers[leader_id] = deque()
        for message in messages:
            queue.append(_Writers(leader_id, index, message.commands, message.futures, message.timeouts, message.since))
            index += len(message.futures)

    def commands_of(self, first: LogId, last: LogId) -> list[Any] | None:
        """What the entries from ``first`` to ``last`` decode to, if all of them were proposed here and somebody waits:
        no other entry ever has one of their log ids."""
        if not self.writers or first.leader_id != last.leader_id:
            return None
        queue = self.writers.get(first.leader_id)
        if queue is None:
            return None
        start, stop = first.index, last.index + 1
        commands: list[Any] = []
        for writers in queue:
            if writers.first > start + len(commands) or writers.first >= stop:
                break
            skipped = start + len(commands) - writers.first
            if not commands and not skipped and len(writers.commands) == stop - start:
                commands = writers.commands
                break
            commands += writers.commands[skipped : stop - writers.first]
        return commands if len(commands) == stop - start and all(map(is_not, commands, repeat(None))) else None

    def resolve_all(self, log: Sequence[Entry], results: Sequence[Any]) -> None:
        """Every entry of ``log`` was applied, with the result at its place; an error is a refusal."""
        first, last = ends_of(log)
        all_done = isinstance(results, NoneRefused)
        taken = self._take(first.index, last.index)
        if len(taken) > 1:
            results = list(results)  # to take parts of
        for writers in taken:
            futures, leader_id = writers.futures, writers.leader_id
            count = len(futures)
            start, stop = writers.first - first.index, writers.first - first.index + count
            their_results = results if count == len(results) else results[start:stop]
            assert len(their_results) == count, "a result for each entry"
            if type(log) is Entries:
                is_theirs = first.leader_id == leader_id
            else:
                # Leader ids never fall along the log: equal at both ends, they are equal in between.
                is_theirs = log[start].log_id.leader_id == leader_id == log[stop - 1].log_id.leader_id
            if not is_theirs:
                for future, entry, result in zip(futures, log[start:stop], their_results, strict=True):
                    response = result if isinstance(result, RaftError) else ClientWriteResponse(entry.log_id, result)
                    self._answer(future, leader_id, entry.log_id, response)
                continue
            log_ids = map(LogId, repeat(leader_id), range(writers.first, writers.first + count))
            if all_done:
                _set_results(futures, map(ClientWriteResponse, log_ids, their_results))
                continue
            for future, log_id, result in zip(futures, log_ids, their_results, strict=True):
                if not future.done():
                    if isinstance(result, RaftError):
                        future.set_exception(result)
                    else:
                        future.set_result(ClientWriteResponse(log_id, result))

    def resolve(self, log_id: LogId, response: ClientWriteResponse | RaftError) -> None:
        """The entry ``log_id`` was applied; an error is a refusal."""
        for writers in self._take(log_id.index, log_id.index):
            self._answer(writers.futures[0], writers.leader_id, log_id, response)

    def _take(self, first: int, last: int) -> list[_Writers]:
        """Everybody who waits for an entry from index ``first`` to ``last``: they do not wait any more. Who still waits
        for an earlier one is told that a snapshot has replaced it."""
        taken: list[_Writers] = []
        for leader_id, queue in list(self.writers.items()):
            while queue and queue[0].first <= last:
                if queue[0].first < first:
                    self._supersede(_cut(queue, first))
                else:
                    taken.append(_cut(queue, last + 1))
            if not queue:
                del self.writers[leader_id]
        return taken

    def _answer(
        self,
        future: asyncio.Future[Any],
        leader_id: LeaderId,
        log_id: LogId,
        response: ClientWriteResponse | RaftError,
    ) -> None:
        """Tell the one who waits for ``leader_id``'s entry at this index what became of it: ``log_id`` is committed."""
        if future.done():
            return
        if leader_id != log_id.leader_id:
            future.set_exception(
                NotApplied(
                    f"{LogId(leader_id, log_id.index)} was replaced by {log_id}, which is committed",
                    hint="write it again",
                )
            )
        elif isinstance(response, RaftError):
            future.set_exception(response)
        else:
            future.set_result(response)

    def superseded(self, upto: int) -> None:
        """A snapshot took the place of everything up to ``upto``: nobody here knows what became of those entries."""
        self._take(upto + 1, upto)

    def _supersede(self, writers: _Writers) -> None:
        for index, future, _ in writers.waiting():
            future.set_exception(
                OutcomeUnknown(
                    f"{LogId(writers.leader_id, index)} was superseded by a snapshot; it may have been applied",
                    hint="read the key back",
                )
            )

    # --- requests ---------------------------------------------------------------------------------------------------

    def new_request(self, deadline: float) -> tuple[RequestId, Reply[Any]]:
        """A request id for the engine, and where its answer goes; ``RPCTimeout`` if none comes in time."""
        self._request_id += 1
        reply: Reply[Any] = Reply()
        self._requests[self._request_id] = (reply, deadline)
        return self._request_id, reply

    def waits(self, request_id: RequestId) -> bool:
        """Whether a request is neither answered nor given up."""
        return request_id in self._requests

    def respond(self, request_id: RequestId, response: Any) -> None:
        """Answer a request; an error is raised there. Unknown ids were answered or given up before."""
        waiting = self._requests.pop(request_id, None)
        if waiting is None:
            return
        if isinstance(response, BaseException):
            waiting[0].set_exception(response)
        else:
            waiting[0].set_result(response)

    def sweep(self, now: float) -> None:
        """Fail whatever is due. Looks at everything that waits, a few times a second: cheaper than a timer per call."""
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        for request_id in [key for key, (reply, due) in self._requests.items() if due <= now or reply.done()]:
            self._requests.pop(request_id)[0].set_exception(RPCTimeout("no answer within the deadline"))
        for leader_id, queue in list(self.writers.items()):
            left = [writers for writers in queue if not self._are_over(writers, now)]
            if not left:
                del self.writers[leader_id]
            elif len(left) < len(queue):
                self.writers[leader_id] = deque(left)

    def overdue(self, now: float) -> int:
        """How many should have been told before ``now`` that their time is over, and were not."""
        late = sum(due < now and not reply.done() for reply, due in self._requests.values())
        for queue in self.writers.values():
            for writers in queue:
                late += sum(due < now for _, _, due in writers.waiting())
        return late

    def _are_over(self, writers: _Writers, now: float) -> bool:
        """Expire those who are due; says whether none of them waits any more."""
        over = True
        for index, future, deadline in writers.waiting():
            if deadline > now:
                over = False
                continue
            future.set_exception(
                OutcomeUnknown(
                    f"{LogId(writers.leader_id, index)} was not answered within its deadline; it may still be applied",
                    hint="read the key back, or repeat the write with a precondition",
                )
            )
        return over

    # --- the end ----------------------------------------------------------------------------------------------------

    def fail_all(self, make_error: Callable[[], RaftError]) -> None:
        """The node has stopped. Requests get its error; a write whose entry is in the log may still be applied, here
        after a restart or by the others: its outcome is unknown."""
        requests = [reply for reply, _ in self._requests.values()]
        waiting = [writers for queue in self.writers.values() for writers in queue]
        self._requests.clear()
        self.writers.clear()
        for reply in requests:
            reply.set_exception(make_error())
        for writers in waiting:
            for index, future, _ in writers.waiting():
                stopped = make_error()
                error = OutcomeUnknown(
                    f"{LogId(writers.leader_id, index)} may or may not be applied: {stopped.message}",
                    hint="read the key back",
                )
                error.__cause__ = stopped
                future.set_exception(error)


def _set_results(futures: Sequence[asyncio.Future[Any]], results: Iterator[Any]) -> None:
    """One for each; who has given up is passed over."""
    told = map(asyncio.Future.set_result, futures, results)
    while True:
        try:
            deque(told, maxlen=0)
        except InvalidStateError:
            continue
        return
