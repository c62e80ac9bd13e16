"""Carries out the engine's commands: the log lane at once, everything else when what it waits for is durable.

Waits point one way only: network, state machine and answers wait for the log, never the other way round. Commands
released together leave in the order they were emitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_args

from raftkit_core.config import Config
from raftkit_core.engine.commands import (
    AppendInputEntries,
    BecomeLeader,
    BuildSnapshot,
    Command,
    Commit,
    ConfirmRead,
    DeleteConflictLog,
    InstallSnapshot,
    PurgeLog,
    QuitLeader,
    RebuildReplicationStreams,
    Replicate,
    ReplicateCommitted,
    ReplicateSnapshot,
    Respond,
    RetireStore,
    SaveLease,
    SaveVote,
    SendHeartbeat,
    SendPreVote,
    SendTransferLeader,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import ConfigError, LogReversion, PeerBusy
from raftkit_core.instrument import Instruments
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.runtime.heartbeat import HeartbeatSender
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.messages import (
    CommitNoticeDue,
    Notification,
    ReplicationFailed,
    SnapshotRefused,
    TransferAnswered,
    VoteAnswered,
)
from raftkit_core.runtime.peer_calls import PeerCalls
from raftkit_core.runtime.peers import PeerTable
from raftkit_core.runtime.replication import ReplicationStream, RequestCache
from raftkit_core.runtime.snapshot_transfer import SnapshotTransfers
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.storage.interface import RaftSnapshotStorage, SnapshotSink
from raftkit_core.types.ids import IoId, NodeId, RequestId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import AppendEntriesResponse, VoteRequest

SWEEP_SECONDS = 0.25
COMMIT_NOTICE_SECONDS = 0.003
"""How long a commit notice may wait for an append that says the same: while a client writes on, it always finds one. A
read does not wait for it."""
APPLY_SECONDS = 0.003
"""How long what is committed may wait for more to be applied together, where nobody waits for it."""
PARKED_KEPT = 256
"""Orders that may wait for the log before it is looked whether somebody still waits for them."""


class CommandRunner:
    """Owns streams, heartbeats, transfers and vote calls; keeps the commands that wait for the log."""

    def __init__(
        self,
        *,
        config: Config,
        engine: Engine,
        writer: LogWriter,
        worker: StateMachineWorker,
        peers: PeerTable,
        snapshots: RaftSnapshotStorage,
        waiting: WaitingClients,
        instruments: Instruments,
        stalls: StallDetector,
        notify: Callable[[Notification], None],
        failed: Callable[[BaseException], None],
        retire: Callable[[str], Awaitable[None]],
    ) -> None:
        self._config = config
        self._retire_store = retire
        self._engine = engine
        self._writer = writer
        self._worker = worker
        self._peers = peers
        self._waiting = waiting
        self._instruments = instruments
        self._notify = notify
        self._failed = failed
        self._parked: list[tuple[int, Command]] = []
        self._released: IoId = 0
        """Up to where the log was durable when it was last looked at, and nobody waits any more: it only grows."""
        self._lane = writer.queue
        self._orders = engine.commands
        self._io = engine.state.io
        self.is_running = False
        """Commands are being carried out; what they finish at once comes next."""
        self.applied: LogId | None = None
        """Up to where the machine has applied meanwhile; the engine is to hear of it."""
        self._requests = RequestCache()
        self._streams: dict[NodeId, ReplicationStream] = {}
        self._stalls = stalls
        self._calls = PeerCalls(stalls)
        self._base_timeout = 2 * config.election_timeout_max_ms / 1000
        self._vote_timeout = config.election_timeout_min_ms / 1000
        self._heartbeats = HeartbeatSender(
            peers=peers,
            stalls=stalls,
            notify=notify,
            lease_ms=config.leader_lease_ms,
            timeout=config.election_timeout_min_ms / 1000,
        )
        self._transfers = SnapshotTransfers(
            snapshots=snapshots,
            notify=notify,
            failed=failed,
            chunk_timeout=config.install_snapshot_timeout_ms / 1000,
        )
        self.received: dict[RequestId, SnapshotSink] = {}
        """Snapshots whose bytes are all here, by the request that brought them."""
        self._unconnected: set[NodeId] = set()
        """Peers the engine sends to but no stream could be opened for."""
        self._notice_timer: asyncio.TimerHandle | None = None
        self._apply_timer: asyncio.TimerHandle | None = None
        self._answered: Callable[[Replicate, AppendEntriesResponse], None] = lambda command, response: None
        self._halted = False
        self._swept_at = float("-inf")
        self._actions: dict[type, Callable[[Any], None]] = {
            AppendInputEntries: self._append_entries if instruments.is_tracing else writer.append,
            Replicate: self._replicate,
            Commit: self._commit_traced if instruments.is_tracing else self._commit,
            Respond: self._respond,
            SaveVote: writer.submit,
            SaveLease: writer.submit,
            DeleteConflictLog: writer.submit,
            PurgeLog: writer.submit,
            ReplicateCommitted: self._tell_committed_soon,
            SendHeartbeat: self._send_heartbeat,
            ConfirmRead: self._send_heartbeat,
            ReplicateSnapshot: self._replicate_snapshot,
            SendVote: self._send_vote,
            SendPreVote: self._send_pre_vote,
            SendTransferLeader: self._send_transfer,
            RebuildReplicationStreams: self._rebuild_streams,
            BecomeLeader: self._new_leadership,
            QuitLeader: self._new_leadership,
            BuildSnapshot: self._build_snapshot,
            InstallSnapshot: self._install_snapshot,
            RetireStore: self._retire,
        }
        """What carries out each kind of command: found in one step, for every write needs a dozen of them."""
        assert self._actions.keys() == set(get_args(Command)), "every command is carried out"

    def attach(self, answered: Callable[[Replicate, AppendEntriesResponse], None]) -> None:
        """Tell this of the answers to appends."""
        self._answered = answered

    # --- the queue --------------------------------------------------------------------------------------------------

    def run(self, now: float) -> None:
        """Carry out what the engine has ordered, in order, and what that leads to at once; what waits for the log is
        parked."""
        orders, actions, engine = self._orders, self._actions, self._engine
        writer, worker = self._writer, self._worker
        self.is_running = True
        while orders and not self._halted:
            for command in orders:  # none are left when the node is halted meanwhile
                when = command.when
                if when > self._released and self.must_wait(when):
                    self._parked.append((when, command))
                else:
                    actions[type(command)](command)
            orders.clear()
            if self._lane:
                writer.kick()
            if writer.written > self._io.flushed_io:
                engine.on_log_flushed(writer.written, now)
                if self._parked:
                    self.release()
            if worker.is_ordered:
                self.apply()  # after the answers to a leader, which wait for the log alone
            applied = self.applied
            if applied is not None:
                self.applied = None
                engine.on_applied(applied, now)
        self.is_running = False

    def must_wait(self, io_id: IoId) -> bool:
        """Whether a command has to wait for ``io_id``, or for its turn after those that wait already. A storage that
        finishes at once gets its chance first."""
        writer = self._writer
        if self._lane:
            writer.kick()
            if self._halted:
                return True  # a later write failed in the same step: nothing leaves any more, durable or not
        if not self._parked:
            self._released = writer.written
        return io_id > self._released

    def release(self) -> None:
        """More of the log is durable: carry out what waited for it, in the order of emission."""
        if not self._parked or self._halted:
            return
        self._released = flushed = self._writer.written
        parked, self._parked = self._parked, []
        for when, command in parked:
            if self._halted:
                return
            if when > flushed:
                self._parked.append((when, command))
            else:
                self._actions[type(command)](command)

    def apply(self) -> None:
        """Apply what is committed: at once where somebody waits for it, as on a leader; else soon, together with what
        is committed until then: a follower hears of each write by itself, and a batch costs more than its entries."""
        if self._engine.is_leader or self._waiting.writers or self._worker.is_awaited:
            self._worker.go_on()
        elif self._apply_timer is None:
            self._apply_timer = asyncio.get_running_loop().call_later(APPLY_SECONDS, self._apply_is_due)

    def _apply_is_due(self) -> None:
        self._apply_timer = None
        if self._worker.is_ordered:
            self._worker.go_on()

    def _append_entries(self, command: AppendInputEntries) -> None:
        self._instruments.trace("CommandRunner.append_input_entries")
        self._writer.append(command)

    def _replicate(self, command: Replicate) -> None:
        stream = self._streams.get(command.target)
        if stream is not None and stream.session == command.session:
            stream.replicate(command)  # None or another: its leadership is over, or the peer is gone

    def _commit(self, command: Commit) -> None:
        upto = command.upto
        self._writer.save_committed(upto)
        self._worker.commit(upto)

    def _commit_traced(self, command: Commit) -> None:
        self._instruments.trace("CommandRunner.commit")
        self._commit(command)

    def _tell_committed_soon(self, command: ReplicateCommitted) -> None:
        if self._notice_timer is None:
            self._notice_timer = asyncio.get_running_loop().call_later(COMMIT_NOTICE_SECONDS, self._notice_is_due)

    def _notice_is_due(self) -> None:
        self._notice_timer = None
        self._notify(CommitNoticeDue())

    def _send_heartbeat(self, command: SendHeartbeat) -> None:
        if command.session == self._engine.session:
            self._heartbeats.send(command, self._client_of_stream)

    def _replicate_snapshot(self, command: ReplicateSnapshot) -> None:
        stream = self._streams.get(command.target)
        if stream is not None and stream.session == command.session:
            self._transfers.send(command, stream)

    def _new_leadership(self, command: BecomeLeader | QuitLeader) -> None:
        self._close_streams()

    def _build_snapshot(self, command: BuildSnapshot) -> None:
        self._worker.build_snapshot()

    def _install_snapshot(self, command: InstallSnapshot) -> None:
        sink = self.received.pop(command.request_id, None)
        if sink is not None:
            self._worker.install_snapshot(command.request_id, command.meta, sink)
        else:
            gone = PeerBusy("the sender of the snapshot has gone")
            self._notify(SnapshotRefused(command.request_id, gone))

    def _respond(self, command: Respond) -> None:
        under = command.under
        if under is not None and under is not (vote := self._engine.vote) and under != vote:
            # The answer was made under a vote that is no longer ours: it must not be believed by anyone.
            self._waiting.respond(command.request_id, PeerBusy("the vote changed before the answer was durable"))
            return
        self._waiting.respond(command.request_id, command.response)

    def _retire(self, command: RetireStore) -> None:
        reason = command.reason
        error = LogReversion(
            f"this store lost writes it had confirmed, and is retired: {reason}",
            hint=f"start it with an empty folder, then: raftkit member rejoin {self._engine.config.id}",
        )
        self._writer.retire(lambda: self._retire_store(reason), error)

    # --- votes and hand-over ----------------------------------------------------------------------------------------

    def _client(self, target: NodeId) -> RaftNetwork | None:
        node = self._engine.effective.nodes.get(target)
        if node is None:
            return None
        try:
            return self._peers.get(target, node)
        except ConfigError as error:
            self._peers.failed(target, error)
            return None

    def _send_vote(self, command: SendVote) -> None:
        if self._is_wanted(command):  # not of an earlier campaign, whose vote was long on its way to the disk
            self._ask_for_votes(command.targets, command.request, is_pre_vote=False)

    def _send_pre_vote(self, command: SendPreVote) -> None:
        self._ask_for_votes(command.targets, command.request, is_pre_vote=True)

    def _ask_for_votes(self, targets: Sequence[NodeId], request: VoteRequest, *, is_pre_vote: bool) -> None:
        """Ask in parallel, with a deadline; a failure, an error and an unknown request are no grants."""
        for target in targets:
            client = self._client(target)
            if client is None:
                continue
            method = "pre_vote" if is_pre_vote else "vote"
            self._calls.start(
                client, method, request, self._vote_timeout, self._vote_answered, (target, request, is_pre_vote)
            )

    def _vote_answered(self, asked: tuple[NodeId, VoteRequest, bool], error: BaseException | None, answer: Any) -> None:
        target, request, is_pre_vote = asked
        if error is not None:
            self._peers.failed(target, error)
            return
        self._peers.succeeded(target)
        self._notify(VoteAnswered(request.vote, target, answer, is_pre_vote))

    def _send_transfer(self, command: SendTransferLeader) -> None:
        client = self._client(command.target)
        if client is None:
            self._notify(TransferAnswered(command.session, command.target, None))
            return
        self._calls.start(
            client, "transfer_leader", command.request, self._vote_timeout, self._transfer_answered, command
        )

    def _transfer_answered(self, command: SendTransferLeader, error: BaseException | None, answer: Any) -> None:
        if error is not None:
            self._peers.failed(command.target, error)
        self._notify(TransferAnswered(command.session, command.target, answer))

    # --- streams ----------------------------------------------------------------------------------------------------

    def _client_of_stream(self, target: NodeId) -> RaftNetwork | None:
        stream = self._streams.get(target)
        return None if stream is None else stream.network

    def _rebuild_streams(self, command: RebuildReplicationStreams) -> None:
        """Keep the streams that go on, open the new ones, close the others; nothing here waits for a peer."""
        wanted: dict[NodeId, Node] = dict(command.targets)
        for target in [target for target in self._streams if target not in wanted]:
            self._streams.pop(target).close()
            self._transfers.cancel(target)
        for target, node in wanted.items():
            try:
                client = self._peers.get(target, node)
            except ConfigError as error:
                self._peers.failed(target, error)
                self._unconnected.add(target)
                continue
            known = self._streams.get(target)
            if known is not None and known.session == command.session and known.network is client:
                continue
            if known is not None:
                known.close()
                self._transfers.cancel(target)
            if target in self._unconnected or (known is not None and known.session == command.session):
                # What was in flight to the former address is lost: the engine must not wait for it.
                self._unconnected.discard(target)
                progress = self._engine.progress
                if progress is not None and target in progress:
                    self._notify(ReplicationFailed(command.session, target, progress[target].epoch))
            self._streams[target] = ReplicationStream(
                session=command.session,
                target=target,
                network=client,
                writer=self._writer,
                peers=self._peers,
                stalls=self._stalls,
                requests=self._requests,
                answered=self._answered,
                notify=self._notify,
                failed=self._failed,
                lease_ms=self._config.leader_lease_ms,
                max_payload_bytes=self._config.max_payload_bytes,
                max_bytes_inflight=self._config.max_payload_bytes * self._config.max_inflight,
                base_timeout=self._base_timeout,
            )
        self._peers.keep_only(self._engine.effective.nodes, frozenset(wanted))

    def _close_streams(self) -> None:
        for target, stream in self._streams.items():
            stream.close()
            self._transfers.cancel(target)
        self._streams.clear()
        self._requests.clear()
        self._unconnected.clear()

    # --- the end ----------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Give up calls to peers that their transport should have ended long ago, and answers nobody waits for."""
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        if len(self._parked) > PARKED_KEPT:
            # A log that hangs: who asks again and again, or campaigns again and again, must cost no memory.
            self._parked = [parked for parked in self._parked if self._is_wanted(parked[1])]
        self._calls.sweep(now)
        self._heartbeats.sweep(now)
        for stream in self._streams.values():
            stream.sweep(now)

    def _is_wanted(self, command: Command) -> bool:
        """Whether it would still do anything."""
        if isinstance(command, Respond):
            return self._waiting.waits(command.request_id)
        return not isinstance(command, SendVote) or command.request.vote == self._engine.vote

    def halt(self) -> None:
        """From now on nothing is carried out, answered or sent; what waits for the log is dropped."""
        self._halted = True
        self._orders.clear()
        self._parked.clear()
        for timer in (self._notice_timer, self._apply_timer):
            if timer is not None:
                timer.cancel()
        self._close_streams()
        self._heartbeats.close()
        self._calls.cancel()

    async def close(self, grace: float) -> None:
        """Wait for the ends of what :meth:`halt` stopped."""
        self.halt()
        await self._transfers.close(grace)
        for sink in self.received.values():
            await sink.abort(keep=True)
        self.received.clear()
