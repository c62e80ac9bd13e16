"""Replication streams: one per peer while this node leads. Orders of the engine become requests, answers become facts.

A stream sends in order and never waits for an answer before the next request; how much is in flight is the engine's
business (requests) and this one's (bytes). A failure voids the stream's epoch: it is reported once, after a back-off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from raftkit_core.engine.commands import Replicate, ReplicateSnapshot
from raftkit_core.errors import NetworkError, PayloadTooLarge, RPCError, RPCTimeout, StorageError
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.network.reply import Reply, failed_reply
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.messages import Notification, ReplicationFailed
from raftkit_core.runtime.peer_calls import PeerMethod
from raftkit_core.runtime.peers import PeerTable
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.types.entry import Entry, last_log_id, payload_bytes
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.messages import AppendEntriesRequest, AppendEntriesResponse, Busy, Success

RETRY_SECONDS = 0.02
"""The least pause after a failure: a broken connection must not become a busy loop."""
HINT_LASTS = 10
"""For how many successful requests a peer's ``entries_hint`` holds (openraft.md §1.5)."""


LOST_BEFORE_SHRINKING = 2
"""Appends in a row that got no answer."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One request, and what every stream that sends it has to know about it."""

    session: int
    start: int
    stop: int
    request: AppendEntriesRequest
    last: LogId | None
    last_index: int
    """Where the log of a peer ends when it has taken this."""
    size_bytes: int
    timeout: float
    """In seconds."""


class RequestCache:
    """One request for all peers at the same place: it is read and encoded once, and its size and time are known.

    Under one leadership the log only grows: what is asked for by ``start`` and ``stop`` is the same for everybody.
    """

    def __init__(self) -> None:
        self._newest: Outgoing | None = None

    def find(self, command: Replicate, start: int, stop: int) -> Outgoing | None:
        """What was made last, if it is what ``command`` orders."""
        newest = self._newest
        if (
            newest is not None
            and newest.start == start
            and newest.stop == stop
            and newest.session == command.session
            and newest.request.leader_commit == command.leader_commit
        ):
            return newest
        return None

    def make(
        self,
        command: Replicate,
        prev: LogId | None,
        start: int,
        stop: int,
        entries: Sequence[Entry],
        lease_ms: int,
        base_timeout: float,
    ) -> Outgoing:
        """A new one, of what was read."""
        request = AppendEntriesRequest(command.vote, prev, entries, command.leader_commit, lease_ms)
        last = last_log_id(entries) if entries else prev
        size_bytes = payload_bytes(entries)
        timeout = base_timeout + size_bytes / (1024 * 1024)
        newest = self._newest = Outgoing(
            command.session, start, stop, request, last, index_of(last), size_bytes, timeout
        )
        return newest

    def clear(self) -> None:
        self._newest = None


class ReplicationStream:
    """Sends to one peer under one leadership."""

    def __init__(
        self,
        *,
        session: int,
        target: NodeId,
        network: RaftNetwork,
        writer: LogWriter,
        peers: PeerTable,
        stalls: StallDetector,
        requests: RequestCache,
        answered: Callable[[Replicate, AppendEntriesResponse], None],
        notify: Callable[[Notification], None],
        failed: Callable[[BaseException], None],
        lease_ms: int,
        max_payload_bytes: int,
        max_bytes_inflight: int,
        base_timeout: float,
    ) -> None:
        self.session = session
        """The leadership this stream belongs to."""
        self.target = target
        self.network = network
        self._writer = writer
        self._peers = peers
        self._requests = requests
        self._tell_answer = answered
        self._notify = notify
        self._failed = failed
        self._lease_ms = lease_ms
        self._max_payload_bytes = max_payload_bytes
        self._max_bytes_inflight = max_bytes_inflight
        self._base_timeout = base_timeout
        self._queue: deque[tuple[Replicate, LogId | None]] = deque()
        self._inflight_bytes = 0
        self._append = PeerMethod(network, "append_entries", stalls)
        self._inflight = 0
        self._reading: asyncio.Task[None] | None = None
        self._timers: dict[asyncio.TimerHandle, None] = {}
        self._failed_epoch = -1
        self._backoff: Iterator[float] | None = None
        self._entries_limit = 0
        self._entries_limit_left = 0
        self._lost = 0
        self._closed = False

    # --- sending ----------------------------------------------------------------------------------------------------

    def replicate(self, command: Replicate) -> None:
        """Send the entries ordered, in as many requests as their bytes need."""
        if self._closed or command.epoch <= self._failed_epoch:
            return
        self._queue.append((command, command.prev_log_id))
        if self._reading is None:
            self._pump()

    def _pump(self) -> None:
        """Send what is ordered and fits the window. What a failure or the end makes void has left the queue then."""
        queue = self._queue
        while queue and self._reading is None:
            if self._inflight_bytes >= self._max_bytes_inflight and self._inflight:
                return  # carried on when an answer frees the window
            command, prev = queue[0]
            start = 0 if prev is None else prev.index + 1
            stop = command.last_index + 1
            if self._entries_limit_left and stop > start + self._entries_limit:
                stop = start + self._entries_limit
            outgoing = self._requests.find(command, start, stop)
            if outgoing is None:
                entries = self._writer.tail.read(start, stop, self._max_payload_bytes) if start < stop else []
                if entries is None:
                    self._reading = asyncio.ensure_future(self._read(command, prev, start, stop))
                    self._reading.add_done_callback(partial(self._read_done, command, start))
                    return
                outgoing = self._requests.make(command, prev, start, stop, entries, self._lease_ms, self._base_timeout)
            self._send(command, outgoing)

    async def _read(self, command: Replicate, prev: LogId | None, start: int, stop: int) -> None:
        entries = await self._writer.read(start, stop, self._max_payload_bytes)
        if self._queue and self._queue[0][0] is command:
            self._send(
                command,
                self._requests.make(command, prev, start, stop, entries, self._lease_ms, self._base_timeout),
            )

    def _read_done(self, command: Replicate, start: int, task: asyncio.Task[None]) -> None:
        self._reading = None
        if task.cancelled() or self._closed:
            return
        error = task.exception()
        if isinstance(error, StorageError) and start < self._writer.first_index:
            # Purged meanwhile: the engine sends a snapshot instead, unless it has given up this order already.
            if self._queue and self._queue[0][0] is command:
                self._fail_epoch(command.epoch, RETRY_SECONDS)
        elif error is not None:
            self._failed(error)
            return
        self._pump()

    def _send(self, command: Replicate, outgoing: Outgoing) -> None:
        """Send one request; what is left of the order stays at the head of the queue."""
        if command.single or outgoing.last_index >= command.last_index:
            self._queue.popleft()
        else:
            self._queue[0] = (command, outgoing.last)
        self._inflight += 1
        self._inflight_bytes += outgoing.size_bytes
        try:
            reply = self._append.call(outgoing.request, outgoing.timeout)
        except Exception as error:  # of the plugin: never this node's end
            reply = failed_reply(error)
        reply.then(self._answered, (command, outgoing))

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answered(self, reply: Reply[AppendEntriesResponse], sent: tuple[Replicate, Outgoing]) -> None:
        command, outgoing = sent
        self._inflight -= 1
        self._inflight_bytes -= outgoing.size_bytes
        if self._closed:
            return
        response = reply.outcome
        if reply.failed:
            self._append.failed()
            self._on_error(response, command.epoch, len(outgoing.request.entries))
            if self._queue:
                self._pump()  # of a later epoch, which waited for the room this one took
            return
        self._append.observe(reply.seconds)
        if isinstance(response, Busy):
            # Nothing was taken: after a while the engine begins anew with a probe, else it would wait for this answer
            # for ever.
            self._fail_epoch(command.epoch, self._next_delay())
        elif isinstance(response, Success):
            self._backoff = None
            self._lost = 0
            if self._entries_limit_left:
                # Counted when answered: what was merely sent would be lost with its epoch at the next refusal.
                self._entries_limit_left -= 1
        if self._peers.last_error:
            self._peers.succeeded(self.target)
        # A Busy answer is contact all the same; the engine changes no progress for it.
        self._tell_answer(command, response)
        if self._queue:
            self._pump()

    def _on_error(self, error: BaseException, epoch: int, count: int) -> None:
        self._peers.failed(self.target, error)
        if isinstance(error, PayloadTooLarge):
            self._entries_limit = max(1, error.entries_hint)
            self._entries_limit_left = HINT_LASTS
            self._fail_epoch(epoch, 0.0)
        elif isinstance(error, NetworkError | RPCTimeout):
            self._shrink(epoch, count)
            self._fail_epoch(epoch, RETRY_SECONDS)
        else:
            self._fail_epoch(epoch, self._next_delay())

    def _shrink(self, epoch: int, count: int) -> None:
        """After several requests in a row that got no answer: less in each. A network may lose what is large and let
        what is small pass, and then this costs lag instead of the peer."""
        if epoch <= self._failed_epoch or count == 0:
            return
        self._lost += 1
        if self._lost > LOST_BEFORE_SHRINKING and count > 1:
            self._entries_limit = count // 2
            self._entries_limit_left = HINT_LASTS

    def _next_delay(self) -> float:
        if self._backoff is None:
            self._backoff = self.network.backoff()
        return max(RETRY_SECONDS, next(self._backoff, 0.5))

    def _fail_epoch(self, epoch: int, delay: float) -> None:
        """The first failure of an epoch voids it; the others of that epoch say nothing new."""
        if epoch <= self._failed_epoch:
            return
        self._failed_epoch = epoch
        self._queue.clear()
        self._report(epoch, delay)

    def _report(self, epoch: int, delay: float) -> None:
        loop = asyncio.get_running_loop()

        def report() -> None:
            self._timers.pop(timer, None)
            self._notify(ReplicationFailed(self.session, self.target, epoch))

        timer = loop.call_later(delay, report)
        self._timers[timer] = None

    # --- snapshots --------------------------------------------------------------------------------------------------

    def snapshot_failed(self, command: ReplicateSnapshot, error: BaseException) -> None:
        """A transfer failed: back off, then let the engine choose again, with the newest snapshot."""
        if self._closed:
            return
        self._peers.failed(self.target, error)
        delay = self._next_delay() if isinstance(error, RPCError) else 0.5
        self._fail_epoch(command.epoch, delay)

    def snapshot_succeeded(self) -> None:
        self._backoff = None
        self._peers.succeeded(self.target)

    # --- the end ----------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Give up calls the transport should have ended long ago."""
        self._append.sweep(now)

    def close(self) -> None:
        """End at once: nothing more is sent or reported. Never waits for the peer."""
        self._closed = True
        self._queue.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._reading is not None:
            self._reading.cancel()
        self._append.cancel()
