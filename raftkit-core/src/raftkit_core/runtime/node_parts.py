"""Tying the parts of one node together: storage, machine, engine and network around one loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import NamedTuple

from raftkit_core.clock import Clock
from raftkit_core.config import Config
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.instrument import Instruments
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.runtime.command_runner import CommandRunner
from raftkit_core.runtime.events import EventLog
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.messages import SnapshotBuilt, SnapshotInstalled, SnapshotRefused
from raftkit_core.runtime.peers import PeerTable
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.recovery import recover
from raftkit_core.runtime.service import Identity, PeerService
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.messages import ForwardRequest, ForwardResponse, ReadIndexRequest, ReadIndexResponse


class NodeParts(NamedTuple):
    """What a handle holds of its node."""

    core: RaftCore
    identity: Identity
    service: PeerService
    events: EventLog


async def assemble(
    *,
    identity: StoreIdentity,
    storage: RaftLogStorage,
    snapshots: RaftSnapshotStorage,
    machine: RaftStateMachine,
    network: RaftNetworkFactory,
    config: Config,
    clock: Clock,
    entropy: Random,
    instruments: Instruments,
    read_index: Callable[[ReadIndexRequest], Awaitable[ReadIndexResponse]],
    forward: Callable[[ForwardRequest], Awaitable[ForwardResponse]],
    ended: Callable[[], None],
) -> NodeParts:
    """Recover, and make everything that runs. The parts call back through ``late``, which holds the core at the end.

    Raises: StorageError, Fatal (``StoreLostWrites``).
    """
    late: list[RaftCore] = []
    stalls = instruments.timer = StallDetector(identity.node_id, clock, instruments)
    events = EventLog(identity.node_id, clock, lambda: core().engine.vote.term if late else 0)
    instruments.add(events)
    held = Identity(storage, identity)

    def core() -> RaftCore:
        return late[0]

    writer = LogWriter(
        storage,
        held.save_lease,
        flushed=lambda io_id: core().log_flushed(io_id),
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
        on_applied=lambda batch, results: late[0].applied(batch, results) if late else None,
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
    engine_config = EngineConfig(identity.node_id, identity.store_id, config, machine_is_durable=machine.durable)
    engine = Engine(engine_config, state, entropy)
    service = PeerService(
        identity=held,
        snapshots=snapshots,
        read_index=read_index,
        forward=forward,
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
    made = RaftCore(
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
        ended=ended,
    )
    late.append(made)
    service.attach(made)
    return NodeParts(made, held, service, events)
