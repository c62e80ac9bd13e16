"""Scenarios of a node's life: initialization, restarts, shutdown (openraft.md §3.1 life_cycle)."""

from __future__ import annotations

import asyncio

import pytest
from three_nodes import ALL

from raftkit_core.config import Config
from raftkit_core.errors import (
    ForwardToLeader,
    IdentityError,
    NotAllowed,
    NotInMembers,
    QuorumNotEnough,
    Stopped,
    Unreachable,
)
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.entry import BLANK, MEMBERSHIP
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import ZERO_LEADER_ID, ZERO_VOTE

pytestmark = pytest.mark.virtual_time


# --- initialize -------------------------------------------------------------------------------------------------------


async def test_a_fresh_node_is_a_learner_with_nothing() -> None:
    async with memory_cluster(3, initialize=False) as cluster:
        for node_id in ALL:
            metrics = cluster.raft(node_id).metrics().value
            assert (metrics.state, metrics.vote, metrics.last_log_id) == (ServerState.LEARNER, ZERO_VOTE, None)
            assert not await cluster.raft(node_id).is_initialized()
        await asyncio.sleep(5)
        assert cluster.hub.counts == {}, "nobody knows of anybody, so nobody speaks"


async def test_initialize_gives_every_node_the_same_first_entry_and_one_leader() -> None:
    async with memory_cluster(3, initialize=False) as cluster:
        await cluster.raft("n1").initialize(cluster.members(*ALL))
        await cluster.leader()
        await cluster.applied(1)
        for node_id in ALL:
            first, second = cluster.log(node_id)[:2]
            assert (first.log_id, first.kind, first.time_ms) == (LogId(ZERO_LEADER_ID, 0), MEMBERSHIP, 0)
            assert (second.index, second.kind) == (1, BLANK)
            metrics = cluster.raft(node_id).metrics().value
            assert metrics.membership.log_id == metrics.committed_membership.log_id == first.log_id
            assert metrics.membership.membership.voter_ids == ALL
            assert metrics.cluster_id == cluster.raft("n1").cluster_id is not None
        states = [cluster.raft(node_id).metrics().value.state for node_id in ALL]
        assert states.count(ServerState.LEADER) == 1
        assert states.count(ServerState.FOLLOWER) == 2


async def test_initialize_binds_every_member_to_its_store() -> None:
    async with memory_cluster(3) as cluster:
        nodes = cluster.raft("n2").metrics().value.membership.membership.nodes
        assert {node_id: node.store_id for node_id, node in nodes.items()} == {
            node_id: cluster.raft(node_id).store_id for node_id in ALL
        }


async def test_initialize_without_the_node_itself_is_refused_and_leaves_it_pristine() -> None:
    async with memory_cluster(2, initialize=False) as cluster:
        with pytest.raises(NotInMembers):
            await cluster.raft("n1").initialize(cluster.members("n2"))
        assert not await cluster.raft("n1").is_initialized()
        assert cluster.raft("n1").cluster_id is None


async def test_a_second_initialize_is_refused_and_names_what_is_there() -> None:
    async with memory_cluster(1) as cluster:
        with pytest.raises(NotAllowed, match="last log"):
            await cluster.raft("n1").initialize(cluster.members("n1"))


async def test_initialize_needs_every_member_to_answer_and_changes_nothing_before() -> None:
    async with memory_cluster(2, initialize=False) as cluster:
        with pytest.raises(Unreachable, match="n3"):
            await cluster.raft("n1").initialize(cluster.members(*ALL))
        assert cluster.raft("n1").cluster_id is None
        await cluster.start("n3")
        await cluster.raft("n1").initialize(cluster.members(*ALL))
        await cluster.leader()


async def test_simultaneous_initializers_of_one_list_make_one_cluster() -> None:
    async with memory_cluster(3, initialize=False) as cluster:
        members = cluster.members(*ALL)
        results = await asyncio.gather(*(outcome(cluster.raft(node_id).initialize(members)) for node_id in ALL))
        assert all(result is None or isinstance(result, NotAllowed) for result in results)
        leader = await cluster.leader()
        assert len({cluster.raft(node_id).cluster_id for node_id in ALL}) == 1
        await leader.client_write(Put("a", b"1"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        assert len({str(cluster.log(node_id)) for node_id in ALL}) == 1


async def test_simultaneous_initializers_of_different_lists_never_mix() -> None:
    async with memory_cluster(3, initialize=False) as cluster:
        await asyncio.gather(
            outcome(cluster.raft("n1").initialize(cluster.members("n1", "n2"))),
            outcome(cluster.raft("n3").initialize(cluster.members("n2", "n3"))),
        )
        await asyncio.sleep(5)
        clusters = {node_id: cluster.raft(node_id).cluster_id for node_id in ALL}
        assert clusters["n1"] != clusters["n3"]
        leaders = {cluster.raft(node_id).current_leader() for node_id in ALL if clusters[node_id] == clusters["n2"]}
        assert len(leaders - {None}) <= 1


async def test_initialize_goes_on_after_a_crash_between_cluster_id_and_first_entry() -> None:
    async with memory_cluster(3, initialize=False) as cluster:

        class Crash(Exception):
            pass

        raft = cluster.raft("n1")
        identity = raft._identity
        real = identity.adopt_cluster

        async def adopt_then_die(cluster_id: str) -> None:
            await real(cluster_id)
            raise Crash

        identity.adopt_cluster = adopt_then_die  # type: ignore[method-assign]
        with pytest.raises(Crash):
            await raft.initialize(cluster.members(*ALL))
        cluster_id = raft.cluster_id
        assert cluster_id is not None
        raft = await cluster.restart("n1")
        assert raft.cluster_id == cluster_id
        assert not await raft.is_initialized()
        with pytest.raises(NotAllowed, match="belongs to cluster"):
            await raft.initialize(cluster.members("n1"))
        await raft.initialize(cluster.members(*ALL))
        assert raft.cluster_id == cluster_id
        await cluster.leader()


async def test_a_member_of_one_cluster_is_not_taken_into_another() -> None:
    async with memory_cluster(1) as cluster:
        await cluster.start("n2")
        with pytest.raises((NotAllowed, IdentityError), match="belongs to cluster"):
            await cluster.raft("n2").initialize(cluster.members("n1", "n2"))


# --- restarts ---------------------------------------------------------------------------------------------------------


async def test_a_single_node_leads_again_in_a_new_term_and_serves_what_it_acknowledged() -> None:
    async with memory_cluster(1) as cluster:
        for number in range(10):
            await cluster.raft("n1").client_write(Put(f"k{number}", b"v"))
        before = cluster.raft("n1").metrics().value.current_term
        raft = await cluster.restart("n1")
        await raft.wait(5).current_leader("n1")
        assert raft.metrics().value.current_term > before, "never under a leader id of an earlier process"
        assert (await raft.read(Get("k9"))).value == b"v"
        await raft.client_write(Put("k10", b"v"))


async def test_a_restarted_leader_is_no_leader_until_it_wins_a_new_term() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        restarted = await cluster.restart(leader.id)
        assert restarted.metrics().value.state is ServerState.FOLLOWER
        with pytest.raises(ForwardToLeader):
            await restarted.client_write(Put("a", b"1"))
        new_leader = await cluster.leader()
        assert new_leader.metrics().value.current_term > term


async def test_a_restarted_follower_disturbs_nobody() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        follower = next(node_id for node_id in ALL if node_id != leader.id)
        await cluster.restart(follower)
        await asyncio.sleep(5)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_everything_acknowledged_is_there_after_all_nodes_died_at_once() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        for number in range(50):
            await leader.client_write(Put(f"k{number}", str(number).encode()))
        for node_id in ALL:
            await cluster.kill(node_id)
        for node_id in ALL:
            await cluster.start(node_id)
        for number in range(50):
            assert (await cluster.raft("n2").read(Get(f"k{number}"))).value == str(number).encode()


async def test_two_of_three_go_on_after_a_restart_without_the_old_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        for node_id in ALL:
            await cluster.kill(node_id)
        for node_id in ALL:
            if node_id != leader.id:
                await cluster.start(node_id)
        new_leader = await cluster.leader()
        await new_leader.client_write(Put("b", b"2"))
        await cluster.start(leader.id)
        await cluster.applied(new_leader.metrics().value.last_log_index or 0)
        assert cluster.raft(leader.id).machine.query(Get("b")).value == b"2"


async def test_a_learner_restarts_as_a_learner_with_its_log() -> None:
    async with memory_cluster(1, ["n2"]) as cluster:
        await cluster.raft("n1").client_write(Put("a", b"1"))
        await cluster.applied(cluster.raft("n1").metrics().value.last_log_index or 0)
        log = list(cluster.log("n2"))
        await cluster.kill("n1")
        raft = await cluster.restart("n2")
        await asyncio.sleep(3)
        assert raft.metrics().value.state is ServerState.LEARNER
        assert cluster.log("n2") == log


async def test_a_wiped_voter_is_parked_and_its_vote_does_not_count() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        wiped, other = [node_id for node_id in ALL if node_id != leader.id]
        for number in range(5):
            await leader.client_write(Put(f"k{number}", b"v"))
        await cluster.kill(wiped)
        cluster.wipe(wiped)
        await cluster.start(wiped)
        await cluster.kill(other)
        await asyncio.sleep(1)
        with pytest.raises(QuorumNotEnough, match="1 of 3"):
            await leader.client_write(Put("lost", b"v"))


async def test_the_cluster_lives_on_with_a_wiped_voter_and_takes_it_back_as_a_new_member() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        wiped = next(node_id for node_id in ALL if node_id != leader.id)
        await cluster.kill(wiped)
        cluster.wipe(wiped)
        await cluster.start(wiped)
        await leader.client_write(Put("a", b"1"))
        await asyncio.sleep(1)
        assert cluster.raft(wiped).cluster_id is None, "its store is not the one the membership names"
        await leader.change_membership([node_id for node_id in ALL if node_id != wiped])
        await leader.add_learner(wiped, cluster.address(wiped))
        await leader.change_membership(ALL)
        await leader.client_write(Put("b", b"2"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        assert cluster.log(wiped)[0].index == 0
        assert cluster.raft(wiped).machine.query(Get("a")).value == b"1"


async def test_a_wiped_leader_that_is_initialized_again_must_not_lead() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await cluster.kill(leader.id)
        cluster.wipe(leader.id)
        raft = await cluster.start(leader.id)
        refused = await outcome(raft.initialize(cluster.members(*ALL)))
        assert isinstance(refused, NotAllowed | IdentityError)
        raft.trigger().elect()
        await asyncio.sleep(5)
        assert raft.metrics().value.state is not ServerState.LEADER
        others = [node_id for node_id in ALL if node_id != leader.id]
        assert (await cluster.leader(*others)).id in others


# --- shutdown ---------------------------------------------------------------------------------------------------------


async def test_shutdown_is_idempotent_and_shows_in_the_metrics() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        await asyncio.gather(raft.shutdown(), raft.shutdown())
        await raft.shutdown()
        metrics = raft.metrics().value
        assert (metrics.state, metrics.running, metrics.fatal) == (ServerState.SHUTDOWN, False, None)


async def test_every_call_after_a_shutdown_says_stopped() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        await raft.shutdown()
        for call in (
            raft.client_write(Put("a", b"1")),
            raft.write(Put("a", b"1")),
            raft.read(Get("a"), timeout=1),
            raft.with_raft_state(lambda state: state.committed),
            raft.is_initialized(),
            raft.add_learner("n2", cluster.address("n2")),
            raft.wait(1).current_leader("n9"),
        ):
            with pytest.raises(Stopped):
                await call


async def test_shutdown_hands_leadership_over_first() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        started = asyncio.get_running_loop().time()
        await cluster.stop(leader.id)
        await cluster.leader()
        assert asyncio.get_running_loop().time() - started < 0.5, "no election timeout was waited for"


async def test_metrics_end_when_the_node_has_stopped() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")

        async def watch() -> list[ServerState]:
            return [metrics.state async for metrics in raft.metrics()]

        watcher = asyncio.ensure_future(watch())
        await asyncio.sleep(0.1)
        await raft.shutdown()
        assert (await watcher)[-1] is ServerState.SHUTDOWN


async def test_config_gives_back_what_was_given() -> None:
    config = Config(heartbeat_interval_ms=70, max_inflight=3)
    async with memory_cluster(1, config=config) as cluster:
        assert cluster.raft("n1").config == config
