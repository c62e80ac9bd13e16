"""A lost quorum: one survivor becomes a cluster of its own.

What this cannot do is bring back what only the lost nodes had. So it names the survivor with the newest log, says what
may be lost, and gives the cluster a new id: nodes of the old one are refused from then on, whatever they remember.
(Enough old nodes together are still a majority *of the old cluster*: hand their stores over as well, and they are
retired, or make sure that they never start again.)

The order of writes matters: the identity with the new cluster id first, marked unfinished; then the membership. The
other way round the survivor would for a moment be a majority of one inside of the old cluster.
"""

from __future__ import annotations

import hashlib

import msgspec

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.offline.machine import Standing
from raftkit_core.offline.move import UNFINISHED
from raftkit_core.offline.store import OfflineStore, read_log_end, write_log
from raftkit_core.runtime.recovery import fit_log_to_snapshot
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.types.entry import MEMBERSHIP, Entry, encode_membership
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of, max_log_id, next_index
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.vote import LeaderId, Vote

RECOVERY = f"{UNFINISHED}the recovery of cluster "


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """What one store says about itself. ``last_log_id`` includes a snapshot that is ahead of the log."""

    node_id: NodeId
    location: str
    store_id: str
    cluster_id: str | None
    retired: str
    vote: Vote | None
    last_log_id: LogId | None
    committed: LogId | None
    membership: StoredMembership
    time_ms: int


class RecoveryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``apply_recovery`` does."""

    survivor: NodeId
    old_cluster_id: str
    new_cluster_id: str
    entry: Entry
    vote: Vote
    membership: Membership
    kept_uncommitted: int
    """Entries of the survivor that were not known to be committed: they are kept, and count as written from now on."""
    missing_voters: tuple[NodeId, ...]
    """Voters whose stores were not looked at: what only they had is lost."""
    had_quorum: bool
    """The stores looked at were a majority: nothing acknowledged is lost, and no recovery was needed."""


async def look(store: OfflineStore, standing: Standing) -> Candidate:
    """Raises: StorageError, StorageCorrupt."""
    snapshot = await store.snapshots.current()
    state = await store.log.read_state()
    end = await read_log_end(store.log, next_index(state.last_purged), state.last_log_id)
    last = state.last_log_id
    if snapshot is not None and not await _holds(store, state, snapshot.last_log_id):
        last = snapshot.last_log_id  # as the node would have it after its next start
    return Candidate(
        node_id=store.identity.node_id,
        location=store.location,
        store_id=store.identity.store_id,
        cluster_id=store.identity.cluster_id,
        retired=store.identity.retired,
        vote=state.vote,
        last_log_id=last,
        committed=max_log_id(state.committed, standing.applied),
        membership=max([*end.memberships, standing.membership], key=lambda each: index_of(each.log_id)),
        time_ms=max(end.time_ms, 0 if snapshot is None else snapshot.time_ms),
    )


async def _holds(store: OfflineStore, state: LogState, log_id: LogId | None) -> bool:
    if index_of(log_id) <= index_of(state.last_purged):
        return True
    if index_of(log_id) > index_of(state.last_log_id):
        return False
    found = await store.log.read(index_of(log_id), index_of(log_id) + 1, 0)
    return found[0].log_id == log_id


def choose_survivor(candidates: list[Candidate]) -> Candidate:
    """The one whose log is the newest: by leader id, then by index, as votes are judged. A recovery that broke off is
    gone on with.

    Raises: IdentityError if the stores belong to different clusters, or none can be taken.
    """
    begun = [each for each in candidates if each.retired.startswith(RECOVERY)]
    if begun:
        return begun[0]
    usable = [each for each in candidates if not each.retired and each.last_log_id is not None]
    clusters = sorted({str(each.cluster_id) for each in usable})
    if len(clusters) > 1:
        raise IdentityError(
            f"these stores belong to different clusters: {', '.join(clusters)}", hint="name stores of one cluster only"
        )
    if not usable:
        raise IdentityError(
            "none of these stores can be recovered from: they are empty, or retired",
            hint="name the stores of nodes that were members: raftkit recover ID=FOLDER …",
        )
    return max(usable, key=lambda each: (each.last_log_id, index_of(each.committed), each.node_id))


def plan_recovery(candidates: list[Candidate], *, random_hex: str) -> RecoveryPlan:
    """Raises: IdentityError, StorageError (the survivor is no member, or no membership is to be found)."""
    survivor = choose_survivor(candidates)
    old_id = survivor.retired.removeprefix(RECOVERY) if survivor.retired else str(survivor.cluster_id)
    before = survivor.membership.membership
    node = before.nodes.get(survivor.node_id)
    if node is None:
        raise StorageError(
            f"the last membership {survivor.node_id} knows does not name it",
            subject="membership",
            verb="read",
            hint="name the store of a member",
        )
    last = survivor.last_log_id
    assert last is not None, "a survivor has a log"
    term = max(last.term, 0 if survivor.vote is None else survivor.vote.term) + 1
    leader_id = LeaderId(term, survivor.node_id)
    mine = Node(node.peer, node.client, survivor.store_id, node.tags)
    membership = Membership.of([(survivor.node_id,)], {survivor.node_id: mine})
    log_id = LogId(leader_id, last.index + 1)
    present = {
        each.node_id
        for each in candidates
        if each.cluster_id in (old_id, survivor.cluster_id) and _is_member_s(each, before)
    }
    canonical = ["recover", old_id, survivor.node_id, last, random_hex, membership]
    return RecoveryPlan(
        survivor=survivor.node_id,
        old_cluster_id=old_id,
        new_cluster_id=hashlib.sha256(msgspec.msgpack.encode(canonical, order="deterministic")).hexdigest()[:32],
        entry=Entry(log_id, survivor.time_ms, MEMBERSHIP, encode_membership(membership)),
        vote=Vote(leader_id),
        membership=membership,
        kept_uncommitted=last.index - max(index_of(survivor.committed), -1),
        missing_voters=tuple(voter for voter in before.voter_ids if voter not in present),
        had_quorum=before.is_quorum(present),
    )


def _is_member_s(candidate: Candidate, membership: Membership) -> bool:
    """Whether it is the store the membership names, not one that was restored: that may lack what was acknowledged."""
    node = membership.nodes.get(candidate.node_id)
    return node is not None and node.store_id in (None, candidate.store_id)


async def apply_recovery(store: OfflineStore, plan: RecoveryPlan) -> None:
    """Make the survivor's store the first of the new cluster. Can be repeated after a crash with a plan made anew.

    Raises: StorageError, also if the store is not the one the plan was made for any more: then it is left as it is.
    """
    identity = store.identity
    await _check_still(store, plan)
    marked = msgspec.structs.replace(
        identity, cluster_id=plan.new_cluster_id, retired=f"{RECOVERY}{plan.old_cluster_id}"
    )
    await store.save_identity(marked)
    state = await fit_log_to_snapshot(store.log, await store.snapshots.current(), await store.log.read_state())
    assert index_of(state.last_log_id) + 1 == plan.entry.index, "planned on this very log"
    batch = LogBatch(vote=plan.vote, entries=[plan.entry], committed=plan.entry.log_id)
    await write_log(store.log, batch)
    await store.save_identity(msgspec.structs.replace(marked, retired=""))


async def _check_still(store: OfflineStore, plan: RecoveryPlan) -> None:
    """Between the look and this nobody held the store: its node may have been started, by a supervisor say."""
    state = await store.log.read_state()
    snapshot = await store.snapshots.current()
    vote_term = 0 if state.vote is None else state.vote.term
    last = max(index_of(state.last_log_id), -1 if snapshot is None else index_of(snapshot.last_log_id))
    if last + 1 != plan.entry.index or vote_term >= plan.vote.term:
        raise StorageError(
            f"the store of {plan.survivor} went on since it was looked at: it ends at {state.last_log_id} and has the"
            f" vote {state.vote} now",
            subject="store",
            verb="read",
            hint="make sure that nothing starts the node (a supervisor?), then run raftkit recover again",
        )


async def retire_for(store: OfflineStore, plan: RecoveryPlan) -> None:
    """Another node of the old cluster: it must not come back by accident."""
    reason = f"its cluster was recovered from {plan.survivor} as {plan.new_cluster_id}"
    if not store.identity.retired:
        await store.save_identity(msgspec.structs.replace(store.identity, retired=reason))
