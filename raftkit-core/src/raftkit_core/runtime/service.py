"""What peers may ask of this node: identity first, then the engine (DESIGN §5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from raftkit_core.errors import IdentityError, NeedsRejoin, PeerBusy, StorageCorrupt, StorageError, StorageFull
from raftkit_core.runtime.limits import seconds_for_bytes
from raftkit_core.runtime.messages import (
    HeartbeatArrived,
    SnapshotArrived,
    TransferArrived,
    VoteArrived,
)
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.identity import PeerIdentity, StoreIdentity
from raftkit_core.types.ids import PROTOCOL_MAX, PROTOCOL_MIN, NodeId, RequestId
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    Busy,
    ForwardRequest,
    ForwardResponse,
    HeartbeatRequest,
    HelloRequest,
    HelloResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import is_snapshot_id
from raftkit_core.types.vote import LeaderId, Vote

log = logging.getLogger("raftkit.runtime")

PEER_DEADLINE = 60.0
"""The longest a peer's request may wait here; the transport's own deadline is shorter."""

SPACE_KEPT = 64 * 1024 * 1024
"""Bytes on the disk that no snapshot from a peer may take: the log must go on."""

TERM_JUMP_MAX = 2**40
"""Elections in a life of a cluster, many times over: whoever is further ahead than that is broken, and would use up
the terms."""


class Identity:
    """This store's identity: kept in the store, changed only through here, one change after the other.

    A change that has begun is carried through, whoever asked for it and has gone: the storage is never asked twice at a
    time.
    """

    def __init__(self, storage: RaftLogStorage, current: StoreIdentity) -> None:
        self._storage = storage
        self._lock = asyncio.Lock()
        self._changes: dict[asyncio.Task[None], None] = {}
        self.current = current
        self.failed: Callable[[BaseException], None] = lambda error: None
        """Told of a save that failed: the node must not go on, also where nobody waits for the save any more."""

    async def adopt_cluster(self, cluster_id: str) -> None:
        """Belong to ``cluster_id`` from now on, durably. Raises: IdentityError if this store has another one."""

        def adopted(current: StoreIdentity) -> StoreIdentity:
            if current.cluster_id not in (None, cluster_id):
                raise IdentityError(
                    f"this store belongs to cluster {current.cluster_id}, not to {cluster_id}",
                    hint="give each cluster a data folder of its own",
                )
            return msgspec.structs.replace(current, cluster_id=cluster_id)

        await self._change(adopted)

    async def save_lease(self, lease_ms: int) -> None:
        """Remember the largest lease ever acknowledged, before it is acknowledged."""
        await self._change(
            lambda current: msgspec.structs.replace(current, largest_lease_ms=max(lease_ms, current.largest_lease_ms))
        )

    async def retire(self, reason: str) -> None:
        """Never open this store as a node again."""
        await self._change(lambda current: msgspec.structs.replace(current, retired=reason))

    async def _change(self, change: Callable[[StoreIdentity], StoreIdentity]) -> None:
        task = asyncio.ensure_future(self._save(change))
        self._changes[task] = None
        task.add_done_callback(self._changed)
        await asyncio.shield(task)

    async def _save(self, change: Callable[[StoreIdentity], StoreIdentity]) -> None:
        async with self._lock:
            changed = change(self.current)
            if changed != self.current:
                await self._storage.save_identity(changed)
                self.current = changed

    def _changed(self, task: asyncio.Task[None]) -> None:
        self._changes.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StorageError):
            self.failed(error)

    async def close(self) -> None:
        """Return when no change is under way; the caller bounds the time, and what hangs is given up then."""
        try:
            if self._changes:
                await asyncio.wait(list(self._changes))
        finally:
            for task in list(self._changes):
                task.cancel()


class _Reception:
    """A snapshot that is coming in, in the task that takes it. Its leader may be gone without a word: one with a newer
    vote takes its place."""

    def __init__(self, vote: Vote) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self.vote = vote
        self._task = task
        self.is_reading = True
        """Once all bytes are here, the engine decides what becomes of them."""
        self._cancelled_before = task.cancelling()
        self._is_displaced = False

    def displace(self) -> None:
        """End it; what came stays for a resume."""
        if self.is_reading and not self._is_displaced:
            self._is_displaced = True
            self._task.cancel()

    def was_displaced(self) -> bool:
        """Whether its cancellation is :meth:`displace`'s and nobody else's."""
        return self._is_displaced and self._task.uncancel() <= self._cancelled_before


class PeerService:
    """Implements :class:`raftkit_core.network.interface.RaftService` over one node."""

    def __init__(
        self,
        *,
        identity: Identity,
        snapshots: RaftSnapshotStorage,
        read_index: Callable[[ReadIndexRequest], Awaitable[ReadIndexResponse]],
        forward: Callable[[ForwardRequest], Awaitable[ForwardResponse]],
    ) -> None:
        self.group = identity.current.group
        self._identity = identity
        self._snapshots = snapshots
        self._read_index = read_index
        self._forward = forward
        self._core: RaftCore | None = None
        self.cork: Callable[[], None] = _nothing
        self.uncork: Callable[[], None] = _nothing
        """The node's own, once there is one: they are called for whatever comes in."""
        self._receiving: _Reception | None = None
        self._looking = False
        """Whether it is being looked up how much of an announced snapshot is here."""
        self._alarmed: set[NodeId] = set()

    def attach(self, core: RaftCore) -> None:
        """From now on there is a node to ask."""
        self._core = core
        self.cork, self.uncork = core.cork, core.uncork
        self._identity.failed = core.fail

    @property
    def core(self) -> RaftCore:
        if self._core is None:
            raise PeerBusy("this node is starting")
        return self._core

    # --- identity ---------------------------------------------------------------------------------------------------

    def local_hello(self, target: NodeId) -> HelloRequest:
        me = self._identity.current
        node = None if self._core is None else self._core.engine.effective.nodes.get(target)
        return HelloRequest(
            me.cluster,
            me.cluster_id,
            me.group,
            me.node_id,
            me.store_id,
            target,
            None if node is None else node.store_id,
            me.single_term_leader,
        )

    def check_hello(self, target: NodeId, response: HelloResponse) -> None:
        if self._core is not None:
            self._core.check_running()  # what waits for this connection must not leave a node that has failed
        if response.node_id != target:
            raise IdentityError(
                f"at the address of {target} there is {response.node_id}",
                hint="check the addresses: raftkit member list",
            )
        self._check_common(
            target,
            response.cluster,
            response.cluster_id,
            response.group,
            response.single_term_leader,
            response.protocol_min,
            response.protocol_max,
        )

    async def hello(self, request: HelloRequest) -> HelloResponse:
        """A pristine node adopts the cluster of the first peer that names its node id *and* its store id."""
        me = self._identity.current
        if self._core is not None:
            self._core.check_running()
        if request.target_node_id != me.node_id:
            raise IdentityError(
                f"this is {me.node_id}, not {request.target_node_id}", hint="check the addresses: raftkit member list"
            )
        self._check_common(
            request.node_id,
            request.cluster,
            request.cluster_id,
            request.group,
            request.single_term_leader,
            request.protocol_min,
            request.protocol_max,
        )
        if (
            me.cluster_id is None
            and request.cluster_id is not None
            and request.target_store_id == me.store_id
            and self._core is not None
        ):
            try:
                await self._identity.adopt_cluster(request.cluster_id)
            except StorageError as error:
                self._core.fail(error)
                raise
            log.info("node %s joined cluster %s", me.node_id, request.cluster_id)
        me = self._identity.current
        return HelloResponse(me.cluster, me.cluster_id, me.group, me.node_id, me.store_id, me.single_term_leader)

    def admits(self, node_id: NodeId) -> bool:
        """Members; and others only while no leader is at work here.

        A node that lags may not know the newest members yet, one of which leads: shut out for ever it could not catch
        up. But whoever is no member cannot disturb a leader that works. The leader that this node follows is let in
        in any case: heard on one connection and shut out of the other, it could never bring it up to date.
        """
        core = self._core
        if core is None:
            return True  # nothing but a hello is answered yet
        members, vote = core.engine.effective.nodes, core.engine.vote
        if not members or node_id in members or (vote.committed and node_id == vote.node_id):
            return True
        return not core.engine.hears_leader(core.clock.monotonic())

    def _check_common(
        self,
        peer: NodeId,
        cluster: str,
        cluster_id: str | None,
        group: str,
        single_term_leader: bool,
        protocol_min: int,
        protocol_max: int,
    ) -> None:
        me = self._identity.current
        if cluster != me.cluster or group != me.group:
            raise IdentityError(
                f"{peer} belongs to {cluster}/{group}, this node to {me.cluster}/{me.group}",
                hint="check the addresses: two clusters must not share one",
            )
        if cluster_id is not None and me.cluster_id is not None and cluster_id != me.cluster_id:
            raise IdentityError(
                f"{peer} belongs to cluster {cluster_id}, this node to {me.cluster_id}",
                hint="check the addresses, and that no data folder was copied",
            )
        if single_term_leader != me.single_term_leader:
            raise IdentityError(
                f"{peer} runs with single_term_leader={str(single_term_leader).lower()}, this node with the opposite",
                hint="the mode is fixed when a cluster is initialized: set it alike on every node",
            )
        if protocol_min > PROTOCOL_MAX or protocol_max < PROTOCOL_MIN:
            raise IdentityError(
                f"{peer} speaks protocol {protocol_min} to {protocol_max}, this node {PROTOCOL_MIN} to {PROTOCOL_MAX}",
                hint="upgrade the older node",
            )

    def _check_sender(self, claimed: LeaderId, peer: PeerIdentity) -> RaftCore:
        """Only the store the membership names may speak for a node; a node without a cluster believes nobody."""
        core = self._core
        if core is None or core.fatal is not None:
            core = self.core
            core.check_running()
        if claimed.node_id != peer.node_id:
            raise IdentityError(f"{peer.node_id} speaks for {claimed.node_id}")
        engine = core.engine
        term = claimed.term
        if term > TERM_JUMP_MAX and term - engine.vote.term > TERM_JUMP_MAX:
            if peer.node_id not in self._alarmed:
                self._alarmed.add(peer.node_id)  # members only come this far, so it stays small
                log.error("%s names term %d, here it is %d: refused", peer.node_id, term, engine.vote.term)
            raise IdentityError(f"{peer.node_id} names term {term}, which no election can have led to")
        if self._identity.current.cluster_id is None:
            raise PeerBusy("this node belongs to no cluster yet")
        if engine.is_foreign_store(peer.node_id, peer.store_id):
            raise NeedsRejoin(
                f"{peer.node_id} has store {peer.store_id}, which is not the one the membership names",
                hint=f"let it rejoin: raftkit member rejoin {peer.node_id}",
            )
        return core

    # --- messages ---------------------------------------------------------------------------------------------------

    def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]:
        return self._check_sender(request.vote.leader_id, peer).append_arrived(request, PEER_DEADLINE)

    def heartbeat(self, request: HeartbeatRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]:
        core = self._check_sender(request.vote.leader_id, peer)
        return core.ask(PEER_DEADLINE, lambda request_id: HeartbeatArrived(request_id, request))

    def vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[VoteResponse]:
        return self._vote(request, peer, is_pre_vote=False)

    def pre_vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[VoteResponse]:
        return self._vote(request, peer, is_pre_vote=True)

    def _vote(self, request: VoteRequest, peer: PeerIdentity, *, is_pre_vote: bool) -> Awaitable[VoteResponse]:
        core = self._check_sender(request.vote.leader_id, peer)
        return core.ask(PEER_DEADLINE, lambda request_id: VoteArrived(request_id, request, peer.store_id, is_pre_vote))

    def transfer_leader(self, request: TransferLeaderRequest, peer: PeerIdentity) -> Awaitable[TransferLeaderResponse]:
        core = self._check_sender(request.vote.leader_id, peer)
        return core.ask(PEER_DEADLINE, lambda request_id: TransferArrived(request_id, request))

    def read_index(self, request: ReadIndexRequest, peer: PeerIdentity) -> Awaitable[ReadIndexResponse]:
        self._check_sender(LeaderId(0, peer.node_id), peer)
        return self._read_index(request)

    def forward(self, request: ForwardRequest, peer: PeerIdentity) -> Awaitable[ForwardResponse]:
        self._check_sender(LeaderId(0, peer.node_id), peer)
        return self._forward(request)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def snapshot_offset(self, request: InstallSnapshotRequest, peer: PeerIdentity) -> int:
        self._check_sender(request.vote.leader_id, peer)
        self._check_receiving(request)
        self._looking = True
        try:
            sink = await self._snapshots.sink(request.meta.snapshot_id, resume=True)
            offset = sink.offset
            await sink.abort(keep=True)
            free = await self._snapshots.free_bytes()
        except StorageError as error:
            self.core.fail(error)
            raise
        finally:
            self._looking = False
        needed = request.meta.size_bytes - offset
        if free is not None and needed > free - SPACE_KEPT:
            log.warning("a snapshot of %s is not taken: it needs %d bytes, %d are free", peer.node_id, needed, free)
            raise StorageFull(
                f"a snapshot of {needed} bytes finds no room: {free} are free, {SPACE_KEPT} of them for the log",
                subject="snapshot",
                verb="write",
            )
        return offset

    def _check_receiving(self, request: InstallSnapshotRequest) -> None:
        if not is_snapshot_id(request.meta.snapshot_id):
            raise StorageCorrupt(
                f"{request.meta.snapshot_id[:80]!r} is no snapshot id", subject="snapshot", verb="write"
            )
        if request.meta.size_bytes <= 0:
            raise StorageCorrupt("a snapshot of unknown size is not taken", subject="snapshot", verb="write")
        if self._receiving is not None:
            if request.vote.leader_id > self._receiving.vote.leader_id:
                self._receiving.displace()
            raise PeerBusy("a snapshot is being received already")
        if self._looking:
            raise PeerBusy("another snapshot is announced at this moment")

    async def install_snapshot(
        self, request: InstallSnapshotRequest, offset: int, chunks: AsyncIterator[bytes], peer: PeerIdentity
    ) -> InstallSnapshotResponse:
        core = self._check_sender(request.vote.leader_id, peer)
        self._check_receiving(request)
        reception = self._receiving = _Reception(request.vote)
        try:
            return await self._install(core, request, offset, chunks, reception)
        except asyncio.CancelledError:
            if reception.was_displaced():
                raise PeerBusy("a newer leader sends its snapshot") from None
            raise
        except StorageCorrupt:
            raise  # the sender's bytes
        except StorageError as error:
            core.fail(error)
            raise
        finally:
            self._receiving = None

    async def _install(
        self,
        core: RaftCore,
        request: InstallSnapshotRequest,
        offset: int,
        chunks: AsyncIterator[bytes],
        reception: _Reception,
    ) -> InstallSnapshotResponse:
        sink = await self._snapshots.sink(request.meta.snapshot_id, resume=offset > 0)
        request_id: RequestId | None = None

        def arrived(new_id: RequestId) -> SnapshotArrived:
            nonlocal request_id
            request_id = new_id
            core.runner.received[new_id] = sink
            return SnapshotArrived(new_id, request)

        is_answered = False
        try:
            if sink.offset != offset:
                raise PeerBusy(f"the snapshot continues at {sink.offset}, not at {offset}")
            size_bytes = request.meta.size_bytes
            async for chunk in chunks:
                if sink.offset + len(chunk) > size_bytes:
                    raise StorageCorrupt(
                        f"more than the {size_bytes} bytes of the snapshot came", subject="snapshot", verb="write"
                    )
                await sink.write(chunk)
            reception.is_reading = False
            response: InstallSnapshotResponse | Busy = await core.ask(
                seconds_for_bytes(PEER_DEADLINE, request.meta.size_bytes), arrived
            )
            is_answered = True
        finally:
            # Still here: it did not arrive whole (kept for a resume), or the engine had no use for it (a lower vote,
            # nothing new in it). Else the state machine's worker owns it.
            if request_id is None or core.runner.received.pop(request_id, None) is sink:
                await sink.abort(keep=not is_answered)
        if isinstance(response, Busy):
            raise PeerBusy("another snapshot is being installed")
        return response


def _nothing() -> None:
    """There is no node yet that could wait."""
