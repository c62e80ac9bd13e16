"""The loop: messages in, engine calls, commands out. One task per node; openraft's ``RaftCore``.

Biased: shutdown first, then notifications, then API messages, with a balancer so that neither side starves the other.
It drains what is there, calls the engine, carries out the commands and publishes metrics. Writes are dealt with in
``client_writes``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, assert_never, cast

from raftkit_core.clock import Clock
from raftkit_core.config import Config
from raftkit_core.engine.commands import Replicate
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import Stopped
from raftkit_core.instrument import Instruments
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.announcements import Announcements
from raftkit_core.runtime.batches import Batch
from raftkit_core.runtime.client_writes import ClientWrites
from raftkit_core.runtime.command_runner import CommandRunner
from raftkit_core.runtime.inbox import Balancer, refuse, running_loop
from raftkit_core.runtime.limits import bounded
from raftkit_core.runtime.log_writer import MAX_BATCH_BYTES, LogWriter
from raftkit_core.runtime.messages import (
    AppendEntriesArrived,
    Applied,
    ChangeMembershipRequest,
    ClientWrite,
    CommitNoticeDue,
    ExternalRequest,
    HeartbeatAnswered,
    HeartbeatArrived,
    Initialize,
    LogFlushed,
    Notification,
    RaftMsg,
    Read,
    ReplicationFailed,
    ReplicationProgress,
    SnapshotArrived,
    SnapshotBuilt,
    SnapshotInstalled,
    SnapshotRefused,
    SnapshotSent,
    Ticked,
    TransferAnswered,
    TransferArrived,
    TransferLeaderTo,
    VoteAnswered,
    VoteArrived,
)
from raftkit_core.runtime.metrics import Watchers
from raftkit_core.runtime.peers import PeerTable
from raftkit_core.runtime.session_keeper import SessionKeeper
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.runtime.ticker import Ticker
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.system import system_payload
from raftkit_core.state_machine.system_commands import ExpireSessions
from raftkit_core.types.ids import IoId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.messages import AppendEntriesRequest, AppendEntriesResponse

log = logging.getLogger("raftkit.runtime")

T = TypeVar("T")

TICKS_PER_HEARTBEAT = 5
SHUTDOWN_GRACE = 2.0


class RaftCore(ClientWrites):
    """Runs one node. Made by :class:`raftkit_core.raft.Raft`."""

    def __init__(
        self,
        *,
        config: Config,
        engine: Engine,
        clock: Clock,
        writer: LogWriter,
        worker: StateMachineWorker,
        runner: CommandRunner,
        peers: PeerTable,
        waiting: WaitingClients,
        instruments: Instruments,
        stalls: StallDetector,
        ended: Callable[[], None],
    ) -> None:
        max_write_bytes = min(MAX_BATCH_BYTES, config.max_uncommitted_bytes)
        super().__init__(engine, clock.monotonic, waiting, max_write_bytes, instruments)
        self.config = config
        self.clock = clock
        self.writer = writer
        self.worker = worker
        self.runner = runner
        self.peers = peers
        self.stalls = stalls
        self._ended = ended
        self.watchers = Watchers()
        """Who waits for a turn after which the metrics may differ."""
        self._state = engine.state
        """To look at, after every turn."""
        self._orders = engine.commands
        self._balancer = Balancer()
        self._task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self.tick_enabled = config.enable_tick
        """Off: no elections, no heartbeats. Deadlines of callers go on."""
        self.ticker = Ticker(
            config.heartbeat_interval_ms / 1000 / TICKS_PER_HEARTBEAT, self._tick, stalls.loop_was_late
        )
        self._announcements = Announcements(engine, instruments)
        self._stalled_since: float | None = None
        self.lease_watchers: dict[Callable[[], None], None] = {}
        self.sessions = SessionKeeper(worker.system)
        writer.attach(self.log_flushed, self.fail)
        worker.attach(self.applied, self.waiting.commands_of)
        runner.attach(self.append_answered)

    # --- from outside -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Take up the role the loaded state gives, before anybody can ask. Raises: AssertionError for a state that
        cannot be."""
        self.engine.startup(self._now())

    def start(self) -> None:
        """Run the loop."""
        self._task = asyncio.get_running_loop().create_task(self._main(), name=f"raft-core-{self.engine.config.id}")

    def fail(self, error: BaseException) -> None:
        """Stop the node for good because of ``error``: from now on nothing is written, answered or sent (S28)."""
        if self.fatal is None:
            self.fatal = error
            self.runner.halt()
            self.worker.halt()
            self.writer.halt()
            self._stop()

    async def shutdown(self) -> None:
        """Stop in an orderly way, bounded in time. Idempotent."""
        if self.fatal is None:
            self.fatal = Stopped(f"{self.engine.config.id} was shut down")
        self._stop()
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    async def external(self, function: Callable[[Engine, float], T]) -> T:
        """Run ``function`` in the loop. Raises what it raises; Fatal if the node ends first."""
        future: asyncio.Future[tuple[T | None, BaseException | None]] = asyncio.get_running_loop().create_future()

        def run(engine: Engine, now: float) -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = self.stalls.run(function, engine, now)
            except (Exception, asyncio.CancelledError) as error:
                failure = error
            if not future.done():
                future.set_result((result, failure))  # as a value: a future takes no StopIteration

        self.send(ExternalRequest(run, future))
        result, failure = await future
        if failure is not None:
            raise failure
        return cast(T, result)

    def _tick(self) -> None:
        self.notify(_TICKED)

    def _stop(self) -> None:
        """Have the main task end everything; there are no more turns."""
        self._turn_is_due = True
        self._places = 0
        if not self._stopped.done():
            self._stopped.set_result(None)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        try:
            await self._run()
        except BaseException as error:
            self.fail(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            await self._end()

    async def _run(self) -> None:
        """Turns are steps of the event loop, scheduled when something is there; this task owns them and their end."""
        self._carry_out(self._now())
        self.worker.go_on()
        self.ticker.start()
        self._announcements.tell()
        self.watchers.wake()
        self._next_turn()
        await self._stopped

    def _next_turn(self) -> None:
        """Notifications, then API messages, each up to its share, and what finished meanwhile at once."""
        if self.fatal is not None:
            return
        raft_msgs = notifications = 0
        try:
            now = self._now()
            if self._notifications:
                notifications = self._take_notifications(now, 0)
            if self._inbox:
                raft_msgs = self._drain_inbox(now)
                if self._notifications:
                    notifications = self._take_notifications(now, notifications)
            if self._notifications or self._inbox:
                self._balancer.turned(raft_msgs, notifications)
            self._end_turn(now)
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, Exception):
                raise

    def _end_turn(self, now: float) -> None:
        """Carry out what was ordered, and show what changed; and another turn soon if something is left: others run in
        between."""
        if self.lease_watchers:
            self._watch_leases()
        if self._orders:
            self.runner.run(now)
        if self._state.revision != self._announcements.revision:
            self._announcements.tell()
        if self.watchers.waiting:
            self.watchers.wake()
        self._turn_is_due = self.fatal is not None
        if self._notifications or self._inbox:
            self._wake()

    # --- turns without a queue --------------------------------------------------------------------------------------

    def append_arrived(self, request: AppendEntriesRequest, timeout: float) -> Reply[Any]:
        """A peer's append: as :meth:`ask`, but with nothing before it this is its turn."""
        if self._turn_is_due:
            return self.ask(timeout, lambda request_id: AppendEntriesArrived(request_id, request))
        if running_loop() is not self._loop:
            self.check_running()
        now = self._now()
        request_id, reply = self.waiting.new_request(now + timeout)
        self._turn_is_due = True
        try:
            self.engine.handle_append_entries(request, request_id, now)
            self._end_turn(now)
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, Exception):
                raise
        return reply

    def append_answered(self, sent: Replicate, response: AppendEntriesResponse) -> None:
        """A peer's answer: as :meth:`notify`, but with nothing before it this is its turn."""
        if self._turn_is_due:
            self.notify(ReplicationProgress(sent, response))
            return
        self._turn_is_due = True
        try:
            now = self._now()
            self.engine.on_replication_progress(
                sent.session, sent.target, sent.epoch, sent.seq, sent.sent_at, response, now
            )
            self._end_turn(now)
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, Exception):
                raise

    # --- the queue --------------------------------------------------------------------------------------------------

    def _take_notifications(self, now: float, taken: int) -> int:
        """Deal with notifications up to this turn's share, of which ``taken`` are used; gives how many are then."""
        share = self._balancer.notification
        notifications = self._notifications
        while notifications and taken < share and self.fatal is None:
            self._handle_notification(notifications.popleft(), now)
            self._carry_out(now)
            taken += 1
        return taken

    def _drain_inbox(self, now: float) -> int:
        """API messages in order; consecutive writes become one append, consecutive reads one round."""
        inbox = self._inbox
        taken, share = 0, self._balancer.raft_msg
        while inbox and taken < share and self.fatal is None:
            message = inbox.popleft()
            if isinstance(message, ClientWrite):
                taken += self._write_all(message, share - taken, now)
                self._carry_out(now)
                continue
            taken += 1
            if isinstance(message, Read):
                reads = [message.request_id]
                while inbox and taken < share and isinstance(inbox[0], Read) and inbox[0].by_lease == message.by_lease:
                    reads.append(inbox.popleft().request_id)  # type: ignore[union-attr]
                    taken += 1
                self.engine.handle_read(reads, message.by_lease, now)
                if message.by_lease:
                    # The reader may be a follower, which has to hear of it first.
                    self.engine.handle_tell_committed(now)
            else:
                self._handle_message(message, now)
            self._carry_out(now)
        return taken

    def _carry_out(self, now: float) -> None:
        if self.lease_watchers:
            self._watch_leases()
        if self._orders:
            self.runner.run(now)

    def _watch_leases(self) -> None:
        """Whoever relies on the lease learns of its end before any message leaves that ends it (a hand-over)."""
        for check in list(self.lease_watchers):
            check()

    def log_flushed(self, io_id: IoId) -> None:
        """The log lane has done everything up to ``io_id``, later than in the turn that began it."""
        self.cork()
        self.notify(LogFlushed(io_id))
        self.uncork()

    def _expire_sessions(self, now: float) -> None:
        """Propose the end of sessions whose clients were not heard for their time to live."""
        due = self.sessions.due(self.engine, self.worker.applied, now)
        if not due:
            return
        payload = system_payload(ExpireSessions(due))
        first = self.engine.handle_client_write([payload], now)
        if isinstance(first, LogId):
            self.sessions.proposed(due, first)

    def _handle_message(self, message: RaftMsg, now: float) -> None:
        engine = self.engine
        match message:
            case AppendEntriesArrived():
                engine.handle_append_entries(message.request, message.request_id, now)
            case HeartbeatArrived():
                engine.handle_heartbeat(message.request, message.request_id, now)
            case VoteArrived():
                handle = engine.handle_pre_vote if message.is_pre_vote else engine.handle_vote
                handle(message.request, message.store_id, message.request_id, now)
            case SnapshotArrived():
                engine.handle_install_snapshot(message.request, message.request_id, now)
            case TransferArrived():
                engine.handle_transfer_request(message.request, message.request_id, now)
            case Initialize():
                self.waiting.respond(message.request_id, engine.handle_initialize(message.membership, now))
            case ChangeMembershipRequest():
                self._change_membership(message, now)
            case TransferLeaderTo():
                engine.handle_transfer_leader(message.to, message.request_id, now)
            case ExternalRequest():
                message.function(engine, now)
            case ClientWrite() | Read():
                raise AssertionError("writes and reads are taken in batches")
            case _:
                assert_never(message)

    def _change_membership(self, message: ChangeMembershipRequest, now: float) -> None:
        try:
            log_id = self.engine.handle_change_membership(
                message.change, retain=message.retain, force=message.force, store_ids=message.store_ids, now=now
            )
        except BaseException as error:
            self.fail(error)  # as for a write
            refuse([message.future], self.stop_error)
            raise
        if isinstance(log_id, LogId):
            self.waiting.wait_for_all(log_id, [ClientWrite([b""], [None], [message.future], [0.0], message.deadline)])
        elif not message.future.done():
            message.future.set_exception(log_id)

    def _handle_notification(self, notification: Notification, now: float) -> None:
        engine = self.engine
        match notification:
            case ReplicationProgress():
                sent = notification.command
                engine.on_replication_progress(
                    sent.session, sent.target, sent.epoch, sent.seq, sent.sent_at, notification.response, now
                )
            case LogFlushed():
                engine.on_log_flushed(notification.io_id, now)
                self.runner.release()
                if self.worker.is_ordered:
                    self.runner.apply()
            case Applied():
                engine.on_applied(notification.log_id, now)
            case CommitNoticeDue():
                engine.on_commit_notice_due(now)
            case HeartbeatAnswered():
                beat = notification.command
                engine.on_heartbeat_response(
                    beat.session, notification.target, beat.seq, beat.sent_at, notification.response, now
                )
            case Ticked():
                if self.tick_enabled:
                    engine.handle_tick(now)
                    self._expire_sessions(now)
                self.waiting.sweep(now)
                self.runner.sweep(now)
                self._watch_storage(now)
                self.stalls.figures.count_new()
                self.worker.watch(now, self.config.storage_stall_timeout_ms / 1000)
            case ReplicationFailed():
                engine.on_replication_failed(notification.session, notification.target, notification.epoch, now)
            case VoteAnswered():
                answered = engine.on_pre_vote_response if notification.is_pre_vote else engine.on_vote_response
                answered(notification.sender, notification.target, notification.response, now)
            case SnapshotSent():
                order = notification.command
                engine.on_snapshot_sent(
                    order.session,
                    order.target,
                    order.epoch,
                    order.seq,
                    order.sent_at,
                    notification.installed,
                    notification.response,
                    now,
                )
            case SnapshotBuilt():
                engine.on_snapshot_built(notification.meta, now)
                if notification.meta is not None:
                    self.instruments.on_snapshot(notification.meta)
            case SnapshotInstalled():
                engine.on_snapshot_installed(notification.meta, notification.request_id, now)
                self.waiting.superseded(index_of(notification.meta.last_log_id))
                self.instruments.on_snapshot(notification.meta)
            case SnapshotRefused():
                engine.on_snapshot_install_failed(notification.request_id, notification.error)
            case TransferAnswered():
                engine.on_transfer_response(notification.session, notification.target, notification.response, now)
            case _:
                assert_never(notification)

    # --- what others see --------------------------------------------------------------------------------------------

    def applied(self, batch: Batch, results: Sequence[Any]) -> None:
        """The machine has applied a batch: answer whoever waits for its entries."""
        if self.fatal is not None:
            return
        if self._is_tracing:
            self.instruments.trace("RaftCore.applied")
        if self.waiting.writers:
            self._answer_writers(batch, results)
        if self.runner.is_running:
            self.runner.applied = batch.last_log_id
        else:
            self.notify(Applied(batch.last_log_id))

    def _watch_storage(self, now: float) -> None:
        """Name a storage that does not finish; the engine steps down for it."""
        since = self.engine.state.io.oldest_submitted_at()
        if since is None or now - since < self.config.storage_stall_timeout_ms / 1000:
            return
        if self._stalled_since != since:
            self._stalled_since = since
            self.stalls.unfinished(self.writer.storage, "write", now - since)
            self.instruments.on_storage_stall(now - since)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Tell everybody who waits, then stop everything this node started: each step bounded in time."""
        self.ticker.stop()
        node_id = self.engine.config.id
        orderly = isinstance(self.fatal, Stopped)
        if not orderly:
            log.critical("node %s stopped: %s", node_id, self.fatal, exc_info=self.fatal)
            if self.fatal is not None:
                self.instruments.on_fatal(self.fatal)
        self._refuse_inbox()
        self.waiting.fail_all(self.stop_error)
        self.runner.halt()
        await bounded(self.runner.close(SHUTDOWN_GRACE), 2 * SHUTDOWN_GRACE, f"node {node_id}: its streams")
        await bounded(self.worker.close(SHUTDOWN_GRACE), 3 * SHUTDOWN_GRACE, f"node {node_id}: its state machine")
        await bounded(self.writer.close(), SHUTDOWN_GRACE, f"node {node_id}: its log")
        await bounded(self.peers.close(SHUTDOWN_GRACE), 2 * SHUTDOWN_GRACE, f"node {node_id}: its connections")
        self._notifications.clear()
        self._ended()


_TICKED = Ticked()
