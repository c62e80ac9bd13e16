"""Scenarios of membership changes (openraft.md §3.1 membership)."""

from __future__ import annotations

import asyncio

import pytest
from three_nodes import last_index

from raftkit_core.config import Config
from raftkit_core.errors import (
    ChangeMembershipError,
    EmptyMembership,
    ForwardToLeader,
    InProgress,
    LearnerNotFound,
    QuorumWouldBeLost,
    RaftError,
    Unreachable,
)
from raftkit_core.raft import Raft
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.entry import MEMBERSHIP
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import (
    AddVoterIds,
    ChangeMembers,
    RemoveNodes,
    RemoveVoters,
    ReplaceAllVoters,
    SetNodes,
)
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time


def names(numbers: str) -> list[NodeId]:
    return [f"n{number}" for number in numbers]


async def write(cluster: MemoryCluster, count: int, tag: str = "k") -> int:
    raft = next(iter(cluster.rafts.values()))
    index = 0
    for number in range(count):
        index = (await raft.write(Put(f"{tag}{number}", b"v"), timeout=20)).log_id.index
    return index


# --- learners ---------------------------------------------------------------------------------------------------------


async def test_adding_a_learner_returns_when_it_has_caught_up() -> None:
    async with memory_cluster(1, config=Config(replication_lag_threshold=0)) as cluster:
        index = await write(cluster, 300)
        await cluster.start("n2")
        done = await cluster.raft("n1").add_learner("n2", cluster.address("n2"))
        assert done.membership is not None
        assert done.membership.learner_ids == ("n2",)
        assert cluster.log("n2")[-1].index >= index
        assert cluster.raft("n2").metrics().value.state is ServerState.LEARNER


async def test_adding_a_known_node_again_changes_nothing_but_the_log() -> None:
    async with memory_cluster(1, ["n2"]) as cluster:
        leader = cluster.raft("n1")
        before = leader.metrics().value.membership.membership
        index = last_index(leader)
        for node_id in ("n1", "n2"):
            await leader.add_learner(node_id, cluster.address(node_id))
        assert leader.metrics().value.membership.membership == before
        assert last_index(leader) == index + 2


async def test_adding_a_learner_without_waiting_shows_it_with_nothing_replicated() -> None:
    async with memory_cluster(1) as cluster:
        await cluster.start("n2")
        leader = cluster.raft("n1")
        hello_done = asyncio.ensure_future(leader.add_learner("n2", cluster.address("n2"), blocking=False))
        await asyncio.sleep(0)
        await hello_done
        replication = leader.metrics().value.replication
        assert replication is not None
        assert "n2" in replication


async def test_a_learner_that_does_not_answer_is_not_added_unless_it_need_not_be_bound() -> None:
    async with memory_cluster(1) as cluster:
        leader = cluster.raft("n1")
        with pytest.raises(Unreachable, match="n2"):
            await leader.add_learner("n2", cluster.address("n2"))
        await leader.add_learner("n2", cluster.address("n2"), blocking=False, bind=False)
        assert leader.metrics().value.membership.membership.nodes["n2"].store_id is None
        await write(cluster, 3)
        await cluster.start("n2")
        with pytest.raises(ChangeMembershipError):
            await leader.add_learner("bad id", cluster.address("n3"))


async def test_a_learner_is_bound_to_its_store_before_it_votes() -> None:
    async with memory_cluster(1) as cluster:
        await cluster.start("n2")
        leader = cluster.raft("n1")
        await leader.add_learner("n2", cluster.address("n2"), blocking=False, bind=False)
        await leader.change_membership(["n1", "n2"], force=True)
        assert leader.metrics().value.membership.membership.nodes["n2"].store_id == cluster.raft("n2").store_id


async def test_an_isolated_learner_holds_up_nothing() -> None:
    async with memory_cluster(1, ["n2"]) as cluster:
        cluster.hub.isolate("n2")
        index = await write(cluster, 20)
        assert cluster.raft("n1").metrics().value.applied_index == index
        cluster.hub.heal()
        await cluster.applied(index)


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_changes_that_cannot_be_are_refused_by_name_and_write_nothing() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        index = last_index(leader)
        cases: list[tuple[ChangeMembers | list[NodeId], type[Exception]]] = [
            ([], EmptyMembership),
            (["n1", "n9"], LearnerNotFound),
            (AddVoterIds(("n9",)), LearnerNotFound),
            (RemoveNodes(("n1",)), LearnerNotFound),
        ]
        for change, expected in cases:
            with pytest.raises(expected):
                await leader.change_membership(change)
        assert last_index(leader) == index


async def test_a_follower_and_a_fresh_node_judge_no_change() -> None:
    async with memory_cluster(3) as cluster:
        await cluster.start("n9")
        leader = await cluster.leader("n1", "n2", "n3")
        follower = next(node_id for node_id in ("n1", "n2") if node_id != leader.id)
        for node_id in (follower, "n9"):
            with pytest.raises(ForwardToLeader) as refused:
                await cluster.raft(node_id).change_membership([])
            assert refused.value.leader == (leader.id if node_id != "n9" else None)


async def test_a_second_change_is_refused_while_the_first_is_not_committed() -> None:
    async with memory_cluster(1) as cluster:
        for node_id in ("n2", "n3"):
            await cluster.start(node_id)
        leader = cluster.raft("n1")
        await leader.add_learner("n2", cluster.address("n2"))
        await cluster.kill("n2")
        pending = asyncio.ensure_future(leader.change_membership(["n1", "n2"], force=True, timeout=2))
        await asyncio.sleep(0.01)
        with pytest.raises(InProgress):
            await leader.add_learner("n3", cluster.address("n3"))
        await asyncio.wait([pending])
        assert pending.exception() is not None


async def test_a_change_the_reachable_voters_could_not_survive_needs_force() -> None:
    async with memory_cluster(1, ["n2", "n3"]) as cluster:
        leader = cluster.raft("n1")
        for node_id in ("n2", "n3"):
            await cluster.kill(node_id)
        await asyncio.sleep(2)
        with pytest.raises(QuorumWouldBeLost, match="n2, n3"):
            await leader.change_membership(["n1", "n2", "n3"])
        await leader.client_write(Put("still", b"writable"))


# --- the case table ---------------------------------------------------------------------------------------------------

both_modes = pytest.mark.parametrize("single", [False, True], ids=["default", "single_term_leader"])

CASES = [
    ("1", ReplaceAllVoters, "23"),
    ("1", ReplaceAllVoters, "234"),
    ("12", ReplaceAllVoters, "23"),
    ("12", ReplaceAllVoters, "1"),
    ("12", ReplaceAllVoters, "2"),
    ("12", ReplaceAllVoters, "3"),
    ("123", ReplaceAllVoters, "4"),
    ("123", ReplaceAllVoters, "456"),
    ("12345", ReplaceAllVoters, "1234"),
    ("1", AddVoterIds, "12"),
    ("1", AddVoterIds, "23"),
    ("12", AddVoterIds, ""),
    ("123", RemoveVoters, "12"),
    ("123", RemoveVoters, "4"),
    ("123", RemoveVoters, ""),
    ("123", RemoveVoters, "24"),
]


@both_modes
@pytest.mark.parametrize(("before", "kind", "change"), CASES)
async def test_a_membership_change_ends_in_the_new_set_with_a_leader_inside(
    before: str, kind: type[ChangeMembers], change: str, single: bool
) -> None:
    old = set(names(before))
    wanted = set(names(change))
    if kind is ReplaceAllVoters:
        new = wanted
    elif kind is AddVoterIds:
        new = old | wanted
    else:
        new = old - wanted
    config = Config(single_term_leader=single)
    async with memory_cluster(sorted(old), sorted((new | wanted) - old), config=config) as cluster:
        await write(cluster, 10)
        leader = await cluster.leader()
        term, index = leader.metrics().value.current_term, last_index(leader)
        await leader.change_membership(kind(tuple(sorted(wanted))))
        written = [entry for entry in cluster.log(leader.id) if entry.index > index and entry.kind == MEMBERSHIP]
        assert len(written) == (1 if new == old else 2)
        new_leader = await cluster.leader(*sorted(new))
        assert (new_leader.id == leader.id) == (leader.id in new)
        assert (new_leader.metrics().value.current_term > term) == (leader.id not in new)
        await new_leader.wait(5).voter_ids(new)
        removed = old - new
        await asyncio.sleep(3)  # streams of removed nodes are over
        ends = {node_id: len(cluster.log(node_id)) for node_id in removed}
        last = 0
        for number in range(10):
            last = (await new_leader.write(Put(f"late{number}", b"v"))).log_id.index
        await cluster.applied(last, *sorted(new))
        for node_id in removed:
            assert cluster.raft(node_id).metrics().value.state is not ServerState.LEADER
            assert len(cluster.log(node_id)) == ends[node_id]


# --- joint configurations ---------------------------------------------------------------------------------------------


async def test_a_joint_entry_does_not_commit_without_a_quorum_of_the_new_voters() -> None:
    async with memory_cluster(1, ["n2", "n3"]) as cluster:
        leader = cluster.raft("n1")
        committed = leader.metrics().value.committed
        cluster.hub.isolate("n2")
        cluster.hub.isolate("n3")
        pending = asyncio.ensure_future(leader.change_membership(["n1", "n2", "n3"], force=True, timeout=1.0))
        await asyncio.wait([pending])
        assert pending.exception() is not None
        assert leader.metrics().value.committed == committed
        assert leader.metrics().value.membership.membership.is_joint
        cluster.hub.heal()
        done = None
        for _ in range(10):
            done = await outcome((await cluster.leader()).change_membership(["n1", "n2", "n3"]))
            if not isinstance(done, RaftError):
                break
            await asyncio.sleep(0.5)
        assert done is not None
        assert done.membership.configs == (("n1", "n2", "n3"),)


async def test_a_joint_entry_does_not_commit_without_a_quorum_of_the_old_voters() -> None:
    async with memory_cluster(3, ["n4", "n5"]) as cluster:
        leader = await cluster.leader()
        rest = [node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id]
        for node_id in rest:
            cluster.hub.isolate(node_id)
        committed = leader.metrics().value.committed
        pending = asyncio.ensure_future(leader.change_membership([leader.id, "n4", "n5"], force=True, timeout=0.4))
        await asyncio.wait([pending])
        assert pending.exception() is not None
        assert leader.metrics().value.committed == committed


# --- removing ---------------------------------------------------------------------------------------------------------


async def test_a_removed_leader_commits_its_removal_and_then_steps_down() -> None:
    async with memory_cluster(2, ["n3", "n4"]) as cluster:
        leader = await cluster.leader()
        kept = [node_id for node_id in ("n1", "n2") if node_id != leader.id]
        done = await leader.change_membership([*kept, "n3", "n4"])
        assert done.membership is not None
        assert leader.id not in done.membership.nodes
        await leader.wait(5).state(ServerState.LEARNER)
        new_leader = await cluster.leader(*kept, "n3", "n4")
        await new_leader.client_write(Put("a", b"1"))


async def test_a_leader_kept_as_a_learner_leads_on() -> None:
    async with memory_cluster(2, ["n3"]) as cluster:
        leader = await cluster.leader()
        other = "n2" if leader.id == "n1" else "n1"
        await leader.change_membership([other, "n3"], retain=True)
        await asyncio.sleep(1)
        assert leader.metrics().value.state is ServerState.LEADER
        assert leader.current_leader() == leader.id
        await cluster.raft(other).write(Put("a", b"1"))


async def test_a_voter_turned_learner_goes_on_receiving_writes() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        turned = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        await leader.change_membership(RemoveVoters((turned,)), retain=True)
        await cluster.raft(turned).wait(5).state(ServerState.LEARNER)
        index = await write(cluster, 5)
        await cluster.applied(index, turned)


async def test_a_removed_follower_learns_of_it_and_disturbs_nobody() -> None:
    async with memory_cluster(5) as cluster:
        leader = await cluster.leader()
        removed = next(node_id for node_id in names("12345") if node_id != leader.id)
        await leader.change_membership(RemoveVoters((removed,)))
        await cluster.raft(removed).wait(5).state(ServerState.LEARNER)
        term = leader.metrics().value.current_term
        await asyncio.sleep(10)
        assert leader.metrics().value.current_term == term
        replication = leader.metrics().value.replication
        assert replication is not None
        assert removed not in replication


async def test_an_unreachable_follower_can_be_removed_and_stays_harmless_when_it_returns() -> None:
    async with memory_cluster(5) as cluster:
        leader = await cluster.leader()
        removed = next(node_id for node_id in names("54321") if node_id != leader.id)
        cluster.hub.isolate(removed)
        await leader.change_membership(RemoveVoters((removed,)))
        await asyncio.sleep(3)
        index = await write_by(leader, 10)
        term = leader.metrics().value.current_term
        cluster.hub.heal()
        await asyncio.sleep(8)
        assert cluster.log(removed)[-1].index < index
        assert leader.metrics().value.state is ServerState.LEADER
        assert leader.metrics().value.current_term == term


async def write_by(raft: Raft, count: int) -> int:
    index = 0
    for number in range(count):
        index = (await raft.client_write(Put(f"by{number}", b"v"))).log_id.index
    return index


async def test_changed_addresses_reach_the_peer_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        moved = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        await leader.change_membership(SetNodes({moved: cluster.address("nowhere")}))
        index = await write_by(leader, 3)
        await asyncio.sleep(2)
        assert cluster.log(moved)[-1].index < index
        await leader.change_membership(SetNodes({moved: cluster.address(moved)}))
        await cluster.applied(await write_by(leader, 3))


async def test_a_change_from_any_node_is_carried_out_by_the_leader() -> None:
    from raftkit_core.types.operations import AddLearner, ChangeMembership, TransferLeader

    async with memory_cluster(3) as cluster:
        await cluster.start("n4")
        leader = await cluster.leader("n1", "n2", "n3")
        follower = cluster.raft(next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id))
        added = await follower.call(AddLearner("n4", cluster.address("n4")))
        assert "n4" in added.membership.nodes
        changed = await follower.call(ChangeMembership(AddVoterIds(("n4",))))
        assert changed.membership.voter_ids == ("n1", "n2", "n3", "n4")
        assert (await follower.call(TransferLeader("n4"))).leader == "n4"
        assert (await cluster.leader()).id == "n4"


async def test_set_members_adds_catches_up_changes_and_removes() -> None:
    async with memory_cluster(3) as cluster:
        for node_id in ("n4", "n5"):
            await cluster.start(node_id)
        leader = await cluster.leader("n1", "n2", "n3")
        gone = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        goal = sorted({"n1", "n2", "n3", "n4", "n5"} - {gone})
        done = await leader.set_members(cluster.members(*goal))
        assert done.membership is not None
        assert done.membership.voter_ids == tuple(goal)
        assert gone not in done.membership.nodes
        await leader.write(Put("a", b"1"))
        assert (await cluster.raft("n5").read(Get("a"))).value == b"1"


async def test_a_cluster_grows_from_one_to_five_while_it_is_written_to() -> None:
    async with memory_cluster(1) as cluster:
        for number in range(2, 6):
            await cluster.start(f"n{number}")
        leader = cluster.raft("n1")
        done = asyncio.Event()
        acknowledged: list[str] = []

        async def writer() -> None:
            while not done.is_set():
                key = f"k{len(acknowledged)}"
                await leader.write(Put(key, b"v"))
                acknowledged.append(key)
                await asyncio.sleep(0.001)

        writing = asyncio.ensure_future(writer())
        for number in range(2, 6):
            await leader.add_learner(f"n{number}", cluster.address(f"n{number}"))
            await leader.change_membership(AddVoterIds((f"n{number}",)))
        done.set()
        await writing
        await cluster.applied(last_index(leader))
        assert acknowledged
        for node_id in names("12345"):
            machine = cluster.raft(node_id).machine
            assert all(machine.query(Get(key)) for key in acknowledged)
