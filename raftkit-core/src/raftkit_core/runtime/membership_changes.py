"""Initialize, add, change, hand over: what a node does before and after the engine's own step of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping

import msgspec

from raftkit_core.engine.engine import Engine
from raftkit_core.errors import (
    ChangeMembershipError,
    ConfigError,
    ForwardToLeader,
    IdentityError,
    NotAllowed,
    OutcomeUnknown,
    RPCError,
    RPCTimeout,
    StorageError,
    TransferFailed,
    Unreachable,
    WaitTimeout,
)
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.runtime.limits import bounded, within
from raftkit_core.runtime.messages import ChangeMembershipRequest, ClientWriteResponse, Initialize, TransferLeaderTo
from raftkit_core.runtime.opening import CLOSE_SECONDS
from raftkit_core.runtime.operations import OVERDUE_SECONDS
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.service import Identity, PeerService
from raftkit_core.runtime.wait import Wait
from raftkit_core.types.ids import NodeId, is_node_id
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
)
from raftkit_core.types.messages import HelloResponse
from raftkit_core.types.metrics import RaftMetrics, ServerState

MEMBERSHIP_TIMEOUT = 60.0
HELLO_TIMEOUT = 2.0


class MembershipChanges:
    """Runs on one node: asks new members which store they have, then has the engine change the membership."""

    def __init__(
        self,
        core: RaftCore,
        identity: Identity,
        service: PeerService,
        network: RaftNetworkFactory,
        wait: Callable[[float], Wait],
    ) -> None:
        self._core = core
        self._identity = identity
        self._service = service
        self._network = network
        self._wait = wait

    @property
    def _id(self) -> NodeId:
        return self._core.engine.config.id

    async def initialize(self, members: Mapping[NodeId, Node] | Iterable[NodeId]) -> None:
        """Make a cluster of ``members``, all voters, on pristine nodes. Every member is asked for its store first.

        Simultaneous calls with one list agree on the cluster; different lists do not mix. Returns when the first entry
        and this node's vote for itself are durable, not when a leader exists.

        Raises: NotAllowed, NotInMembers, Unreachable (a member does not answer), ConfigError.
        """
        self._core.check_running()
        nodes = dict(members) if isinstance(members, Mapping) else {self._id: self._network.advertised()}
        if not isinstance(members, Mapping) and set(members) != {self._id}:
            raise ConfigError("initialize needs the address of every other member", hint="pass {id: Node(address)}")
        await self._core.external(lambda engine, now: self._check_pristine(engine))
        bound, answers = await self._bind_members(nodes)
        try:
            membership = Membership.of([tuple(bound)], bound)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        cluster_id = new_cluster_id(self._core.config.cluster, membership)
        for node_id, answer in answers.items():
            if answer.cluster_id not in (None, cluster_id):
                raise NotAllowed(
                    f"{node_id} belongs to cluster {answer.cluster_id} already", hint="look at it: raftkit status"
                )
        if self._id in bound:
            try:
                adopting = self._identity.adopt_cluster(cluster_id)
                await within(adopting, MEMBERSHIP_TIMEOUT, "saving the identity")
            except TimeoutError:
                raise OutcomeUnknown(
                    f"the storage did not save the identity of {self._id} within {MEMBERSHIP_TIMEOUT:g} s",
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
            if self._identity.current.cluster_id != cluster_id:
                raise
        await self._wait(MEMBERSHIP_TIMEOUT).metrics(lambda m: m.flushed is not None, "the first entry to be durable")

    def _check_pristine(self, engine: Engine) -> None:
        if not engine.state.is_pristine:
            raise NotAllowed(
                f"{self._id} is initialized already: last log {engine.state.log.last}, vote {engine.state.vote}",
                hint="look at it: raftkit status",
            )

    async def _bind_members(
        self, nodes: Mapping[NodeId, Node]
    ) -> tuple[dict[NodeId, Node], dict[NodeId, HelloResponse]]:
        """Ask every other member which store it has: the members bound to their stores, and what was answered."""
        others = [node_id for node_id in sorted(nodes) if node_id != self._id]
        for node_id in others:
            self._network.validate_address(nodes[node_id].peer)
        said = await asyncio.gather(*(self._ask_hello(node_id, nodes[node_id]) for node_id in others))
        answers = dict(zip(others, said, strict=True))
        store_ids = {node_id: answer.store_id for node_id, answer in answers.items()}
        store_ids[self._id] = self._identity.current.store_id
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
            await bounded(client.close(), CLOSE_SECONDS, f"node {self._id}: its connection to {node_id}")

    async def add_learner(
        self,
        node_id: NodeId,
        node: Node,
        *,
        blocking: bool = True,
        bind: bool = True,
        timeout: float,
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
        if blocking and node_id != self._id:
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
                f"{self._id} does not lead; {named}",
                leader=leader if node is not None else None,
                leader_node=node,
                hint="ask the leader: raftkit leader show",
            )

    async def _wait_caught_up(self, node_id: NodeId, timeout: float) -> None:
        threshold = self._core.config.replication_lag_threshold

        def caught_up(m: RaftMetrics) -> bool:
            if m.state is not ServerState.LEADER or node_id not in m.membership.membership.nodes:
                return True
            peer = (m.replication or {}).get(node_id)
            return peer is not None and peer.matching is not None and peer.lag <= threshold

        latest = await self._wait(timeout).metrics(caught_up, f"{node_id} to catch up")
        if latest.state is not ServerState.LEADER:
            raise ForwardToLeader(f"{self._id} lost leadership while {node_id} was catching up")
        if node_id not in latest.membership.membership.nodes:
            raise ChangeMembershipError(f"{node_id} was removed while it was catching up")

    async def change_membership(
        self,
        change: ChangeMembers | Iterable[NodeId],
        *,
        retain: bool = False,
        force: bool = False,
        timeout: float,
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
                own = node_id == self._id
                found[node_id] = (
                    self._identity.current.store_id if own else (await self._ask_hello(node_id, node)).store_id
                )
        return found

    async def set_members(
        self,
        goal: Mapping[NodeId, Node] | Iterable[NodeId],
        *,
        timeout: float,
        on_step: Callable[[str], None] | None = None,
    ) -> ClientWriteResponse:
        """Leader only: make exactly ``goal`` the voters: add and catch up what is missing, then change, then remove.

        Can be repeated after a failure at any step. ``on_step`` is told in words what is done next. ``timeout`` is for
        each step. Raises: ChangeMembershipError for another address than a member's: it would not be taken.
        """
        tell = (lambda _: None) if on_step is None else on_step
        nodes = dict(goal) if isinstance(goal, Mapping) else {}
        voters = tuple(sorted(nodes)) or tuple(sorted(set(goal)))
        self._check_leader()
        known = self._core.engine.effective.nodes
        for node_id, node in nodes.items():
            if node_id in known:
                _check_addresses(node_id, node, known[node_id])
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

    async def transfer_leader(self, to: NodeId | None = None, *, timeout: float) -> NodeId:
        """Leader only: hand leadership to ``to`` (None: the most up-to-date voter). Gives the new leader's id.

        Raises: ForwardToLeader, TransferFailed (writes go on here).
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            target: NodeId = await self._core.ask(timeout, lambda request_id: TransferLeaderTo(request_id, to))
            await self._wait(max(deadline - loop.time(), 0.001)).metrics(
                lambda m: m.current_leader == target, f"{target} to lead"
            )
        except (RPCTimeout, WaitTimeout) as error:
            raise TransferFailed(
                f"leadership was not handed over in time: {error.message}", hint="look at: raftkit status"
            ) from error
        return target


def _check_addresses(node_id: NodeId, given: Node, known: Node) -> None:
    for named, held in ((given.peer, known.peer), (given.client, known.client_address)):
        if named is not None and named != held:
            raise ChangeMembershipError(
                f"the member {node_id} is at {held}, not at {named}; nothing was changed",
                hint="name its present address; change_membership(SetNodes({id: node})) gives a member another one",
            )


def new_cluster_id(cluster: str, membership: Membership) -> str:
    """The first 128 bits of sha256 over the canonical bytes of cluster name and members with store ids."""
    canonical = msgspec.msgpack.encode([cluster, membership], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()[:32]
