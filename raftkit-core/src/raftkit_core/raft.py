"""``Raft``: the handle an application holds. Cheap calls into one node's loop; every await has an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from raftkit_core.clock import Clock, SystemClock
from raftkit_core.config import Config, ReadPolicy
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.errors import CommandRejected, ConfigError, RaftError, WaitTimeout
from raftkit_core.instrument import Instruments
from raftkit_core.network.client import NodeReport, NodeStatus
from raftkit_core.network.client_session import ClientSession
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.runtime.closing import close_node
from raftkit_core.runtime.controls import RuntimeConfig, Trigger
from raftkit_core.runtime.envelopes import Envelopes
from raftkit_core.runtime.events import EVENTS_KEPT
from raftkit_core.runtime.figures import NodeFigures
from raftkit_core.runtime.full_snapshots import FullSnapshots
from raftkit_core.runtime.held_sessions import HeldSessions, OpeningSession
from raftkit_core.runtime.leadership import LeadershipTerm, hold_leadership
from raftkit_core.runtime.limits import within
from raftkit_core.runtime.membership_changes import MEMBERSHIP_TIMEOUT, MembershipChanges
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.runtime.metrics import Watch
from raftkit_core.runtime.node_parts import NodeParts, assemble
from raftkit_core.runtime.opening import Adapters, opened
from raftkit_core.runtime.operation_runner import OperationRunner
from raftkit_core.runtime.operations import Forwarder
from raftkit_core.runtime.reads import LinearizableReads
from raftkit_core.runtime.session_service import SessionService
from raftkit_core.runtime.status import node_status
from raftkit_core.runtime.survey import SURVEY_SECONDS, Surveyor
from raftkit_core.runtime.view import NodeView
from raftkit_core.runtime.wait import Wait
from raftkit_core.runtime.writes import Writes
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.kv_watch import KvWatch
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import DEFAULT_GROUP, NodeId, is_node_id
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import ChangeMembers, Node
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.metrics import NodeCounters, NodeEvent, RaftDataMetrics, RaftMetrics, RaftServerMetrics
from raftkit_core.types.operations import Operation
from raftkit_core.types.session import DEFAULT_TTL_MS, SessionSerial
from raftkit_core.types.snapshot import SnapshotSource
from raftkit_core.types.vote import Vote

T = TypeVar("T")

WRITE_TIMEOUT = 5.0


class Raft:
    """One running node. Made by :func:`raftkit_core.open_raft`, or by :meth:`Raft.start` from adapter objects.

    Timeouts are in seconds. Every method may raise ``Fatal`` (``Stopped`` after a shutdown).
    """

    def __init__(self, parts: NodeParts, adapters: Adapters, data_dir: Path | None) -> None:
        core, identity, service, self._events = parts
        self._core = core
        self._identity = identity
        self._service = service
        self._adapters = adapters
        self.machine = adapters.machine
        """The state machine; look at it through :meth:`read`."""
        self.data_dir = data_dir
        self._started_at = core.clock.monotonic()
        self._recovered_tail = core.engine.state.log.last_index
        self._view = NodeView(core, identity)
        self._metrics: Watch[RaftMetrics] = Watch(self._view.metrics, core.watchers)
        self._data_metrics: Watch[RaftDataMetrics] = Watch(self._view.data_metrics, core.watchers)
        self._server_metrics: Watch[RaftServerMetrics] = Watch(self._view.server_metrics, core.watchers)
        self._reads = LinearizableReads(core)
        self._members = MembershipChanges(core, identity, service, adapters.network, self.wait)
        self._sessions = SessionService(core, self._reads, lambda: identity.current.cluster_id)
        envelopes = self._envelopes = Envelopes(
            self.machine, self._sessions, max_entry_bytes=core.config.max_entry_bytes
        )
        self._operations = OperationRunner(core, self.machine, envelopes, self._members, self._sessions, self.report)
        self._forwarder = Forwarder(core, self._operations.run)
        self._surveyor = Surveyor(core, self._forwarder, self.report)
        self._writes = Writes(core, self.machine, envelopes, self._forwarder)
        self._held_sessions = HeldSessions(core, self._forwarder, self._writes)
        self._full_snapshots = FullSnapshots(core, adapters.snapshots, service)
        self._closing: asyncio.Task[None] | None = None

    # --- making one -------------------------------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        node_id: NodeId,
        *,
        storage: RaftLogStorage,
        snapshots: RaftSnapshotStorage,
        state_machine: RaftStateMachine,
        network: RaftNetworkFactory,
        config: Config | None = None,
        group: str = DEFAULT_GROUP,
        data_dir: Path | None = None,
        clock: Clock | None = None,
        entropy: Random | None = None,
        instruments: Instruments | None = None,
        owns_network: bool = True,
    ) -> Raft:
        """Open the adapters, recover, serve peers and run. What was opened is closed again if anything fails.

        Opening each has 60 seconds; recovery takes as long as there is to replay: bound it by ``asyncio.timeout``.

        Raises: StorageError, IdentityError, NeedsRejoin, AddressInUse, PluginError, Fatal.
        """
        if not is_node_id(node_id):
            raise ConfigError(
                f"{node_id!r} is not a node id", hint="use 1 to 63 of [A-Za-z0-9._-], first a letter or digit"
            )
        config = Config() if config is None else config
        clock = SystemClock() if clock is None else clock
        entropy = Random() if entropy is None else entropy
        context = AdapterContext(node_id, clock=clock, cluster=config.cluster, group=group, data_dir=data_dir)
        adapters = Adapters(storage, snapshots, state_machine, network, owns_network)
        handle: list[Raft] = []
        async with AsyncExitStack() as closers:
            identity = await adapters.open(context, config, entropy, closers)
            parts = await assemble(
                identity=identity,
                storage=storage,
                snapshots=snapshots,
                machine=state_machine,
                network=network,
                config=config,
                clock=clock,
                entropy=entropy,
                instruments=Instruments() if instruments is None else instruments,
                read_index=lambda request: handle[0]._reads.serve_read_index(request),
                forward=lambda request: handle[0]._forwarder.serve(request),
                ended=lambda: handle[0]._ended(),
            )
            raft = cls(parts, adapters, data_dir)
            handle.append(raft)
            raft._core.prepare()
            network.attach(raft)
            await opened(network, network.serve(group, raft._service))
            closers.pop_all()  # open, for as long as the node runs
        raft._core.start()
        return raft

    def _ended(self) -> None:
        self._metrics.close(self._view.metrics())
        self._data_metrics.close(self._view.data_metrics())
        self._server_metrics.close(self._view.server_metrics())

    def fail(self, error: BaseException) -> None:
        """Stop this node at once because of ``error``: nothing more is written, answered or sent. ``shutdown`` then
        only closes what is open."""
        self._core.fail(error)

    def supervise(self, task: asyncio.Task[Any]) -> None:
        """A done callback for a task this node depends on: if it fails, the node stops with that cause."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    async def __aenter__(self) -> Raft:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> NodeId:
        return self._core.engine.config.id

    @property
    def config(self) -> Config:
        return self._core.config

    @property
    def store_id(self) -> str:
        """The identity of this node's store."""
        return self._identity.current.store_id

    @property
    def cluster_id(self) -> str | None:
        """The cluster this node belongs to; None before it belongs to one."""
        return self._identity.current.cluster_id

    @property
    def is_pristine(self) -> bool:
        """No vote, no entry: never part of a cluster."""
        return self._core.engine.state.is_pristine

    @property
    def group(self) -> str:
        return self._service.group

    @property
    def fatal(self) -> BaseException | None:
        """Why the node has stopped; None while it runs."""
        return self._core.fatal

    def metrics(self) -> Watch[RaftMetrics]:
        """Everything, at any time."""
        return self._metrics

    def data_metrics(self) -> Watch[RaftDataMetrics]:
        """What moves with every write."""
        return self._data_metrics

    def server_metrics(self) -> Watch[RaftServerMetrics]:
        """What moves with elections and membership changes."""
        return self._server_metrics

    def wait(self, timeout: float) -> Wait:
        """Wait for conditions on the metrics: ``await raft.wait(5).current_leader("n1")``."""
        return Wait(self._metrics, timeout)

    async def wait_for_recovery(self, timeout: float) -> LogId | None:
        """Wait until everything that was in this node's log when it started is committed, or replaced by what is.

        Before that a local read may show less than this node had acknowledged in an earlier life. Gives the committed
        position. Raises: WaitTimeout, Stopped.
        """
        tail = self._recovered_tail
        done = await self.wait(timeout).metrics(
            lambda m: index_of(m.committed) >= tail, f"everything up to {tail} to be committed"
        )
        return done.committed

    def current_leader(self) -> NodeId | None:
        """Who leads, as far as this node knows; may be out of date."""
        return self._metrics.value.current_leader

    async def is_initialized(self) -> bool:
        """Whether this node has ever voted or held an entry."""
        self._core.check_running()
        return not self._core.engine.state.is_pristine

    async def status(self, *, digest: bool = False) -> NodeStatus:
        """What this node says about itself. Touches no queue; ``digest`` costs a pass over the machine's state."""
        self._core.check_loop()
        return await node_status(
            view=self._view,
            core=self._core,
            identity=self._identity.current,
            storage=self._adapters.storage,
            machine=self.machine,
            started_at=self._started_at,
            digest=digest,
        )

    def events(self, after: int = 0, limit: int = EVENTS_KEPT) -> list[NodeEvent]:
        """What happened to this node lately: role changes, elections, membership, snapshots, stalls."""
        return self._events.since(after, limit)

    def counters(self) -> NodeCounters:
        """How often things happened since the process started."""
        return self._events.counters

    def figures(self) -> NodeFigures:
        """How long flushes, snapshots, calls and reads took."""
        return self._core.stalls.figures

    @property
    def is_storage_stalled(self) -> bool:
        """Whether a log write has been under way for longer than ``storage_stall_timeout_ms``."""
        since = self._core.engine.state.io.oldest_submitted_at()
        return since is not None and self._core.clock.monotonic() - since >= self.config.storage_stall_timeout_ms / 1000

    @property
    def session_count(self) -> int:
        """Client sessions that are open, as far as this node has applied the log."""
        return len(self._core.worker.system.sessions)

    async def report(self, events_after: int = 0) -> NodeReport:
        """Status and events of this node, as a survey shows them."""
        return NodeReport(id=self.id, status=await self.status(), events=self.events(events_after))

    async def survey(
        self, events_after: dict[NodeId, int] | None = None, *, timeout: float = SURVEY_SECONDS
    ) -> list[NodeReport]:
        """A report of every member, asked over the peer connections; one that does not answer says why."""
        self._core.check_running()
        return await self._surveyor.survey(events_after or {}, timeout)

    async def with_raft_state(self, function: Callable[[RaftState], T]) -> T:
        """Run ``function`` on the engine's state inside the loop, between two events."""
        return await self._core.external(lambda engine, now: function(engine.state))

    async def external_request(self, function: Callable[[Engine, float], T]) -> T:
        """Run ``function(engine, now)`` inside the loop."""
        return await self._core.external(function)

    # --- writing ----------------------------------------------------------------------------------------------------

    async def client_write(
        self, command: Any, *, timeout: float = WRITE_TIMEOUT, condition: WriteCondition | None = None
    ) -> ClientWriteResponse:
        """Propose ``command`` here and wait until it is applied. ``condition`` must hold when it enters the log.

        Raises: ForwardToLeader, QuorumNotEnough, Overloaded, BadCommand, ConditionFailed (nothing entered the log);
        CommandRejected (the machine refused it); NotApplied; OutcomeUnknown (deadline, shutdown).
        """
        payload, decoded = self._envelopes.of(command)
        return await self._core.propose(payload, timeout, condition, decoded)

    def client_write_ff(
        self, command: Any, *, timeout: float = WRITE_TIMEOUT, condition: WriteCondition | None = None
    ) -> asyncio.Future[ClientWriteResponse]:
        """Propose ``command`` and return the future of its result at once."""
        payload, decoded = self._envelopes.of(command)
        return self._core.propose(payload, timeout, condition, decoded)

    async def client_write_many(
        self, commands: Iterable[Any], *, timeout: float = WRITE_TIMEOUT
    ) -> list[ClientWriteResponse | RaftError]:
        """Propose ``commands`` in one append, in order; gives each one's result or error."""
        return await self._writes.append_commands(commands, timeout)

    async def write_many(
        self, commands: Sequence[Any], serials: Sequence[SessionSerial] | None = None, *, timeout: float = WRITE_TIMEOUT
    ) -> list[ClientWriteResponse | RaftError]:
        """Like :meth:`write` for several commands at once: one append where this node leads. Gives each one's result or
        error, in order. ``serials`` are those of the commands, under sessions of whoever calls; one whose outcome is
        unknown is not sent again here."""
        return await self._writes.write_many(commands, serials, timeout)

    async def write(
        self, command: Any, *, session: ClientSession | SessionSerial | None = None, timeout: float = WRITE_TIMEOUT
    ) -> ClientWriteResponse:
        """Like :meth:`client_write`, from any node: forwards to the leader, and waits for one until the deadline.

        With a ``session`` (of :meth:`open_session`) it is sent again where an answer was lost, with one effect. A
        :class:`SessionSerial` says who carries the session, for those who keep serials themselves.

        Raises: as client_write; QuorumNotEnough if no leader was found in time; OutcomeUnknown if an answer was lost;
        SessionExpired, SerialReused, SessionFull, ResultForgotten under a session.
        """
        return await self._writes.write(command, session, timeout)

    def open_session(self, ttl: float = DEFAULT_TTL_MS / 1000, *, timeout: float = WRITE_TIMEOUT) -> OpeningSession:
        """A client session that lasts until it is closed, or ``ttl`` seconds after its last keep-alive.

        ``async with raft.open_session() as session: await session.write(command)``; or await it, and close it yourself.

        Raises: TooManySessions, BadRequest, and what a write raises.
        """
        return self._held_sessions.open(ttl, timeout)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def get_read_log_id(
        self, policy: ReadPolicy = ReadPolicy.READ_INDEX, *, timeout: float = WRITE_TIMEOUT
    ) -> tuple[LogId, LogId | None]:
        """Leader only: a log id such that a read after applying it is linearizable, and what is applied now.

        Raises: ForwardToLeader, QuorumNotEnough.
        """
        return await self._reads.read_log_id(policy, timeout)

    async def ensure_linearizable(
        self, policy: ReadPolicy = ReadPolicy.READ_INDEX, *, timeout: float = WRITE_TIMEOUT
    ) -> LogId:
        """Leader only: return once a local read is linearizable. Raises: as get_read_log_id."""
        return await self._reads.ensure(policy, timeout)

    async def read(
        self,
        fn_or_query: Any,
        policy: ReadPolicy = ReadPolicy.READ_INDEX,
        *,
        timeout: float = WRITE_TIMEOUT,
    ) -> Any:
        """Read the local machine once that is safe under ``policy``, from any node.

        A callable gets the machine; anything else goes to ``machine.query``. A follower asks the leader for a read
        position and waits until it has applied it.

        Raises: QuorumNotEnough if the leader could not be confirmed in time; WaitTimeout if the machine was too slow.
        """
        self._core.check_running()
        deadline = asyncio.get_running_loop().time() + timeout
        if policy is not ReadPolicy.STALE:
            await self._reads.confirm(policy, timeout)
        self._core.check_running()
        if callable(fn_or_query):
            found = self._core.stalls.run(fn_or_query, self.machine)
        else:
            found = self._core.stalls.call(self.machine, "query", fn_or_query)
        if not isinstance(found, Awaitable):
            return found
        try:
            left = max(deadline - asyncio.get_running_loop().time(), 0.001)
            return await within(found, left, f"a query of the machine {self.machine.name}")
        except TimeoutError:
            self._core.check_running()
            raise WaitTimeout(f"the machine {self.machine.name} gave no answer within {timeout} s") from None

    def watch(self, prefix: str = "", from_revision: int | None = None) -> KvWatch:
        """Changes of the keys with ``prefix``, in log order and without gaps, from ``from_revision`` on (None: from now
        on). Any node serves it: what is seen here is applied, and a node that lags shows it later.

        A machine of another kind than ``kv/1`` has none: CommandRejected. Raises, also while it is iterated: Compacted
        (the revision is no longer kept, or the reader was overtaken); Stopped or Fatal with the node.
        """
        self._core.check_loop()
        self._core.check_running()
        changes = self._core.worker.changes
        if changes is None:
            raise CommandRejected(f"the machine {self.machine.name} has no keys to watch")
        return KvWatch(changes, prefix, from_revision, self._core.check_running)

    # --- the cluster ------------------------------------------------------------------------------------------------

    async def initialize(self, members: Mapping[NodeId, Node] | Iterable[NodeId]) -> None:
        """Make a cluster of ``members``, all voters, on pristine nodes. Every member is asked for its store first.

        Simultaneous calls with one list agree on the cluster; different lists do not mix. Returns when the first entry
        and this node's vote for itself are durable, not when a leader exists.

        Raises: NotAllowed, NotInMembers, Unreachable (a member does not answer), ConfigError.
        """
        await self._members.initialize(members)

    async def call(self, operation: Operation, *, timeout: float = MEMBERSHIP_TIMEOUT) -> Any:
        """Run an operation of :mod:`raftkit_core.types.operations` here, or on the leader by one hop.

        Raises: the operation's own errors; QuorumNotEnough without a leader; OutcomeUnknown for a lost answer.
        """
        return await self._forwarder.call(operation, timeout)

    async def add_learner(
        self,
        node_id: NodeId,
        node: Node,
        *,
        blocking: bool = True,
        bind: bool = True,
        timeout: float = MEMBERSHIP_TIMEOUT,
    ) -> ClientWriteResponse:
        """Leader only: add ``node_id`` as a learner; ``blocking`` waits until it lags at most
        ``Config.replication_lag_threshold`` entries. ``bind=False`` accepts any store at that address.

        Raises: as change_membership; Unreachable if the node does not say which store it has.
        """
        return await self._members.add_learner(node_id, node, blocking=blocking, bind=bind, timeout=timeout)

    async def change_membership(
        self,
        change: ChangeMembers | Iterable[NodeId],
        *,
        retain: bool = False,
        force: bool = False,
        timeout: float = MEMBERSHIP_TIMEOUT,
    ) -> ClientWriteResponse:
        """Leader only: change voters or nodes, through a joint configuration where needed. A plain collection of ids
        replaces all voters. ``retain`` keeps removed voters as learners; ``force`` allows a change that the reachable
        voters could not survive.

        Raises: ForwardToLeader, InProgress, EmptyMembership, LearnerNotFound, QuorumWouldBeLost, StoreIdChange,
        OutcomeUnknown.
        """
        return await self._members.change_membership(change, retain=retain, force=force, timeout=timeout)

    async def set_members(
        self,
        goal: Mapping[NodeId, Node] | Iterable[NodeId],
        *,
        timeout: float = MEMBERSHIP_TIMEOUT,
        on_step: Callable[[str], None] | None = None,
    ) -> ClientWriteResponse:
        """Leader only: make exactly ``goal`` the voters: add and catch up what is missing, then change, then remove.

        Can be repeated after a failure at any step. ``on_step`` is told in words what is done next. ``timeout`` is for
        each step. Raises: ChangeMembershipError for another address than a member's; as change_membership.
        """
        return await self._members.set_members(goal, timeout=timeout, on_step=on_step)

    async def transfer_leader(self, to: NodeId | None = None, *, timeout: float = WRITE_TIMEOUT) -> NodeId:
        """Leader only: hand leadership to ``to`` (None: the most up-to-date voter). Gives the new leader's id.

        Raises: ForwardToLeader, TransferFailed (writes go on here).
        """
        return await self._members.transfer_leader(to, timeout=timeout)

    def leadership(self, *, timeout: float = 365 * 86400.0) -> AbstractAsyncContextManager[LeadershipTerm]:
        """``async with raft.leadership() as term``: a block that runs only while this node leads.

        Waits up to ``timeout`` seconds until this node leads; the block is cancelled when the *read lease* ends, and
        ``LeadershipLost`` is raised. ``term.token`` fences what the block writes elsewhere.
        """
        return hold_leadership(self._core, self.wait(timeout))

    def trigger(self) -> Trigger:
        """Ask for something now; every call only enqueues and returns."""
        return Trigger(self._core)

    def runtime_config(self) -> RuntimeConfig:
        """Switches that may change while the node runs."""
        return RuntimeConfig(self._core)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def get_snapshot(self) -> SnapshotSource | None:
        """The published snapshot, readable until it is closed; None before there is one."""
        return await self._full_snapshots.published()

    async def install_full_snapshot(
        self, vote: Vote, snapshot: SnapshotSource, *, timeout: float = MEMBERSHIP_TIMEOUT
    ) -> InstallSnapshotResponse:
        """Hand this node a complete snapshot under a leader's ``vote``. Installed unless there is nothing new in it, or
        the answer carries another vote (this node follows that one).

        Raises: StorageCorrupt if the bytes are not what they should be; PeerBusy while another one is installed;
        OutcomeUnknown after ``timeout`` seconds.
        """
        return await self._full_snapshots.install(vote, snapshot, timeout)

    # --- server side of the RPCs, for transports --------------------------------------------------------------------

    async def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> AppendEntriesResponse:
        return await self._service.append_entries(request, peer)

    async def vote(self, request: VoteRequest, peer: PeerIdentity) -> VoteResponse:
        return await self._service.vote(request, peer)

    async def pre_vote(self, request: VoteRequest, peer: PeerIdentity) -> VoteResponse:
        return await self._service.pre_vote(request, peer)

    # --- the end ----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Have the transport read its certificates and tokens again, as after SIGHUP. Connections stay open."""
        self._adapters.network.reload()

    @property
    def is_stopping(self) -> bool:
        """Whether a shutdown has begun: what is under way is brought to its end, nothing new should be sent here."""
        return self._closing is not None

    async def shutdown(self) -> None:
        """Hand leadership over if there is somebody to take it, stop, close everything. Idempotent, bounded in time."""
        self._core.check_loop()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._held_sessions.abandon()
        await close_node(
            self._core,
            group=self.group,
            adapters=self._adapters,
            identity=self._identity,
            members=self._members,
            forwarder=self._forwarder,
            reads=self._reads,
        )


__all__ = ["Raft", "RuntimeConfig", "Trigger"]
