"""Status, members, leader and snapshots: what an operator asks of any node. The leader carries changes out."""

from __future__ import annotations

from aiohttp import web

from raftkit_core.errors import BadRequest
from raftkit_core.network.client import MembershipResult
from raftkit_core.types.membership import AddVoterIds, Node, RemoveNodes, ReplaceAllVoters
from raftkit_core.types.operations import (
    AddLearner,
    ChangeMembership,
    MembershipDone,
    Operation,
    TransferDone,
    TransferLeader,
)
from raftkit_http.api.decode import node_id_in_path
from raftkit_http.api.discretion import status_for
from raftkit_http.api.envelope import success
from raftkit_http.api.guard import Call
from raftkit_http.api.schema import (
    AddLearnerRequest,
    ChangeMembersRequest,
    EmptyRequest,
    InitializeAnswer,
    InitializeRequest,
    LeaderAnswer,
    MembersAnswer,
    NodeBody,
    PromoteRequest,
    RemoveMembersRequest,
    SetMembersRequest,
    SnapshotAnswer,
    TransferAnswer,
    TransferRequest,
    member_list,
)


async def get_status(call: Call) -> web.Response:
    status = await call.raft.status(digest=call.query.flag("digest"))
    return success(call.request, "status", status_for(call.caller, status))


async def get_members(call: Call) -> web.Response:
    metrics = call.raft.metrics().value
    stored = metrics.membership
    answer = MembersAnswer(
        members=member_list(stored.membership),
        joint=stored.membership.is_joint,
        log_index=None if stored.log_id is None else stored.log_id.index,
        id=call.raft.id,
        leader=metrics.current_leader,
        term=metrics.current_term,
    )
    return success(call.request, "members", answer)


async def get_leader(call: Call) -> web.Response:
    metrics = call.raft.metrics().value
    leader = metrics.current_leader
    node = None if leader is None else metrics.membership.membership.nodes.get(leader)
    return success(call.request, "leader", LeaderAnswer(leader=leader, node=node, term=metrics.current_term))


async def post_initialize(call: Call) -> web.Response:
    body = await call.json(InitializeRequest)
    members = {node_id: node.to_node() for node_id, node in sorted(body.members.items())}

    async def initialize() -> None:
        await call.raft.initialize(members)

    await call.change(initialize())
    return success(call.request, "initialize", InitializeAnswer(members=sorted(members)))


async def post_member(call: Call) -> web.Response:
    body = await call.json(AddLearnerRequest)
    operation = AddLearner(body.id, body.node.to_node(), blocking=body.blocking, bind=body.bind)
    return await _membership(call, operation)


async def post_change(call: Call) -> web.Response:
    body = await call.json(ChangeMembersRequest)
    voters = ReplaceAllVoters(tuple(sorted(set(body.voters))))
    return await _membership(call, ChangeMembership(voters, retain=body.retain, force=body.force))


async def post_promote(call: Call) -> web.Response:
    body = await call.json(PromoteRequest)
    return await _membership(call, ChangeMembership(AddVoterIds(tuple(sorted(set(body.ids))))))


async def post_set(call: Call) -> web.Response:
    """Step by step, each of which the leader carries out: what is done stays done when a later one fails."""
    body = await call.json(SetMembersRequest)
    known = call.raft.metrics().value.membership.membership.nodes
    for node_id, node in sorted(body.members.items()):
        if node_id in known:
            _check_address(node_id, node, known[node_id])
    for node_id, node in sorted(body.members.items()):
        if node_id not in known:
            await call.change(call.raft.call(AddLearner(node_id, node.to_node()), timeout=call.remaining))
    voters = ReplaceAllVoters(tuple(sorted(body.members)))
    return await _membership(call, ChangeMembership(voters, retain=body.retain))


def _check_address(node_id: str, given: NodeBody, known: Node) -> None:
    """Raises: BadRequest for another address than that of the member: it would not be taken, and nobody told."""
    for named, held in ((given.peer, known.peer), (given.client, known.client_address)):
        if named is not None and named != held:
            raise BadRequest(
                f"the member {node_id} is at {held}, not at {named}",
                hint="name the addresses of GET /v1/members; a member that has moved is removed, and added anew",
            )


async def post_remove(call: Call) -> web.Response:
    body = await call.json(RemoveMembersRequest)
    return await _membership(call, ChangeMembership(RemoveNodes(tuple(sorted(set(body.ids))))))


async def delete_member(call: Call) -> web.Response:
    return await _membership(call, ChangeMembership(RemoveNodes((node_id_in_path(call.request),))))


async def _membership(call: Call, operation: Operation) -> web.Response:
    done: MembershipDone = await call.change(call.raft.call(operation, timeout=call.remaining))
    result = MembershipResult(members=member_list(done.membership), log_index=done.log_id.index)
    return success(call.request, "membership", result)


async def post_transfer(call: Call) -> web.Response:
    body = await call.json(TransferRequest)
    done: TransferDone = await call.change(call.raft.call(TransferLeader(body.to), timeout=call.remaining))
    return success(call.request, "transfer", TransferAnswer(leader=done.leader))


async def post_snapshot(call: Call) -> web.Response:
    """Of this node only: each member snapshots for itself."""
    await call.json(EmptyRequest)

    async def trigger() -> None:
        started = call.raft.trigger().snapshot()
        if started is not None:
            await started

    await call.change(trigger())
    return success(call.request, "snapshot", SnapshotAnswer(node=call.raft.id))
