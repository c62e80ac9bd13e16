"""``Raft``: the handle an application holds. Cheap calls into one node's loop; every await has an end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from raftkit_core.clock import Clock, SystemClock
from raftkit_core.config import Config, ReadPolicy
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.errors import (
    BadCommand,
    ChangeMembershipError,
    ConfigError,
    ForwardToLeader,
    IdentityError,
    NeedsRejoin,
    NotAllowed,
    OutcomeUnknown,
    Overloaded,
    PluginError,
    QuorumNotEnough,
    RaftError,
    RPCError,
    RPCTimeout,
    Stopped,
    StorageError,
    TransferFailed,
    Unreachable,
    WaitTimeout,
)
from raftkit_core.instrument import Instruments
from raftkit_core.network.client import NodeStatus
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.runtime.command_runner import CommandRunner
from raftkit_core.runtime.leadership import LeadershipTerm, hold_leadership
from raftkit_core.runtime.limits import within
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.messages import (
    ChangeMembershipRequest,
    ClientWrite,
    ExternalRequest,
    Initialize,
    LogFlushed,
    Read,
    SnapshotBuilt,
    SnapshotInstalled,
    SnapshotRefused,
    TransferLeaderTo,
)
from raftkit_core.runtime.metrics import Watch
from raftkit_core.runtime.operations import OVERDUE_SECONDS, Forwarder
from raftkit_core.runtime.peers import PeerTable
from raftkit_core.runtime.raft_core import ClientWriteResponse, RaftCore, bounded
from raftkit_core.runtime.recovery import recover
from raftkit_core.runtime.service import Identity, PeerService
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.runtime.status import node_status
from raftkit_core.runtime.view import NodeView
from raftkit_core.runtime.wait import Wait
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.entry import ENVELOPE_VERSION, Envelope, encode_envelope
from raftkit_core.types.identity import PeerIdentity, StoreIdentity
from raftkit_core.types.ids import DEFAULT_GROUP, NodeId, is_node_id
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import (
    AddNodes,
    AddVoterIds,
    AddVoters,
    ChangeMembers,
    Membership,
    Node,
    ReplaceAllNodes,
    ReplaceAllVoters,
    SetNodes,
    StoredMembership,
)
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    HelloResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.metrics import RaftDataMetrics, RaftMetrics, RaftServerMetrics, ServerState
from raftkit_core.types.operations import (
    AddLearner,
    ChangeMembership,
    MembershipDone,
    Operation,
    TransferDone,
    TransferLeader,
    Write,
    WriteDone,
)
from raftkit_core.types.snapshot import SnapshotSource
from raftkit_core.types.vote import Vote

log = logging.getLogger("raftkit")

T = TypeVar("T")

WRITE_TIMEOUT = 5.0
MEMBERSHIP_TIMEOUT = 60.0
HELLO_TIMEOUT = 2.0
READ_INDEX_TIMEOUT = 2.0
OPEN_SECONDS = 60.0
CLOSE_SECONDS = 5.0
"""A plugin that does not close within this is left behind."""
RETRY_SECONDS = 0.05


class Raft:
    """One running node. Made by :func:`raftkit_core.open_raft`, or by :meth:`Raft.start` from adapter objects.

    Timeouts are in seconds. Every method may raise ``Fatal`` (``Stopped`` after a shutdown).
    """

    def __init__(
        self,
        *,
        core: RaftCore,
        identity: Identity,
        service: PeerService,
        storage: RaftLogStorage,
        snapshots: RaftSnapshotStorage,
        machine: RaftStateMachine,
        network: RaftNetworkFactory,
        owns_network: bool,
        data_dir: Path | None,
    ) -> None:
        self._core = core
        self._identity = identity
        self._service = service
        self._storage = storage
        self._snapshots = snapshots
        self._network = network
        self._owns_network = owns_network
        self._started_at = core.clock.monotonic()
        self._forwarder = Forwarder(core, self._run_operation)
        self._view = NodeView(core, identity)
        self._metrics: Watch[RaftMetrics] = Watch(self._view.metrics)
        self._data_metrics: Watch[RaftDataMetrics] = Watch(self._view.data_metrics)
        self._server_metrics: Watch[RaftServerMetrics] = Watch(self._view.server_metrics)
        self._closing: asyncio.Task[None] | None = None
        self._recovered_tail = core.engine.state.log.last_index
        self.machine = machine
        """The state machine; look at it through :meth:`read`."""
        self.data_dir = data_dir

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
        closers: list[Callable[[], Any]] = []
        if owns_network:
            closers.append(network.close)
        try:
            closers.append(storage.close)
            opening = open_identity(storage, context, config, state_machine, entropy)
            identity = await _opened(storage, opening)
            closers.append(snapshots.close)
            await _opened(snapshots, snapshots.open(context))
            closers.append(state_machine.close)
            await _opened(state_machine, state_machine.open(context))
            raft = await cls._assemble(
                identity=identity,
                storage=storage,
                snapshots=snapshots,
                machine=state_machine,
                network=network,
                owns_network=owns_network,
                config=config,
                clock=clock,
                entropy=entropy,
                instruments=Instruments() if instruments is None else instruments,
                data_dir=data_dir,
            )
            raft._core.prepare()
            network.attach(raft)
            await _opened(network, network.serve(group, raft._service))
        except BaseException:
            for close in reversed(closers):
                with suppress(Exception):
                    await bounded(close(), CLOSE_SECONDS, f"node {node_id}: what it had opened")
            raise
        raft._core.start()
        return raft

    @classmethod
    async def _assemble(
        cls,
        *,
        identity: StoreIdentity,
        storage: RaftLogStorage,
        snapshots: RaftSnapshotStorage,
        machine: RaftStateMachine,
        network: RaftNetworkFactory,
        owns_network: bool,
        config: Config,
        clock: Clock,
        entropy: Random,
        instruments: Instruments,
        data_dir: Path | None,
    ) -> Raft:
        """Tie the parts of one node together. The parts call back through ``late``, which is complete at the end."""
        late: dict[str, Any] = {}
        stalls = instruments.timer = StallDetector(identity.node_id, clock, instruments)
        held = Identity(storage, identity)

        def core() -> RaftCore:
            found: RaftCore = late["core"]
            return found

        writer = LogWriter(
            storage,
            held.save_lease,
            flushed=lambda io_id: core().notify(LogFlushed(io_id)),
            failed=lambda error: core().fail(error),
            stalls=stalls,
        )
        worker = StateMachineWorker(
            machine=machine,
            system=SystemMachine(),
            snapshots=snapshots,
            writer=writer,
            applied=None,
            membership=StoredMembership(),
            on_applied=lambda batch, results: late["core"].applied(batch, results) if "core" in late else None,
            on_built=lambda meta: core().notify(SnapshotBuilt(meta)),
            on_installed=lambda request_id, meta: core().notify(SnapshotInstalled(request_id, meta)),
            on_refused=lambda request_id, error: core().notify(SnapshotRefused(request_id, error)),
            failed=lambda error: core().fail(error),
            new_snapshot_id=lambda applied: f"{applied.term:x}-{applied.index:x}-{entropy.getrandbits(64):016x}",
            cluster_id=lambda: held.current.cluster_id,
            stalls=stalls,
        )
        state: RaftState = await recover(storage, snapshots, worker, identity)
        writer.start_at(state.log.first_index, state.log.last_index + 1)
        engine = Engine(EngineConfig(identity.node_id, identity.store_id, config), state, entropy)
        service = PeerService(
            identity=held,
            snapshots=snapshots,
            read_index=lambda request: late["raft"]._serve_read_index(request),
            forward=lambda request: late["raft"]._forwarder.serve(request),
        )
        peers = PeerTable(network, service)
        waiting = WaitingClients()
        runner = CommandRunner(
            config=config,
            engine=engine,
            writer=writer,
            worker=worker,
            peers=peers,
            snapshots=snapshots,
            waiting=waiting,
            instruments=instruments,
            stalls=stalls,
            notify=lambda notification: core().notify(notification),
            failed=lambda error: core().fail(error),
            retire=held.retire,
        )
        late["core"] = RaftCore(
            config=config,
            engine=engine,
            clock=clock,
            writer=writer,
            worker=worker,
            runner=runner,
            peers=peers,
            waiting=waiting,
            instruments=instruments,
            stalls=stalls,
            publish=lambda: late["raft"]._publish(),
        )
        late["raft"] = raft = cls(
            core=late["core"],
            identity=held,
            service=service,
            storage=storage,
            snapshots=snapshots,
            machine=machine,
            network=network,
            owns_network=owns_network,
            data_dir=data_dir,
        )
        service.attach(late["core"])
        return raft

    def _publish(self) -> None:
        if self._core.has_ended:
            self._metrics.close(self._view.metrics())
            self._data_metrics.close(self._view.data_metrics())
            self._server_metrics.close(self._view.server_metrics())
            return
        self._metrics.publish()
        self._data_metrics.publish()
        self._server_metrics.publish()

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
            storage=self._storage,
            snapshots=self._snapshots,
            machine=self.machine,
            started_at=self._started_at,
            digest=digest,
        )

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
        response: ClientWriteResponse = await self.client_write_ff(command, timeout=timeout, condition=condition)
        return response

    def client_write_ff(
        self, command: Any, *, timeout: float = WRITE_TIMEOUT, condition: WriteCondition | None = None
    ) -> asyncio.Future[ClientWriteResponse]:
        """Propose ``command`` and return the future of its result at once."""
        return self._propose(self.machine.codec.encode_command(command), timeout, condition)

    async def client_write_many(
        self, commands: Iterable[Any], *, timeout: float = WRITE_TIMEOUT
    ) -> list[ClientWriteResponse | RaftError]:
        """Propose ``commands`` in one append, in order; gives each one's result or error."""
        payloads = [self._envelope(self.machine.codec.encode_command(command)) for command in commands]
        if not payloads:
            return []
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in payloads]
        size_bytes = sum(len(payload) for payload in payloads)
        if size_bytes > self.config.max_uncommitted_bytes and len(payloads) > 1:
            raise Overloaded(
                f"{len(payloads)} commands take {size_bytes} bytes, max_uncommitted_bytes is"
                f" {self.config.max_uncommitted_bytes}",
                hint="write them in several calls",
            )
        self._core.send(ClientWrite(payloads, futures, self._core.clock.monotonic() + timeout, size_bytes))
        await asyncio.gather(*futures, return_exceptions=True)
        return [_result_of(future) for future in futures]

    def _envelope(self, body: bytes, session: int = 0, serial: int = 0, floor: int = 0) -> bytes:
        payload = encode_envelope(Envelope(ENVELOPE_VERSION, self.machine.name, session, serial, floor, body))
        if len(payload) > self.config.max_entry_bytes:
            raise BadCommand(
                f"the command takes {len(payload)} bytes, max_entry_bytes is {self.config.max_entry_bytes}",
                hint="split it, or raise max_entry_bytes on every node",
            )
        return payload

    def _propose(
        self, body: bytes, timeout: float, condition: WriteCondition | None = None
    ) -> asyncio.Future[ClientWriteResponse]:
        future: asyncio.Future[ClientWriteResponse] = asyncio.get_running_loop().create_future()
        deadline = self._core.clock.monotonic() + timeout
        payload = self._envelope(body)
        self._core.send(ClientWrite((payload,), (future,), deadline, len(payload), condition))
        return future

    async def write(
        self, command: Any, *, session: Any | None = None, timeout: float = WRITE_TIMEOUT
    ) -> ClientWriteResponse:
        """Like :meth:`client_write`, from any node: forwards to the leader, and waits for one until the deadline.

        Raises: as client_write; QuorumNotEnough if no leader was found in time; OutcomeUnknown if an answer was lost.
        """
        self._core.check_running()
        if session is not None:
            raise ConfigError("client sessions are not available in this version", hint="write without session=")
        if self._core.engine.is_leader:
            with suppress(ForwardToLeader, QuorumNotEnough):
                return await self.client_write(command, timeout=timeout)
        body = self.machine.codec.encode_command(command)
        done: WriteDone = await self._forwarder.call(Write(body), timeout)
        return ClientWriteResponse(done.log_id, self.machine.codec.decode_result(done.body))

    # --- reading ----------------------------------------------------------------------------------------------------

    async def get_read_log_id(
        self, policy: ReadPolicy = ReadPolicy.READ_INDEX, *, timeout: float = WRITE_TIMEOUT
    ) -> tuple[LogId, LogId | None]:
        """Leader only: a log id such that a read after applying it is linearizable, and what is applied now.

        Raises: ForwardToLeader, QuorumNotEnough.
        """
        by_lease = policy is ReadPolicy.LEASE
        try:
            read_log_id: LogId = await self._core.ask(timeout, lambda request_id: Read(request_id, by_lease))
        except RPCTimeout:
            raise QuorumNotEnough("no quorum confirmed the leader in time; nothing was read") from None
        return read_log_id, self._core.worker.applied

    async def ensure_linearizable(
        self, policy: ReadPolicy = ReadPolicy.READ_INDEX, *, timeout: float = WRITE_TIMEOUT
    ) -> LogId:
        """Leader only: return once a local read is linearizable. Raises: as get_read_log_id."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        read_log_id, _ = await self.get_read_log_id(policy, timeout=timeout)
        await self._wait_applied(read_log_id, max(deadline - loop.time(), 0.001))
        return read_log_id

    async def _wait_applied(self, log_id: LogId | None, timeout: float) -> None:
        if self._core.worker.applied_index >= index_of(log_id):
            return
        try:
            async with asyncio.timeout(timeout):
                await self._core.worker.wait_applied(index_of(log_id))
        except Stopped:
            self._core.check_running()
            raise
        except TimeoutError:
            self._core.check_running()
            raise WaitTimeout(
                f"{log_id} was not applied here within {timeout} s; applied is {self._core.worker.applied}"
            ) from None

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
            await self._confirm_read(policy, timeout)
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

    async def _confirm_read(self, policy: ReadPolicy, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            left = max(deadline - loop.time(), 0.001)
            try:
                if self._core.engine.is_leader:
                    await self.ensure_linearizable(policy, timeout=left)
                else:
                    read_log_id = await self._ask_read_index(policy, left)
                    await self._wait_applied(read_log_id, max(deadline - loop.time(), 0.001))
                return
            except (ForwardToLeader, QuorumNotEnough, RPCError) as error:
                if loop.time() + RETRY_SECONDS >= deadline:
                    raise self._unconfirmed(error) from error
            await asyncio.sleep(RETRY_SECONDS)

    def _unconfirmed(self, error: RaftError) -> RaftError:
        if not self._core.engine.effective.configs:
            return ForwardToLeader(
                f"{self.id} belongs to no cluster yet",
                hint="initialize one: raftkit cluster init n1=URL n2=URL n3=URL",
            )
        return QuorumNotEnough(
            f"no leader was confirmed in time: {error.message}",
            hint="read what this node has without a promise (stale), or look at: raftkit status",
        )

    async def _ask_read_index(self, policy: ReadPolicy, timeout: float) -> LogId | None:
        leader = self._core.engine.known_leader
        node = None if leader is None else self._core.engine.effective.nodes.get(leader)
        if leader is None or node is None or leader == self.id:
            raise ForwardToLeader(f"{self.id} knows no leader")
        client = self._core.peers.get(leader, node)
        request = ReadIndexRequest(policy.value, max(1, int(timeout * 1000)))
        timeout = min(timeout, READ_INDEX_TIMEOUT)
        try:
            asked: Awaitable[ReadIndexResponse] = self._core.stalls.call(client, "read_index", request, timeout)
            answer = await within(asked, timeout + OVERDUE_SECONDS, f"a call to {leader}")
        except TimeoutError as error:
            raise RPCTimeout(str(error)) from None
        return answer.read_log_id

    async def _serve_read_index(self, request: ReadIndexRequest) -> ReadIndexResponse:
        policy = ReadPolicy.LEASE if request.policy == ReadPolicy.LEASE.value else ReadPolicy.READ_INDEX
        read_log_id, _ = await self.get_read_log_id(policy, timeout=request.timeout_ms / 1000)
        return ReadIndexResponse(read_log_id)

    # --- the cluster ------------------------------------------------------------------------------------------------

    async def initialize(self, members: Mapping[NodeId, Node] | Iterable[NodeId]) -> None:
        """Make a cluster of ``members``, all voters, on pristine nodes. Every member is asked for its store first.

        Simultaneous calls with one list agree on the cluster; different lists do not mix. Returns when the first entry
        and this node's vote for itself are durable, not when a leader exists.

        Raises: NotAllowed, NotInMembers, Unreachable (a member does not answer), ConfigError.
        """
        self._core.check_running()
        nodes = dict(members) if isinstance(members, Mapping) else {self.id: self._network.advertised()}
        if not isinstance(members, Mapping) and set(members) != {self.id}:
            raise ConfigError("initialize needs the address of every other member", hint="pass {id: Node(address)}")
        await self._core.external(lambda engine, now: self._check_pristine(engine))
        bound, answers = await self._bind_members(nodes)
        try:
            membership = Membership.of([tuple(bound)], bound)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        cluster_id = new_cluster_id(self.config.cluster, membership)
        for node_id, answer in answers.items():
            if answer.cluster_id not in (None, cluster_id):
                raise NotAllowed(
                    f"{node_id} belongs to cluster {answer.cluster_id} already", hint="look at it: raftkit status"
                )
        if self.id in bound:
            try:
                adopting = self._identity.adopt_cluster(cluster_id)
                await within(adopting, MEMBERSHIP_TIMEOUT, "saving the identity")
            except TimeoutError:
                raise OutcomeUnknown(
                    f"the storage did not save the identity of {self.id} within {MEMBERSHIP_TIMEOUT:g} s",
                    hint="look at the disk, restart the node, and initialize again",
                ) from None
            except IdentityError as error:
                raise NotAllowed(error.message, hint=error.hint) from error
            except StorageError as error:
                self._core.fail(error)
                raise
        try:
            await self._core.ask(MEMBERSHIP_TIMEOUT, lambda request_id: Initialize(request_id, membership))
        except NotAllowed:
            # Another member, asked with the same list at the same time, was quicker: this is its cluster all the same.
            if self.cluster_id != cluster_id:
                raise
        await self.wait(MEMBERSHIP_TIMEOUT).metrics(lambda m: m.flushed is not None, "the first entry to be durable")

    def _check_pristine(self, engine: Engine) -> None:
        if not engine.state.is_pristine:
            raise NotAllowed(
                f"{self.id} is initialized already: last log {engine.state.log.last}, vote {engine.state.vote}",
                hint="look at it: raftkit status",
            )

    async def _bind_members(
        self, nodes: Mapping[NodeId, Node]
    ) -> tuple[dict[NodeId, Node], dict[NodeId, HelloResponse]]:
        """Ask every other member which store it has: the members bound to their stores, and what was answered."""
        others = [node_id for node_id in sorted(nodes) if node_id != self.id]
        for node_id in others:
            self._network.validate_address(nodes[node_id].peer)
        said = await asyncio.gather(*(self._ask_hello(node_id, nodes[node_id]) for node_id in others))
        answers = dict(zip(others, said, strict=True))
        store_ids = {node_id: answer.store_id for node_id, answer in answers.items()}
        store_ids[self.id] = self._identity.current.store_id
        bound = {
            node_id: Node(node.peer, node.client, store_ids[node_id], node.tags) for node_id, node in nodes.items()
        }
        return bound, answers

    async def _ask_hello(self, node_id: NodeId, node: Node) -> HelloResponse:
        """Who is at ``node``, over a connection of its own. Raises: Unreachable, IdentityError."""
        client = self._network.connect(node_id, node, self._service)
        try:
            hello: HelloResponse = await within(
                client.hello(HELLO_TIMEOUT), HELLO_TIMEOUT + OVERDUE_SECONDS, f"a hello to {node_id}"
            )
            return hello
        except IdentityError:
            raise
        except (RPCError, TimeoutError) as error:
            raise Unreachable(
                f"{node_id} at {node.peer} does not answer: {error}",
                hint=f"start it first: raftkit node run --id {node_id} …",
                outcome="not_applied",
            ) from error
        finally:
            await bounded(client.close(), CLOSE_SECONDS, f"node {self.id}: its connection to {node_id}")

    async def call(self, operation: Operation, *, timeout: float = MEMBERSHIP_TIMEOUT) -> Any:
        """Run an operation of :mod:`raftkit_core.types.operations` here, or on the leader by one hop.

        Raises: the operation's own errors; QuorumNotEnough without a leader; OutcomeUnknown for a lost answer.
        """
        return await self._forwarder.call(operation, timeout)

    async def _run_operation(self, operation: Operation, timeout: float) -> Any:
        match operation:
            case Write():
                self.machine.codec.decode_command(operation.body)
                done = await self._propose(operation.body, timeout)
                return WriteDone(done.log_id, self.machine.codec.encode_result(done.data))
            case AddLearner():
                added = await self.add_learner(
                    operation.node_id,
                    operation.node,
                    blocking=operation.blocking,
                    bind=operation.bind,
                    timeout=timeout,
                )
                return _membership_done(added)
            case ChangeMembership():
                changed = await self.change_membership(
                    operation.change, retain=operation.retain, force=operation.force, timeout=timeout
                )
                return _membership_done(changed)
            case TransferLeader():
                return TransferDone(await self.transfer_leader(operation.to, timeout=timeout))

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
        self._check_leader()
        self._network.validate_address(node.peer)
        if not is_node_id(node_id):
            raise ChangeMembershipError(f"{node_id!r} is not a node id: use 1 to 63 of [A-Za-z0-9._-]")
        known = self._core.engine.effective.nodes.get(node_id)
        if known is None and bind:
            answer = await self._ask_hello(node_id, node)
            node = Node(node.peer, node.client, answer.store_id, node.tags)
        done = await self._change(AddNodes({node_id: node}), retain=True, force=False, timeout=timeout, bind=bind)
        if blocking and node_id != self.id:
            await self._wait_caught_up(node_id, timeout)
        return done

    def _check_leader(self) -> None:
        """Leader first: a follower judges nothing else."""
        self._core.check_running()
        engine = self._core.engine
        if not engine.is_leader:
            leader = engine.known_leader
            node = None if leader is None else engine.effective.nodes.get(leader)
            named = f"{leader} does" if node is not None else "nobody is known to"
            raise ForwardToLeader(
                f"{self.id} does not lead; {named}",
                leader=leader if node is not None else None,
                leader_node=node,
                hint="ask the leader: raftkit leader show",
            )

    async def _wait_caught_up(self, node_id: NodeId, timeout: float) -> None:
        threshold = self.config.replication_lag_threshold

        def caught_up(m: RaftMetrics) -> bool:
            if m.state is not ServerState.LEADER or node_id not in m.membership.membership.nodes:
                return True
            peer = (m.replication or {}).get(node_id)
            return peer is not None and peer.matching is not None and peer.lag <= threshold

        latest = await self.wait(timeout).metrics(caught_up, f"{node_id} to catch up")
        if latest.state is not ServerState.LEADER:
            raise ForwardToLeader(f"{self.id} lost leadership while {node_id} was catching up")
        if node_id not in latest.membership.membership.nodes:
            raise ChangeMembershipError(f"{node_id} was removed while it was catching up")

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
        if not isinstance(change, ChangeMembers):
            change = ReplaceAllVoters(tuple(sorted(set(change))))
        self._check_leader()
        done = await self._change(change, retain=retain, force=force, timeout=timeout)
        if done.membership is not None and done.membership.is_joint:
            # The goal is recomputed on the last configuration, so the same change now gives the uniform one.
            done = await self._change(change, retain=retain, force=force, timeout=timeout)
        return done

    async def _change(
        self, change: ChangeMembers, *, retain: bool, force: bool, timeout: float, bind: bool = True
    ) -> ClientWriteResponse:
        store_ids = await self._store_ids_for(change) if bind else {}
        future: asyncio.Future[ClientWriteResponse] = asyncio.get_running_loop().create_future()
        deadline = self._core.clock.monotonic() + timeout
        self._core.send(ChangeMembershipRequest(change, retain, force, store_ids, future, deadline))
        return await future

    async def _store_ids_for(self, change: ChangeMembers) -> dict[NodeId, str]:
        """Nodes that are new, or become voters, must be bound to their store: ask those that are not yet."""
        nodes = self._core.engine.effective.nodes
        match change:
            case AddVoterIds(ids=ids) | ReplaceAllVoters(ids=ids):
                wanted = {node_id: nodes[node_id] for node_id in ids if node_id in nodes}
            case AddVoters(nodes=added):
                wanted = {node_id: nodes.get(node_id, node) for node_id, node in added.items()}
            case AddNodes(nodes=added) | SetNodes(nodes=added) | ReplaceAllNodes(nodes=added):
                wanted = {node_id: node for node_id, node in added.items() if node_id not in nodes}
            case _:
                wanted = {}
        found: dict[NodeId, str] = {}
        for node_id, node in wanted.items():
            if node.store_id is None:
                own = node_id == self.id
                found[node_id] = (
                    self._identity.current.store_id if own else (await self._ask_hello(node_id, node)).store_id
                )
        return found

    async def set_members(
        self,
        goal: Mapping[NodeId, Node] | Iterable[NodeId],
        *,
        timeout: float = MEMBERSHIP_TIMEOUT,
        on_step: Callable[[str], None] | None = None,
    ) -> ClientWriteResponse:
        """Leader only: make exactly ``goal`` the voters: add and catch up what is missing, then change, then remove.

        Can be repeated after a failure at any step. ``on_step`` is told in words what is done next. ``timeout`` is for
        each step.
        """
        tell = (lambda _: None) if on_step is None else on_step
        nodes = dict(goal) if isinstance(goal, Mapping) else {}
        voters = tuple(sorted(nodes)) or tuple(sorted(set(goal)))
        for node_id, node in nodes.items():
            if node_id not in self._core.engine.effective.nodes:
                tell(f"add {node_id} as a learner and let it catch up")
                await self.add_learner(node_id, node, timeout=timeout)
        self._check_leader()
        tell(f"change the voters to {', '.join(voters)}")
        done = await self._change(ReplaceAllVoters(voters), retain=False, force=False, timeout=timeout)
        if done.membership is not None and done.membership.is_joint:
            tell("leave the joint configuration")
            done = await self._change(ReplaceAllVoters(voters), retain=False, force=False, timeout=timeout)
        tell("done")
        return done

    async def transfer_leader(self, to: NodeId | None = None, *, timeout: float = WRITE_TIMEOUT) -> NodeId:
        """Leader only: hand leadership to ``to`` (None: the most up-to-date voter). Gives the new leader's id.

        Raises: ForwardToLeader, TransferFailed (writes go on here).
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            target: NodeId = await self._core.ask(timeout, lambda request_id: TransferLeaderTo(request_id, to))
            await self.wait(max(deadline - loop.time(), 0.001)).metrics(
                lambda m: m.current_leader == target, f"{target} to lead"
            )
        except (RPCTimeout, WaitTimeout) as error:
            raise TransferFailed(
                f"leadership was not handed over in time: {error.message}", hint="look at: raftkit status"
            ) from error
        return target

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
        self._core.check_running()
        try:
            return await within(self._snapshots.source(), WRITE_TIMEOUT, "opening the snapshot")
        except TimeoutError as error:
            raise WaitTimeout(str(error), hint="look at the disk of the snapshots") from None

    async def install_full_snapshot(
        self, vote: Vote, snapshot: SnapshotSource, *, timeout: float = MEMBERSHIP_TIMEOUT
    ) -> InstallSnapshotResponse:
        """Hand this node a complete snapshot under a leader's ``vote``. Installed unless there is nothing new in it, or
        the answer carries another vote (this node follows that one).

        Raises: StorageCorrupt if the bytes are not what they should be; PeerBusy while another one is installed;
        OutcomeUnknown after ``timeout`` seconds.
        """
        self._core.check_running()
        request = InstallSnapshotRequest(vote, snapshot.meta)
        node = self._core.engine.effective.nodes.get(vote.node_id)
        peer = PeerIdentity(vote.node_id, "" if node is None or node.store_id is None else node.store_id)
        installing = self._service.install_snapshot(request, 0, snapshot.open(0), peer)
        try:
            return await within(installing, timeout, "installing the snapshot")
        except TimeoutError as error:
            raise OutcomeUnknown(str(error), hint="look at: raftkit status") from None

    # --- server side of the RPCs, for transports --------------------------------------------------------------------

    async def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> AppendEntriesResponse:
        return await self._service.append_entries(request, peer)

    async def vote(self, request: VoteRequest, peer: PeerIdentity) -> VoteResponse:
        return await self._service.vote(request, peer)

    async def pre_vote(self, request: VoteRequest, peer: PeerIdentity) -> VoteResponse:
        return await self._service.pre_vote(request, peer)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """Hand leadership over if there is somebody to take it, stop, close everything. Idempotent, bounded in time."""
        self._core.check_loop()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._shutdown())
        await asyncio.shield(self._closing)

    async def _shutdown(self) -> None:
        with suppress(RaftError):
            if self._core.fatal is None and self._core.engine.is_leader:
                others = [voter for voter in self._core.engine.effective.voter_ids if voter != self.id]
                if others:
                    await self.transfer_leader(timeout=self.config.election_timeout_max_ms / 1000)
        seconds = CLOSE_SECONDS
        await bounded(self._network.stop_serving(self.group), seconds, f"node {self.id}: its listener")
        await self._core.shutdown()
        if self._owns_network:
            await bounded(self._network.close(), seconds, f"node {self.id}: its network")
        await bounded(self.machine.close(), seconds, f"node {self.id}: its state machine")
        await bounded(self._snapshots.close(), seconds, f"node {self.id}: its snapshots")
        await bounded(self._storage.close(), seconds, f"node {self.id}: its log")


class Trigger:
    """Things to ask for now (openraft ``trigger()``)."""

    def __init__(self, core: RaftCore) -> None:
        self._core = core

    def elect(self) -> None:
        """Campaign. Nothing happens on a leader, a learner, or while votes are withheld."""
        self._do(lambda engine, now: engine.handle_elect(now))

    def heartbeat(self) -> None:
        self._do(lambda engine, now: engine.handle_trigger_heartbeat(now))

    def snapshot(self) -> None:
        self._do(lambda engine, now: engine.handle_trigger_snapshot())

    def purge_log(self, upto: int) -> None:
        """Purge up to index ``upto``, never beyond the snapshot."""
        self._do(lambda engine, now: engine.handle_trigger_purge(upto, now))

    def transfer_leader(self, to: NodeId | None = None) -> None:
        future = self._core.ask(WRITE_TIMEOUT, lambda request_id: TransferLeaderTo(request_id, to))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _do(self, function: Callable[[Engine, float], None]) -> None:
        self._core.send(ExternalRequest(function))


class RuntimeConfig:
    """Switches that may change while the node runs (openraft ``runtime_config()``)."""

    def __init__(self, core: RaftCore) -> None:
        self._core = core

    def tick(self, on: bool) -> None:
        """Off: no elections and no heartbeats."""
        self._core.check_running()
        self._core.tick_enabled = on

    def heartbeat(self, on: bool) -> None:
        self._core.check_running()
        self._core.engine.config.enable_heartbeat = on

    def elect(self, on: bool) -> None:
        """Does not affect ``initialize`` and ``trigger().elect()``."""
        self._core.check_running()
        self._core.engine.config.enable_elect = on


async def _opened(plugin: object, opening: Awaitable[T]) -> T:
    """Raises: PluginError for a plugin that does not get ready; what ``opening`` raises."""
    name = type(plugin).__name__
    try:
        return await within(opening, OPEN_SECONDS, f"opening {name}")
    except TimeoutError as error:
        raise PluginError(str(error), hint=f"look at what {name} waits for") from None


def _result_of(future: asyncio.Future[Any]) -> ClientWriteResponse | RaftError:
    error = future.exception()
    if error is None:
        response: ClientWriteResponse = future.result()
        return response
    if isinstance(error, RaftError):
        return error
    raise error


def _membership_done(response: ClientWriteResponse) -> MembershipDone:
    assert response.membership is not None, "a membership entry answers with its membership"
    return MembershipDone(response.log_id, response.membership)


async def open_identity(
    storage: RaftLogStorage, context: AdapterContext, config: Config, machine: RaftStateMachine, entropy: Random
) -> StoreIdentity:
    """Open the store and see whose it is; a new one is given to this node.

    Raises: IdentityError, NeedsRejoin, StorageError.
    """
    identity = await storage.open(context)
    if identity is None:
        identity = StoreIdentity(
            node_id=context.node_id,
            store_id=f"{entropy.getrandbits(128):032x}",
            cluster=config.cluster,
            group=context.group,
            single_term_leader=config.single_term_leader,
            machine=machine.name,
        )
        await storage.save_identity(identity)
        return identity
    expected = {
        "node id": (identity.node_id, context.node_id),
        "cluster": (identity.cluster, config.cluster),
        "group": (identity.group, context.group),
        "single_term_leader": (identity.single_term_leader, config.single_term_leader),
        "state machine": (identity.machine, machine.name),
    }
    for what, (stored, wanted) in expected.items():
        if stored != wanted:
            raise IdentityError(
                f"this store has {what} {stored!r}, the node was started with {wanted!r}; nothing was changed",
                hint=f"start it with {what} {stored!r}, or give the node a data folder of its own",
            )
    if identity.retired:
        raise NeedsRejoin(
            f"this store is retired: {identity.retired}",
            hint=f"rejoin with an empty folder: raftkit member remove {context.node_id}, then add it again",
        )
    return identity


def new_cluster_id(cluster: str, membership: Membership) -> str:
    """The first 128 bits of sha256 over the canonical bytes of cluster name and members with store ids."""
    canonical = msgspec.msgpack.encode([cluster, membership], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()[:32]


__all__ = ["Raft", "RuntimeConfig", "Trigger", "new_cluster_id", "open_identity"]
